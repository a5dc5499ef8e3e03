"""A run that is interrupted, however, ends with the numbers that it would have had; and what cannot go on
says so.
"""

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROCESSES, SMALL, run_script, start, train_once
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from polyp import cli, files
from polyp.data.sources import Synthetic
from polyp.runs.folder import RunFolder
from polyp.training import callbacks

LONGER = (*SMALL, "+augment.scales=[0.5,1,1.5]", "trainer.max_epochs=4", "optim.ema_decay=0.8")

NIGHTLY = [pytest.mark.slow, pytest.mark.nightly]


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def numbers(folder: Path) -> dict[str, Any]:
    """What metrics.json says of the result, not of the machine's trouble with it."""
    return {
        name: value
        for name, value in read(folder).items()
        if name not in ("seconds", "peak_memory_mb", "latency_ms")
    }


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    parts = [key for key in ("state_dict", "current_model_state") if key in checkpoint]
    return {f"{part}.{key}": value for part in parts for key, value in checkpoint[part].items()}


def curves(folder: Path) -> dict[str, Any]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    return scalars | {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}


def assert_same(run: Path, reference: Path) -> None:
    assert numbers(run) == numbers(reference)
    for name in ("best", "last"):
        ours, theirs = weights(run, name), weights(reference, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert curves(run) == curves(reference)
    steps = [step for step, _ in curves(run)["val/dice"]]
    assert steps == sorted(set(steps))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, float]]:
    """A run without interruption, and how many seconds its process took."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        start(*SMALL, "--cfg", "job").join()  # the imports
        began = time.time()
        process = start(*LONGER, f"hydra.run.dir={folder}", log=folder.parent / "output")
        process.join()
    assert process.exitcode == 0, (folder.parent / "output").read_text()
    yield folder, time.time() - began


KILLS = {
    0: ["resized", "last.ckpt", "random", "random"],
    1: ["last.ckpt", "random", "random"],
    2: ["best.ckpt", "random", "random"],
}


@pytest.mark.parametrize(
    "workers", [pytest.param(2, marks=pytest.mark.slow), *(pytest.param(n, marks=NIGHTLY) for n in (0, 1))]
)
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(
    workers: int,
    whole: tuple[Path, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moments: random.Random,
) -> None:
    reference, seconds = whole
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kills, run, number = list(KILLS[workers]), tmp_path / "0", 0
    while kills or not (run / "metrics.json").exists():
        if (run / "metrics.json").exists():  # it was too quick: another one for the rest
            assert_same(run, reference)
            number += 1
            run = tmp_path / str(number)
        process = start(
            *LONGER,
            f"data.num_workers={workers}",
            f"hydra.run.dir={run}",
            "resume=auto",
            log=tmp_path / "output",
        )
        if kills and kill(process, kills[0], tmp_path, run, moments.uniform(0, seconds)):
            kills.pop(0)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), (tmp_path / "output").read_text()
    assert_same(run, reference)


def kill(process: Any, moment: str, folder: Path, run: Path, seconds: float) -> bool:
    """Kill a process after so many seconds, or while it writes the checkpoint or the cache; whether it was
    alive.
    """
    deadline = time.time() + seconds
    patterns = {"resized": "cache/polyp/resized/.part-*.npy"}
    while process.is_alive():
        if moment == "random" and time.time() > deadline:
            process.kill()
            return True
        if moment != "random" and any(
            folder.glob(patterns.get(moment, f"{run.name}/checkpoints/.part-{moment}"))
        ):
            process.kill()
            process.join()
            return process.exitcode == -signal.SIGKILL
    return False


def stopped(
    at: tuple[int, int], number: int, arguments: tuple[str, ...], log: Path, environment: Mapping[str, str]
) -> None:
    """A run that gets a signal before it takes the given step of the given epoch."""
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # as in conftest
    # a sweep starts the fork server with it blocked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    seed = callbacks.StepSeed.on_train_batch_start

    def on_train_batch_start(self: Any, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        seed(self, trainer, module, batch, batch_idx)
        if (trainer.current_epoch, batch_idx) == at:
            os.kill(os.getpid(), number)

    callbacks.StepSeed.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
    with open(log, "a", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        run_script(*arguments)


def stop(at: tuple[int, int], number: int, *arguments: str, log: Path) -> int:
    process = PROCESSES.Process(target=stopped, args=(at, number, arguments, log, dict(os.environ)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


THAWING = ["model.freeze=encoder", "model.unfreeze_epoch=1", "optim.layer_decay=0.5"]


@pytest.mark.parametrize(
    ("number", "at", "overrides"),
    [
        (signal.SIGTERM, (1, 1), []),
        pytest.param(signal.SIGINT, (0, 2), ["data.num_workers=2"], marks=pytest.mark.slow),
        # the last of its epoch
        pytest.param(
            signal.SIGTERM,
            (1, 3),
            ["optim.schedule=plateau", "optim.warmup=0", "patience=2"],
            marks=pytest.mark.slow,
        ),
        # the encoder is frozen for one epoch: inside it, at its end, and after it
        pytest.param(signal.SIGTERM, (0, 1), THAWING, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, (0, 3), THAWING, marks=NIGHTLY),
        pytest.param(signal.SIGTERM, (1, 1), THAWING, marks=NIGHTLY),
        # Two batches make a step; and the encoder drops paths at random.
        pytest.param(
            signal.SIGTERM,
            (1, 2),
            [
                "trainer.accumulate_grad_batches=2",
                "model.encoder=mit_b0",
                "model.arch=fpn",
                "model.decoder_channels=null",
            ],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_signal_saves_at_once_and_the_run_goes_on_from_there(
    number: int, at: tuple[int, int], overrides: list[str], tmp_path: Path
) -> None:
    command = (*SMALL, "trainer.max_epochs=3", *overrides)
    run, reference = tmp_path / "run", tmp_path / "reference"
    run_script(*command, f"hydra.run.dir={reference}")
    assert stop(at, number, *command, f"hydra.run.dir={run}", log=tmp_path / "output") == 128 + number
    output = (tmp_path / "output").read_text()
    assert f"Stopped in epoch {at[0] + 1} and saved. To continue: python train.py resume=" in output
    assert "Traceback" not in output
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    accumulated = 2 if "trainer.accumulate_grad_batches=2" in overrides else 1
    steps_taken = at[0] * 4 + -(-(at[1] + 1) // accumulated) * accumulated
    assert last["global_step"] * accumulated == steps_taken
    run_script(f"resume={run}")
    assert_same(run, reference)


@pytest.mark.slow
def test_an_early_stop_stays_one(tmp_path: Path) -> None:
    still = (
        "optim.encoder_lr=0",
        "optim.decoder_lr=1e-12",
        "optim.ema_decay=null",
        "patience=1",
        "trainer.max_epochs=9",
    )
    run = tmp_path / "run"
    run_script(*SMALL, *still, f"hydra.run.dir={run}")
    before = numbers(run)
    (run / "metrics.json").unlink()  # as if it had been killed during the test
    run_script(f"resume={run}")
    assert numbers(run) == before
    (run / "metrics.json").unlink()
    run_script(f"resume={run}", "patience=3")
    assert read(run)["epochs"] > before["epochs"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs, not to be changed."""
    return train_once(tmp_path_factory, "trainer.max_epochs=2")


@pytest.fixture
def unfinished(trained: Path, tmp_path: Path) -> Path:
    """A run of two epochs that was killed when it had trained them."""
    run = tmp_path / "outputs" / "runs" / "default" / "earlier"
    shutil.copytree(trained, run)
    (run / "metrics.json").rename(tmp_path / "metrics.json")
    return run


@pytest.mark.parametrize(
    "damage", ["cut", *(pytest.param(other, marks=pytest.mark.slow) for other in ("empty", "bits", "gone"))]
)
@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage: str, tmp_path: Path, capfd: Any) -> None:
    run, command = tmp_path / "run", (*SMALL, "trainer.max_epochs=3")
    assert stop((2, 1), signal.SIGTERM, *command, f"hydra.run.dir={run}", log=tmp_path / "output") == 143
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "gone":
        last.unlink()
    elif damage == "bits":
        for place in range(len(content) // 4, len(content) // 4 + 64):
            content[place] ^= 0xFF
        last.write_bytes(content)
    else:
        last.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    run_script(f"resume={run}")
    output = capfd.readouterr()
    assert ("last.ckpt is damaged" in output.out + output.err) == (damage != "gone")
    reference = tmp_path / "reference"
    run_script(*command, f"hydra.run.dir={reference}")
    assert_same(run, reference)


def test_when_both_checkpoints_are_damaged(unfinished: Path) -> None:
    for name in ("last", "previous"):
        (unfinished / "checkpoints" / f"{name}.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(
        SystemExit, match=r"last.ckpt is damaged .* and .*previous.ckpt is damaged .*: delete .*checkpoints"
    ):
        run_script(f"resume={unfinished}")


def test_a_checkpoint_of_the_first_version(unfinished: Path) -> None:
    last = unfinished / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["epoch_so_far"]
    torch.save(checkpoint, last)
    with pytest.raises(SystemExit, match=r"was written by polyp 0.1"):
        run_script(f"resume={unfinished}")


def best_of_two(unfinished: Path) -> int:
    return json.loads((unfinished.parents[3] / "metrics.json").read_text())["best"]["epoch"]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_best_checkpoint_is_made_anew(unfinished: Path, damage: str) -> None:
    """After the first epoch last.ckpt is a copy of it; after the second, the file before last."""
    best = unfinished / "checkpoints" / "best.ckpt"
    shutil.copyfile(best, unfinished / "best")
    if best_of_two(unfinished) == 0:  # finished runs have no previous.ckpt: as if it had been killed before
        best.with_name("previous.ckpt").write_bytes(best.read_bytes())
    best.write_bytes(b"no checkpoint") if damage == "cut" else best.unlink()
    run_script(f"resume={unfinished}")
    assert (
        numbers(unfinished)["test"]
        == json.loads((unfinished.parents[3] / "metrics.json").read_text())["test"]
    )
    assert_equal_weights(best, unfinished / "best")


def assert_equal_weights(one: Path, other: Path) -> None:
    ours, theirs = (torch.load(file, weights_only=True)["state_dict"] for file in (one, other))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.slow
def test_a_best_checkpoint_that_is_lost_is_noticed_before_training(unfinished: Path) -> None:
    checkpoints = unfinished / "checkpoints"
    last = torch.load(checkpoints / "last.ckpt", weights_only=True)
    for state in last["callbacks"].values():  # as if an earlier epoch had been the best
        state.update({"step": 1, "best_model_score": torch.tensor(0.99)} if "step" in state else {})
    torch.save(last, checkpoints / "last.ckpt")
    (checkpoints / "best.ckpt").write_bytes(b"no checkpoint")
    before = snapshot(unfinished)
    for arguments in ([], ["trainer.max_epochs=3"]):
        with pytest.raises(SystemExit, match=r"best\.ckpt is damaged"):
            run_script(f"resume={unfinished}", *arguments)
        assert snapshot(unfinished) == before
    (checkpoints / "best.ckpt").unlink()
    with pytest.raises(SystemExit, match=r"best\.ckpt is missing.*trainer\.max_epochs=MORE"):
        run_script(f"resume={unfinished}")
    run_script(f"resume={unfinished}", "trainer.max_epochs=3")
    assert read(unfinished)["best"]["epoch"] == 2
    assert read(unfinished)["best"]["value"] < 0.99


DAMAGES = {"empty": b"", "cut": None, "zeros": bytes(200), "another": b'{"test": {"dice": 0.5}}'}


@pytest.mark.parametrize(
    "damage", ["cut", "another", *(pytest.param(d, marks=pytest.mark.slow) for d in ("empty", "zeros"))]
)
def test_damaged_numbers_are_made_anew(unfinished: Path, damage: str) -> None:
    before = json.loads((unfinished.parents[3] / "metrics.json").read_text())
    content = DAMAGES[damage]
    (unfinished / "metrics.json").write_bytes(
        json.dumps(before).encode()[:90] if content is None else content
    )
    for events in unfinished.glob("events.*"):  # and the curves: they are not read
        events.write_bytes(events.read_bytes()[:-40] + bytes(40))
    with pytest.raises(files.DamagedError, match=r"metrics\.json"):
        RunFolder(unfinished).read_metrics()
    assert not RunFolder(unfinished).is_finished
    run_script(f"resume={unfinished}")
    assert numbers(unfinished)["test"] == before["test"]


@pytest.mark.parametrize("content", [b"", bytes(200), b"data: [", b"- 1", b"a: 1"])
def test_a_damaged_configuration_is_one_line(unfinished: Path, content: bytes, tmp_path: Path) -> None:
    (unfinished / "config.yaml").write_bytes(content)
    before = snapshot(unfinished)
    for arguments in ([f"resume={unfinished}"], [*SMALL, "resume=auto", f"hydra.run.dir={unfinished}"]):
        with pytest.raises(SystemExit, match=r"config\.yaml"):
            run_script(*arguments)
    assert snapshot(unfinished) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files of a run but its lock, which is empty."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_what_is_refused_changes_nothing(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    before = snapshot(run)
    more = "trainer.max_epochs=3"
    for arguments in (
        [],
        [more, "data.root=/dev/null/typo"],
        [more, "+trainer.max_epoch=3"],
        [more, "trainer.max_epochs=two"],
        [more, "patience=0"],
        [more, "model.arch=fpn"],
        [more, "optim.decoder_lr=1"],
        [more, "trainer.gradient_clip_val=0.1"],
        [more, "+note=1"],
        [more, "~patience"],
    ):
        with pytest.raises(SystemExit):
            run_script(f"resume={run}", *arguments)
        assert snapshot(run) == before, arguments
    for arguments in (
        [f"hydra.run.dir={run}"],
        [f"hydra.run.dir={run}", "resume=auto", "model.loss=dice"],
        [f"hydra.run.dir={run}", "resume=auto", more],
    ):
        with pytest.raises(SystemExit):
            run_script(*SMALL, *arguments)
        assert snapshot(run) == before, arguments


@pytest.mark.slow
def test_other_images_behind_the_same_names_are_refused(tmp_path: Path) -> None:
    for seed in (0, 1):
        Synthetic(str(tmp_path / "drawn"), 20, 48, seed).prepare()
    folders = sorted((tmp_path / "drawn").iterdir())
    folder = [word for word in SMALL if not word.startswith(("data=", "data.count", "data.size"))]
    run = tmp_path / "run"
    run_script("data=folder", f"data.root={folders[0]}", *folder, f"hydra.run.dir={run}")
    before = snapshot(run)
    with pytest.raises(SystemExit, match="fingerprint"):
        run_script(f"resume={run}", "trainer.max_epochs=2", f"data.root={folders[1]}")
    assert snapshot(run) == before
    moved = folders[0].rename(tmp_path / "moved")
    run_script(f"resume={run}", "trainer.max_epochs=2", f"data.root={moved}")
    assert RunFolder(run).read_config()["data"]["root"] == str(moved)


@pytest.mark.parametrize(
    "override",
    [
        *(
            "trainer.precision=bf16-mixed",
            "trainer.gradient_clip_val=0.1",
            "trainer.max_epochs=3",
            "patience=3",
        ),
        *(
            "+trainer.limit_train_batches=2",
            "data.image_size=96",
            "augment=none",
            "optim.warmup=0.1",
            "monitor=val/iou",
        ),
    ],
)
def test_auto_continues_only_the_same_experiment(override: str, unfinished: Path) -> None:
    before = snapshot(unfinished)
    command = (*SMALL, "trainer.max_epochs=2", "trainer.precision=32-true", "resume=auto")
    with pytest.raises(SystemExit, match=override.lstrip("+").partition("=")[0].partition(".")[0]):
        run_script(*command, override, f"hydra.run.dir={unfinished}")
    assert snapshot(unfinished) == before


def test_what_cannot_change_a_result_may_differ(unfinished: Path, tmp_path: Path) -> None:
    neutral = [
        "data.num_workers=1",
        f"data.cache={tmp_path / 'pixels'}",
        "trainer.log_every_n_steps=1",
        "name=other",
    ]
    run_script(*SMALL, "trainer.max_epochs=2", *neutral, "resume=auto", f"hydra.run.dir={unfinished}")
    assert numbers(unfinished)["test"] == json.loads((tmp_path / "metrics.json").read_text())["test"]


@pytest.mark.slow
def test_the_configuration_says_what_was_changed_and_when(unfinished: Path, capsys: Any) -> None:
    run_script(f"resume={unfinished}", "trainer.max_epochs=3", "patience=5")
    run_script(f"resume={unfinished}", "trainer.max_epochs=4", "patience=5")
    config = RunFolder(unfinished).read_config()
    assert (config["trainer"]["max_epochs"], config["patience"]) == (4, 5)
    changes = [(change["key"], change["before"], change["now"]) for change in config["changes"]]
    assert changes == [("trainer.max_epochs", 2, 3), ("patience", None, 5), ("trainer.max_epochs", 3, 4)]
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00", change["when"]) for change in config["changes"]
    )
    command = (*SMALL, "trainer.max_epochs=4", "patience=5", "resume=auto", f"hydra.run.dir={unfinished}")
    run_script(*command)  # the same experiment as one that had these values from its start
    for arguments in (["evaluate"], ["compare", "--card"]):
        cli.main([*arguments, str(unfinished)])
    with pytest.raises(SystemExit, match=r"trainer\.max_epochs=4, now 2"):
        run_script(*SMALL, "trainer.max_epochs=2", "resume=auto", f"hydra.run.dir={unfinished}")


def test_nothing_of_a_stored_configuration_is_resolved(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("SECRET", "s3cr3t")
    config = unfinished / "config.yaml"
    config.write_text(
        config.read_text()
        .replace("name: default", "name: ${oc.env:SECRET}")
        .replace("cache: true", "cache: ${oc.env:SECRET}")
    )
    monkeypatch.chdir(unfinished.parent)  # where the cache's folder of this name would be made
    run_script(f"resume={unfinished}", "trainer.max_epochs=3")
    output = capfd.readouterr()
    assert "s3cr3t" not in output.out + output.err
    assert all(
        b"s3cr3t" not in content and "s3cr3t" not in name for name, content in snapshot(unfinished).items()
    )
    assert RunFolder(unfinished).read_config()["name"] == "${oc.env:SECRET}"


class Evil:
    """Writes a file when it is loaded with a plain pickle."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def test_a_checkpoint_that_holds_code_is_refused(unfinished: Path, tmp_path: Path) -> None:
    last = unfinished / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    torch.save(checkpoint | {"extra": Evil(tmp_path / "ran")}, last)
    with pytest.raises(SystemExit, match=r"last.ckpt holds code \(.*system\).*refused"):
        run_script(f"resume={unfinished}")
    assert not (tmp_path / "ran").exists()


def test_a_moved_run_keeps_its_best_score(unfinished: Path, tmp_path: Path) -> None:
    shutil.move(unfinished, tmp_path / "elsewhere")
    run_script(f"resume={tmp_path / 'elsewhere'}")
    assert read(tmp_path / "elsewhere")["best"] == json.loads((tmp_path / "metrics.json").read_text())["best"]


@pytest.mark.slow
def test_more_epochs_say_what_they_do_to_the_schedule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_script(*SMALL, "trainer.max_epochs=2", f"hydra.run.dir={run}")
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(SystemExit, match=r"is finished.*trainer.max_epochs=MORE"):
        run_script(f"resume={run}")
    with pytest.raises(SystemExit, match=r"trainer\.max_epoch\b"):
        run_script(f"resume={run}", "trainer.max_epochs=4", "+trainer.max_epoch=4")
    assert (run / "metrics.json").read_bytes() == before  # what is refused changes nothing
    capsys.readouterr()
    run_script(f"resume={run}", "trainer.max_epochs=4")
    output = " ".join(capsys.readouterr().out.split())
    assert "continues after epoch 2 of 4" in output
    assert re.search(
        r"stretches the cosine schedule: the learning rates continue at 5\d% of their peak instead of 0%",
        output,
    )
    assert read(run)["epochs"] == 4
    assert (run / "metrics_after_2_epochs.json").read_bytes() == before


@pytest.mark.slow
def test_auto_finishes_what_is_unfinished_and_starts_anew_otherwise(
    unfinished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = (*SMALL, "trainer.max_epochs=2", "resume=auto")
    other = unfinished.parent
    run_script(*command, "seed=1")  # another run, which says nothing of this one
    assert not (unfinished / "metrics.json").exists()
    assert len(list(other.iterdir())) == 2
    run_script(*command)
    assert numbers(unfinished)["test"] == json.loads((tmp_path / "metrics.json").read_text())["test"]
    assert len(list(other.iterdir())) == 2
    run_script(*command)
    assert len(list(other.iterdir())) == 3


def test_auto_in_a_given_folder(unfinished: Path, capfd: Any) -> None:
    command = (*SMALL, "trainer.max_epochs=2", "resume=auto", f"hydra.run.dir={unfinished}")
    with pytest.raises(
        SystemExit, match=r"was started with model.loss=structure, now dice: give the original command"
    ):
        run_script(*command, "model.loss=dice")
    run_script(*command)
    before = (unfinished / "metrics.json").stat().st_mtime_ns
    capfd.readouterr()
    run_script(*command)
    assert "is finished: test Dice" in capfd.readouterr().out
    assert (unfinished / "metrics.json").stat().st_mtime_ns == before


def test_a_folder_of_a_newer_version(unfinished: Path) -> None:
    config = unfinished / "config.yaml"
    config.write_text(re.sub("^polyp: .*", "polyp: 99.0.0", config.read_text()))
    for arguments in ([f"resume={unfinished}"], [*SMALL, "resume=auto", f"hydra.run.dir={unfinished}"]):
        with pytest.raises(
            SystemExit, match=r"was made by polyp 99.0.0, newer than this .*: update polyp first"
        ):
            run_script(*arguments)


def test_a_run_that_another_process_is_at(unfinished: Path) -> None:
    with FileLock(unfinished / ".lock"), pytest.raises(SystemExit, match="another process runs a run in"):
        run_script(f"resume={unfinished}")


def limited(arguments: tuple[str, ...], log: Path, environment: Mapping[str, str]) -> None:
    """A run on a disk that takes no file of more than 4 MB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))
    stopped((-1, -1), 0, arguments, log, environment)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    run, reference, output = tmp_path / "run", tmp_path / "reference", tmp_path / "output"
    command = (*SMALL, "trainer.max_epochs=2")
    run_script(*command, f"hydra.run.dir={reference}")
    assert stop((1, 1), signal.SIGTERM, *command, f"hydra.run.dir={run}", log=output) == 143
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    process = PROCESSES.Process(target=limited, args=((f"resume={run}",), output, dict(os.environ)))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert re.search(
        rf"cannot write {run}/checkpoints/\w+.ckpt \(.+\): free some space, then continue with resume=",
        output.read_text(),
    )
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    run_script(f"resume={run}")
    assert_same(run, reference)


@pytest.mark.slow
def test_a_resumed_run_that_gets_better_keeps_its_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("experiment=quickstart", "data.count=20", "data.size=48", "trainer.max_epochs=1")
    run_script(*small, f"hydra.run.dir={tmp_path}/run")
    monkeypatch.chdir(tmp_path)  # the folder is given as people give it: relative
    before = read(Path("run"))["best"]["value"]
    run_script("resume=run", "trainer.max_epochs=8")
    best = read(Path("run"))["best"]
    assert best["value"] > before and best["epoch"] > 0 and Path("run/checkpoints/best.ckpt").is_file()
