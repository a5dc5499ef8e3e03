"""train.py as a user calls it: what a run leaves behind, sweeps, resuming, and what is said when it cannot
work.
"""

import csv
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, Train, build_once, run_script, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import polyp
from polyp.images import components
from polyp.metrics.intervals import bootstrap_interval
from polyp.model import device
from polyp.runs.folder import RunFolder


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs, by the real command, in the folder that hydra.run.dir= says."""

    def build(folder: Path) -> None:
        command = [sys.executable, "train.py", *SMALL, "trainer.max_epochs=2", f"hydra.run.dir='{folder}'"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        (folder / "stdout").write_text(result.stdout)
        (folder / "stderr").write_text(result.stderr)

    return build_once(tmp_path_factory, "a run", build)


def test_a_run_leaves_its_folder(finished: Path) -> None:
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if ".hydra" not in path.parts}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert events
    pictures = {name for name in names if name.startswith("pictures/")}
    assert len(pictures) == 1 + 2  # overview, and both test images of 20
    rest = names - events - pictures - {"stdout", "stderr"}
    assert rest == {
        ".lock",
        "config.yaml",
        "checkpoints",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.json",
        "per_image.csv",
        "pictures",
        "split.json",
        "train.log",
    }


def test_the_numbers_agree_with_the_images(finished: Path) -> None:
    metrics = read(finished)
    with open(finished / "per_image.csv") as file:
        rows = list(csv.DictReader(file))
    dice = [float(row["dice"]) for row in rows]
    assert metrics["test"]["n"] == len(rows) == 2
    assert metrics["test"]["dice"] == pytest.approx(np.mean(dice), abs=1e-6)
    assert metrics["test"]["dice_interval"] == pytest.approx(bootstrap_interval(dice))
    for row in rows:
        tp, fp, fn = (int(row[name]) for name in ("tp", "fp", "fn"))
        assert float(row["dice"]) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    tp, fp, fn = (sum(int(row[name]) for row in rows) for name in ("tp", "fp", "fn"))
    assert metrics["test"]["pooled_dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-6)


def test_metrics_say_what_they_are(finished: Path) -> None:
    metrics = read(finished)
    assert metrics["data"]["images"] == {"train": 16, "val": 2, "test": 2}
    assert metrics["best"]["monitor"] == "val/dice"
    assert metrics["best"]["epoch"] in (0, 1)
    assert set(metrics["test"]) - {"n", "dice_interval", "iou_interval"} <= set(metrics["definitions"])
    for key in ("seed", "parameters", "seconds", "peak_memory_mb", "device", "precision", "versions"):
        assert metrics[key] is not None


def test_checkpoints_hold_no_code(finished: Path) -> None:
    for name in ("best", "last"):
        checkpoint = torch.load(finished / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["hyper_parameters"]["arch"] == "unet"


def test_the_terminal_says_what_came_out(finished: Path) -> None:
    output = (finished / "stdout").read_text()
    dice = read(finished)["test"]["dice"]
    assert f"Test Dice {dice:.3f} (95 % interval" in output
    assert "tensorboard --logdir '" in output
    assert finished.name in output
    assert "Warning" not in (finished / "stderr").read_text()
    log = (finished / "train.log").read_text()
    assert (
        re.search(r"^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d epoch 1 of 2   train/loss", log, re.M)
        and "epoch 2 of 2" in log
    )
    assert "fontManager" not in output + log


def test_the_curves(finished: Path) -> None:
    events = EventAccumulator(str(finished), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/dice", "val/loss", "val/dice", "val/iou"} <= set(tags["scalars"])
    assert {"lr/encoder", "lr/decoder"} <= set(tags["scalars"])
    assert not [tag for tag in tags["scalars"] if "epoch" in tag]
    assert len(events.Scalars("val/dice")) == 2
    assert len(tags["images"]) == 4  # both validation images, and both by their Dice
    for tag in tags["images"]:
        assert [image.step for image in events.Images(tag)] == [3, 7]  # at the end of both epochs


def test_hparams_hold_the_numbers_in_a_real_tensorboard(finished: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(finished), "--port", "0", "--bind_all"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        output = next(line for line in server.stderr if "http://" in line)
        port = re.findall(r":(\d+)/", output)[0]
        ask = f"http://127.0.0.1:{port}/data/plugin/hparams"

        def post(route: str, body: dict[str, Any]) -> dict[str, Any]:
            request = urllib.request.Request(
                f"{ask}/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)

        deadline = time.time() + 60
        while not (experiment := post("experiment", {"experimentName": ""})).get("metricInfos"):
            assert time.time() < deadline, experiment
            time.sleep(0.5)
        columns = {info["name"]["tag"] for info in experiment["metricInfos"]}
        assert columns == {"val/dice_best", "test/dice"}
        query = {
            "experimentName": "",
            "allowedStatuses": ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN"],
            "colParams": [{"metric": {"tag": "test/dice", "group": ""}}],
            "startIndex": 0,
            "sliceSize": 10,
        }
        (group,) = post("session_groups", query)["sessionGroups"]
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        assert values["test/dice"] == pytest.approx(read(finished)["test"]["dice"], abs=1e-6)
        assert group["hparams"]["model/encoder"] == "mobilenet_v2"
    finally:
        server.terminate()
        server.wait(10)
        assert server.stderr is not None
        server.stderr.close()


def test_the_same_seed_gives_the_same_run(finished: Path, train: Train) -> None:
    outputs = train(*SMALL, "trainer.max_epochs=2", "data.num_workers=2", "trainer.precision=auto")
    assert read(outputs / "run")["test"] == read(finished)["test"]


DRAWN = 0, 200, 255
"""Background, a border that is ignored, and polyp, in the masks of `draw_sources`."""


def draw_sources(folder: Path) -> None:
    """Two data sets, alpha and beta, and frames without polyps, normal, of 20 images each."""
    random = np.random.default_rng(0)
    for source in ("alpha", "beta", "normal"):
        for part in ("images", "masks"):
            (folder / source / part).mkdir(parents=True)
        for number in range(20):
            cells = random.integers(0, 120, (6, 6, 3)).astype(np.uint8)
            image, mask = cv2.resize(cells, (60, 48)), np.zeros((48, 60), np.uint8)
            x, y, radius = (int(random.integers(*limits)) for limits in ((15, 45), (15, 33), (6, 12)))
            for value, reach in ((DRAWN[1], radius + 3), (DRAWN[2], radius)):
                cv2.circle(mask, (x, y), reach, value, -1)
            image[mask == DRAWN[2]] += 120
            cv2.imwrite(str(folder / source / "images" / f"{source}{number}.png"), image)
            cv2.imwrite(str(folder / source / "masks" / f"{source}{number}.png"), mask)
    shutil.rmtree(folder / "normal" / "masks")


@pytest.mark.slow
def test_sources_and_normal_frames_are_scored_apart_and_ignored_pixels_not_at_all(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_sources(tmp_path)
    run = train(
        *(override for override in SMALL if not override.startswith(("data=", "data.count", "data.size"))),
        "data=folder",
        f"data.root=[{tmp_path}/alpha,{tmp_path}/beta]",
        f"data.polyp_values=[{DRAWN[2]}]",
        f"data.ignore_value={DRAWN[1]}",
        f"data.normal={tmp_path}/normal/images",
    )
    run /= "run"
    output = capsys.readouterr().out
    test, model = read(run)["test"], polyp.load(run, device="cpu")
    with open(run / "per_image.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:2] == ["stem", "source"] and len(rows) == test["n"] == 4

    for row in rows:
        source, name = row["stem"].split("/")
        assert source == row["source"]
        predicted = model.predict(tmp_path / source / "images" / f"{name}.png").probability >= 0.5
        mask = cv2.imread(str(tmp_path / source / "masks" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        counted, true = mask != DRAWN[1], mask == DRAWN[2]
        tp, both = (predicted & true).sum(), (predicted & counted).sum() + true.sum()
        assert float(row["dice"]) == pytest.approx(2 * tp / both)
        assert float(row["polyp_share"]) == pytest.approx(true.sum() / counted.sum())
    for source, part in test["sources"].items():
        dice = [float(row["dice"]) for row in rows if row["source"] == source]
        assert (part["n"], part["dice"]) == (len(dice), pytest.approx(np.mean(dice)))
        assert f"{source:<10} Dice {part['dice']:.3f}" in output
    assert {source: part["n"] for source, part in test["sources"].items()} == Counter(
        row["source"] for row in rows
    )

    frames = json.loads((run / "split.json").read_text())["normal"]
    stems = [Path(stem).name for stem in frames]
    predictions = model.predict([tmp_path / "normal" / "images" / f"{stem}.png" for stem in stems])
    counts = [components(prediction.probability >= 0.5)[0] for prediction in predictions]
    normal = test["normal"]
    assert normal["n"] == len(frames) > 0
    assert normal["false_alarms"] == pytest.approx(np.mean([count > 0 for count in counts]))
    assert normal["false_positives_per_image"] == pytest.approx(np.mean(counts))
    assert f"false alarms on {normal['false_alarms']:.1%}" in output
    events = EventAccumulator(str(run)).Reload()
    assert events.Scalars("test/false_alarms")[0].value == pytest.approx(normal["false_alarms"])

    again = polyp.evaluate(run)["test"]
    assert again["sources"] == test["sources"]
    assert again["numbers"]["dice"]["value"] == pytest.approx(test["dice"])


def test_a_finished_run_is_not_resumed(
    finished: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.*") if ".hydra" not in path.parts}
    with pytest.raises(SystemExit, match="is finished"):
        train(f"resume='{finished}'")
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before if before[path] != after[path]} <= {"train.log"}


def test_resume_continues_in_the_same_folder(train: Train) -> None:
    outputs = train(*SMALL)
    run = outputs / "run"
    (run / "metrics.json").unlink()  # as if it had been stopped at the end
    train(f"resume={run}", "trainer.max_epochs=3", "model.arch=unet")  # the second changes nothing
    assert [path.name for path in outputs.iterdir()] == ["run"]
    assert read(run)["epochs"] == 3
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("val/dice")] == [3, 7, 11]


def test_a_refused_run_leaves_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for refused in ("model.threshold=2", "name=other"):
        with pytest.raises(SystemExit):
            run_script(*SMALL, refused, "data.image_size=1")
        assert not list(tmp_path.iterdir())
    (tmp_path / "outputs" / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(SystemExit):
        run_script(*SMALL, "data.image_size=1")
    assert [path.name for path in (tmp_path / "outputs" / "runs").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.arch=linknet", "resume= cannot change model.arch"),
        ("optim.decoder_lr=1", "resume= cannot change optim.decoder_lr"),
        ("data=synthetic", "resume= cannot change data,"),
        ("model.loss={dice: 1}", "resume= cannot change model.loss"),
        ("~optim.momentum", "resume= cannot change optim.momentum"),
    ],
)
def test_resume_refuses_what_it_cannot_honour(
    finished: Path, tmp_path: Path, train: Train, override: str, message: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "metrics.json").unlink()
    with pytest.raises(SystemExit, match=message):
        train(f"resume={run}", override)


def test_resume_of_no_run(train: Train, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is not the folder of a run"):
        train(f"resume={tmp_path}")
    with pytest.raises(SystemExit, match="is not the folder of a run"):
        train(f"resume={tmp_path / 'nowhere'}")
    assert not (tmp_path / "nowhere").exists()


def test_a_run_is_not_overwritten(finished: Path, train: Train) -> None:
    before = (finished / "metrics.json").read_bytes(), (finished / "config.yaml").read_bytes()
    with pytest.raises(SystemExit, match="holds a run already"):
        train(*SMALL, f"hydra.run.dir='{finished}'")
    assert before == ((finished / "metrics.json").read_bytes(), (finished / "config.yaml").read_bytes())


@pytest.mark.slow
def test_a_sweep_makes_a_folder_per_job_with_a_short_label(train: Train) -> None:
    outputs = train(
        "-m", *SMALL, "model.encoder=mobilenet_v2,resnet18", "seed=0,1", "+trainer.limit_train_batches=1"
    )
    jobs = sorted(path.name for path in (outputs / "sweep").iterdir() if path.is_dir())
    assert jobs == [
        "0_encoder-mobilenet_v2_seed-0",
        "1_encoder-mobilenet_v2_seed-1",
        "2_encoder-resnet18_seed-0",
        "3_encoder-resnet18_seed-1",
    ]
    for job in jobs:
        assert read(outputs / "sweep" / job)["seed"] == int(job[-1])


def test_no_place_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs").write_text("a file where the folder should be")
    with pytest.raises(
        SystemExit, match=r"cannot make the folder outputs/runs/default.* hydra.run.dir=FOLDER"
    ):
        run_script(*SMALL)


@pytest.mark.slow
def test_the_default_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = (*SMALL, "name=mine", "+trainer.limit_train_batches=1")
    run_script(*quick)
    run_script("-m", *quick, "seed=1,2")
    (run,) = Path("outputs/runs/mine").iterdir()
    (sweep,) = Path("outputs/sweeps/mine").iterdir()
    for folder in (run, sweep):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    finished = sorted(str(path.relative_to(sweep).parent) for path in sweep.rglob("metrics.json"))
    assert finished == ["0_seed-1", "1_seed-2"]
    assert (run / "metrics.json").exists()


@pytest.mark.slow
def test_a_sweep_is_checked_before_its_first_job(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"job 1, .*mobilenet_v9.*did you mean.*\nNo job was started"):
        train("-m", *SMALL, "model.encoder=mobilenet_v2,mobilenet_v9")
    with pytest.raises(SystemExit, match=r"optim\.decoder_lr=-1"):
        train("-m", *SMALL, "optim.decoder_lr=1e-3,-1")
    assert not (train("--cfg", "job") / "sweep").exists()


def test_two_runs_in_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    from polyp.runs.resume import make_folder

    expected = str(tmp_path / "runs" / "2026-01-01_00-00-00")
    code = f"from polyp.runs.resume import make_folder; print(make_folder({expected!r}))"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    folders = {process.communicate()[0].strip() for process in started}
    assert folders == {expected, *(f"{expected}_{number}" for number in (2, 3, 4))}
    assert make_folder(expected) == make_folder(expected) == f"{expected}_5"


def test_a_run_that_failed_on_its_data_may_be_started_again(train: Train, tmp_path: Path) -> None:
    run = f"hydra.run.dir={tmp_path / 'again'}"
    with pytest.raises(SystemExit, match="larger than"):
        train(*SMALL, "data.batch_size=50", run)
    train(*SMALL, run)
    assert (tmp_path / "again" / "metrics.json").exists()


def one_line(error: pytest.ExceptionInfo[SystemExit]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.arch=unett"], "model.arch=unett is unknown: did you mean unet"),
        (["model.encoder=resnet35"], "model.encoder=resnet35 is unknown: did you mean resnet"),
        (["model.loss=dise"], "model.loss=dise is unknown: did you mean dice"),
        (
            ["model.encoder_weights=nowhere.safetensors"],
            "model.encoder_weights=nowhere.safetensors is not there",
        ),
        (["model.decoder_channels=[8,8]"], "must be a list of 5 numbers"),
        (["model.encoder_depth=2", "model.decoder_channels=null"], "choose 3, 4 or 5"),
        (["optim.optimizer=adamm"], "optim.optimizer=adamm is unknown: did you mean adam"),
        (["optim.schedule=cosin"], "optim.schedule=cosin is unknown: did you mean cosine"),
        (["optim.optimizer=lbfgs"], "optim.optimizer=lbfgs does not work"),
        (["optim.options={beta: 1}"], "optim.options.beta is unknown: did you mean betas"),
        (["optim.schedule=onecycle"], "optim.warmup=0.05 does not work with optim.schedule=onecycle"),
        (["model.loss={dise: 1}"], "model.loss=dise is unknown: did you mean dice"),
        (["model.loss=os.getcwd"], "model.loss=os.getcwd does not work"),
        (["model.gradient_checkpointing=true"], "not work with model.encoder=mobilenet_v2"),
        (
            ["model.gradient_checkpointing=true", "model.compile=true"],
            "model.compile=true and model.gradient_checkpointing=true",
        ),
        (["augment=multiscale"], "augment.scales=[0.75, 1, 1.25] at data.image_size=64x64"),
        (
            ["augment=multiscale", "data.image_size=128", "model.encoder=tu-hiera_tiny_224"],
            "model.encoder=tu-hiera_tiny_224, made for 128x128, does not work at 96x96",
        ),
        (["data.batch_size=17"], "data.batch_size=17 is larger than the 16 training images"),
        (["data.split=oficial"], "data.split=oficial is neither a file nor known: did you mean official"),
        (["data.split=official"], "data.split=random"),
        (["data.image_size=5"], "data.image_size=5"),
        (["monitor=val/dise"], "monitor=val/dise is unknown: did you mean val/dice"),
        (["+trainer.max_epoch=3"], "trainer.max_epoch is unknown: did you mean max_epochs"),
        (["trainer.precision=bf17"], "trainer.precision=bf17"),
        (["+trainer.enable_checkpointing=false"], "trainer: "),
        (["+model.foo=1"], "model.foo"),
        (["+augment.foo=1"], "augment.foo"),
        (["seed=-1"], "seed=-1 must be"),
        (["+trainer.limit_val_batches=0"], "trainer.limit_val_batches=0 leaves"),
        (["+trainer.limit_val_batches=0.01"], "limit_val_batches"),
        (["+trainer.limit_test_batches=0"], "trainer.limit_test_batches=0"),
        (["+trainer.max_steps=1"], "trainer.max_steps=1"),
        (["+trainer.num_nodes=2"], "trainer.num_nodes=2"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0"),
        (["trainer.max_epochs=three"], "trainer.max_epochs=three"),
        (["trainer.precision=fp16"], "trainer.precision=fp16"),
        (["+trainer.check_val_every_n_epoch=2"], "trainer.check_val_every_n_epoch=2"),
        (["+trainer.strategy=nope"], "nope"),
        (["patience=0"], "patience=0"),
        (["data.cache=3"], "data.cache=3"),
        (["data.root=[a,b]"], "data.root"),
        (["+ckpt_path=x.ckpt"], "resume=RUN"),
        (["+callbacks=early_stopping"], "patience="),
        (["+batch_size=8"], "data.batch_size"),
        (["+note=${nowhere}"], "note"),
        (["name=${nowhere}"], "nowhere"),
    ],
)
def test_bad_input_gets_one_clear_line(train: Train, overrides: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as error:
        train(*SMALL, *overrides)
    assert message in one_line(error)


def test_what_is_wrong_is_reported_together_and_before_anything_is_fetched(
    train: Train, tmp_path: Path
) -> None:
    names = ["model.arch=unett", "model.encoder=tu-nope", "optim.schedule=cosin", "model.init_from=/nope"]
    values = ["trainer.precision=fp16", "optim.decoder_lr=a", "+data.foo=1", "monitor=loss", "seed=-1"]
    for wrong in (names, values):
        with pytest.raises(SystemExit) as error:
            train(*SMALL, *wrong, "model.encoder_weights=imagenet")
        assert len(str(error.value).splitlines()) == 1 + len(wrong)
        for word in wrong:
            assert word.lstrip("+").partition("=")[0] in str(error.value)
    for arguments, keys in {
        ("data=folder",): ["data.root"],
        ("data=folder", "data.root=/nope", "data.split=nowhere.csv"): [
            "data.root=/nope",
            "data.split=nowhere.csv",
        ],
        ("data=kvasir_seg", "data.archive=/nope.zip", "model.encoder_weights=nope.pt"): [
            "data.archive=/nope.zip",
            "model.encoder_weights=nope.pt",
        ],
    }.items():
        with pytest.raises(SystemExit) as error:
            train(*arguments)
        assert all(key in str(error.value) for key in keys)
    # a folder in which nothing has begun is not left behind
    assert not list((tmp_path / "outputs").iterdir())


@pytest.mark.parametrize("name", ["../../..", "a/../../b", "/tmp/elsewhere", "null"])
def test_a_name_stays_inside_outputs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["-m", "seed=0,1"], ["resume=auto"]):
        with pytest.raises(SystemExit) as error:
            run_script(*arguments, *SMALL, f"name={name}")
        assert "name=" in one_line(error)
    assert not list(tmp_path.iterdir())


def test_a_misspelled_key_names_it() -> None:
    command = [sys.executable, "train.py", "data.bach_size=3"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("data.bach_size is no setting of polyp: did you mean data.batch_size")


@pytest.mark.slow
def test_a_nan_loss_stops_and_keeps_the_last_good_checkpoint(train: Train, tmp_path: Path) -> None:
    outputs = train(*SMALL, "seed=3")
    run = outputs / "run"
    (run / "metrics.json").unlink()
    last = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["lr_schedulers"][0]["base_lrs"] = [1e30, 1e30]
    torch.save(checkpoint, last)
    good = last.read_bytes()
    with pytest.raises(SystemExit) as error:
        train(f"resume={run}", "trainer.max_epochs=3")
    assert "loss is nan at step" in one_line(error)
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == good
    assert not (run / "metrics.json").exists()


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "train.py", *SMALL, "trainer.max_epochs=1000", f"hydra.run.dir={run}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "To continue: python train.py resume=" in output
    assert "Traceback" not in errors
    assert not (run / "metrics.json").exists()
    epoch = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]
    run_script(f"resume={run}", f"trainer.max_epochs={epoch + 2}")
    assert read(run)["epochs"] == epoch + 2


@pytest.mark.slow
def test_a_terminal_shows_the_progress_of_the_whole_run(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = [
        sys.executable,
        "train.py",
        *SMALL,
        "trainer.max_epochs=2",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, cwd=ROOT, stdout=follower, stderr=follower, env=environment):
        os.close(follower)
        output = b""
        with suppress(OSError):  # the end
            while part := os.read(leader, 4096):
                output += part
    os.close(leader)
    text = re.sub(r"\x1b\[[\d;?]*\w", "", output.decode())
    assert re.search(r"building the network", text) and re.search(r"epoch 1 of 2 \S+ batch \d of 4", text)
    assert "epoch 2 of 2   train/loss" in text and "?" not in text
    assert output.rindex(b"\x1b[?25h") < output.index(b"Test Dice")  # the cursor is there again


@pytest.mark.parametrize(
    ("number", "after"),
    [
        pytest.param(signal.SIGTERM, "epoch 2 of 2", marks=pytest.mark.slow),  # while it tests
        pytest.param(signal.SIGINT, "epoch 2 of 2", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "M parameters", marks=pytest.mark.slow),  # before the first step
        pytest.param(signal.SIGINT, "M parameters", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_run_at_any_moment(number: signal.Signals, after: str, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    log.touch()
    # Many test images, so that the test takes a while.
    process = start(*SMALL, "data.count=400", "trainer.max_epochs=2", "+trainer.limit_train_batches=2",
                    f"hydra.run.dir={run}", log=log)  # fmt: skip
    while after not in log.read_text():
        assert process.is_alive(), log.read_text()
        time.sleep(0.01)
    while after.startswith("epoch") and not (run / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number, log.read_text()
    assert "Traceback" not in log.read_text() and "Test Dice" not in log.read_text()
    assert not (run / "metrics.json").exists()
    if (run / "config.yaml").exists():
        (hint,) = re.findall(r"python train.py (resume=\S+)", log.read_text())
        run_script(hint)
        assert (run / "metrics.json").exists()


@pytest.mark.slow
def test_a_full_disk_while_saving_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    limit = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    # no file may grow beyond 4 MB
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000)); "
    limit += f"sys.path.insert(0, '.'); sys.argv = ['train.py', *{list(SMALL)}, 'hydra.run.dir={run}']; "
    limit += "runpy.run_path('train.py', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", limit], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"cannot write {run}/checkpoints" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(run.glob("checkpoints/*.ckpt"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.optimizer=sgd", "optim.schedule=poly", "model.loss=structure", "monitor=val/iou"],
        [
            "optim.schedule=plateau",
            "optim.warmup=0",
            "optim.ema_decay=null",
            "data.cache=false",
            "augment=none",
        ],
        ["model.stages=2", "model.loss=tversky", "augment=strong", "data.image_size=[64,96]"],
        [
            *("augment=multiscale", "data.image_size=96", "model.loss={lovasz: 1, bce: 0.5}"),
            *("optim.optimizer=RAdam", "optim.options={betas: [0.8, 0.99]}"),
            *("optim.schedule=onecycle", "optim.warmup=0"),
            *("model.encoder=tu-mobilenetv2_050", "model.gradient_checkpointing=true"),
        ],
        ["model.arch=segformer", "model.decoder_channels=null", "model.encoder=mit_b0", "model.loss=focal"],
    ],
)
def test_the_choices_train(train: Train, overrides: list[str]) -> None:
    outputs = train(*SMALL, *overrides)
    assert 0 <= read(outputs / "run")["test"]["dice"] <= 1


def test_early_stopping(train: Train) -> None:
    still = ("optim.encoder_lr=0", "optim.decoder_lr=1e-12", "optim.ema_decay=null")
    outputs = train(*SMALL, *still, "patience=1", "trainer.max_epochs=30", "+trainer.limit_train_batches=1")
    assert read(outputs / "run")["epochs"] < 10


@pytest.mark.slow
def test_accumulation_makes_fewer_steps(train: Train) -> None:
    outputs = train(*SMALL, "trainer.accumulate_grad_batches=2")
    assert torch.load(outputs / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
def test_an_untrained_network_fails_the_quickstart(train: Train) -> None:
    """.ci/run holds the trained one above .85."""
    outputs = train("experiment=quickstart", "trainer.max_epochs=1", "+trainer.limit_train_batches=1")
    assert read(outputs / "run")["test"]["dice"] < 0.5


def test_a_trial_run_of_one_batch(train: Train) -> None:
    outputs = train(*SMALL, "+trainer.fast_dev_run=true")
    assert not (outputs / "run" / "metrics.json").exists()


@pytest.mark.real_data
def test_training_on_kvasir_learns(train: Train, data_folder: Path) -> None:
    outputs = train(
        "data.image_size=64",
        f"data.archive={data_folder / 'kvasir-seg.zip'}",
        f"model.encoder_weights={data_folder / 'weights' / 'mobilenet_v2.safetensors'}",
        "model.arch=unet",
        "model.encoder=mobilenet_v2",
        "model.loss=dice_bce",
        "augment=light",
        "data.batch_size=4",
        "trainer.max_epochs=2",
        "optim.ema_decay=0.95",
    )
    metrics = read(outputs / "run")
    assert metrics["data"]["images"] == {"train": 800, "val": 80, "test": 120}
    assert metrics["data"]["fingerprint"] == "1865507fb8f7e6f2"
    assert metrics["test"]["dice"] > 0.5


@pytest.mark.slow
def test_peak_memory_is_the_runs_own(train: Train) -> None:
    np.ones(2**30, np.uint8)  # what the process has taken before, and given back
    before = device.peak_memory()
    run = train(*SMALL) / "run"
    assert 0 < RunFolder(run).read_metrics()["peak_memory_mb"] * 2**20 < before
