"""`polyp predict`: masks are what the network says, tables are whole, and nothing is lost or overwritten."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from run_writers import write_model_run
from test_image import encoded, mutated

import polyp
from polyp.cli import main
from polyp.data.sources import Synthetic
from polyp.errors import InputError
from polyp.images import read_image
from polyp.inference import polyps
from polyp.inference.predictor import Predictor, load_predictor
from polyp.report.pictures import overlay

Array = np.ndarray


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs and drawn images."""
    folder = tmp_path_factory.mktemp("runs")
    write_model_run(folder / "first")
    write_model_run(folder / "second", seed=1)
    Synthetic(root=str(folder / "drawn"), count=20, size=48).prepare()
    return folder


@pytest.fixture
def workspace(tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the test stands: a folder of its own with the runs `first` and `second` and drawn `images`."""
    for run in ("first", "second"):
        shutil.copytree(runs / run, tmp_path / run)
    images = next((runs / "drawn").rglob("images"))
    shutil.copytree(images, tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the network was shown at once, each time."""
    counts: list[int] = []
    predict_all = Predictor.predict_all

    def counted(self: Predictor, images: Sequence[Array]) -> list[Array]:
        counts.append(len(images))
        return predict_all(self, images)

    monkeypatch.setattr(Predictor, "predict_all", counted)
    return counts


def predict(*arguments: str) -> None:
    main(["predict", *arguments, "--device", "cpu"])


def error_of(*arguments: str) -> str:
    """The line that the command leaves with."""
    with pytest.raises(SystemExit) as error:
        predict(*arguments)
    text = str(error.value.code)
    assert text.startswith("polyp: ")
    return text.removeprefix("polyp: ")


def probability(images: Sequence[Path], *models: str, flips: bool = False) -> list[Array]:
    """What the runs say of each image by itself."""
    predictor = load_predictor(models, flips=flips)
    return [predictor.predict(read_image(path)) for path in images]


def grey(path: Path) -> Array:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def read_json(folder: str | Path) -> dict[str, Any]:
    return json.loads((Path(folder) / "predictions.json").read_text())


def rows(folder: str | Path) -> list[dict[str, str]]:
    with (Path(folder) / "polyps.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder: str | Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()} - {
        ".lock"
    }


def contents(folder: str | Path) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in files(folder)}


# ---- what is found


def test_predict_writes_what_the_network_says(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict("first", "images", "--probabilities")
    out = Path("first/predictions/images")
    images = sorted(Path("images").iterdir())
    mixed = 0
    for path, expected in zip(images, probability(images, "first"), strict=True):
        mask = grey(out / "masks" / f"{path.stem}.png")
        assert mask.dtype == np.uint8 and np.array_equal(mask, np.where(expected >= 0.5, 255, 0))
        mixed += {0, 255} == set(np.unique(mask))
        stored = grey(out / "probabilities" / f"{path.stem}.png")
        assert stored.dtype == np.uint16 and np.abs(stored / 65535 - expected).max() <= 0.5 / 65535 + 1e-6
        assert cv2.imread(str(out / "overlays" / f"{path.stem}.jpg")).shape == (*mask.shape, 3)
    assert mixed > 10
    content = read_json(out)
    assert [record["image"] for record in content["images"]] == [path.name for path in images]
    assert (content["threshold"], content["runs"], content["tta"]) == (0.5, ["first"], False)
    with_polyps = sum(bool(record["polyps"]) for record in content["images"])
    message = capsys.readouterr().out
    assert re.fullmatch(
        rf"20 images, {with_polyps} with polyps, \d+\.\d images/s, in first/predictions/images\n\n"
        r"  page  first/predictions/images/index.html\n",
        message,
    )


def test_polyps_csv_matches_a_calculation_by_hand(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.full((40, 50), 0.1, np.float32)
    array[5:15, 10:30] = 0.8  # 10 x 20
    array[5:15, 10] = 0.6
    array[30:34, 40:44] = 0.5  # 4 x 4, just so
    array[20, 20] = 0.9  # a pixel is no speck in an image of 2000
    monkeypatch.setattr(Predictor, "predict_all", lambda self, images: [array for _ in images])
    cv2.imwrite("one.png", np.zeros((40, 50, 3), np.uint8))
    predict("first", "one.png", "--out", "out")
    assert (workspace / "out/polyps.csv").read_text().splitlines() == [
        "image,polyp,left,top,width,height,pixels,share,probability,x,y",
        "one.png,1,10,5,20,10,200,0.100000,0.7900,19.5,9.5",
        "one.png,2,40,30,4,4,16,0.008000,0.5000,41.5,31.5",
        "one.png,3,20,20,1,1,1,0.000500,0.9000,20.0,20.0",
    ]
    record = read_json("out")["images"][0]
    assert (record["width"], record["height"]) == (50, 40)
    assert [polyp["pixels"] for polyp in record["polyps"]] == [200, 16, 1]


def test_the_page_shows_the_least_certain_images_first(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certain, doubtful, empty = (np.full((60, 80), 0.2, np.float32) for _ in range(3))
    certain[10:30, 10:30], doubtful[10:30, 10:30], doubtful[40:50, 50:70] = 0.98, 0.9, 0.55
    arrays = {10: certain, 20: doubtful, 30: empty}
    monkeypatch.setattr(Predictor, "predict_all", lambda self, images: [arrays[i[0, 0, 0]] for i in images])
    Path("in").mkdir()
    for shade, name in ((10, "a"), (20, "b"), (30, "<c>")):
        cv2.imwrite(f"in/{name}.png", np.full((60, 80, 3), shade, np.uint8))
    predict("first", "in", "--out", "out")
    uncertainty = {image["image"]: image["uncertainty"] for image in read_json("out")["images"]}
    assert uncertainty == {
        "a.png": pytest.approx(0.02),
        "b.png": pytest.approx(0.45),
        "<c>.png": pytest.approx(0.2),
    }
    page = (workspace / "out/index.html").read_text()
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == [
        "b.png: 2 polyps, uncertainty 0.45",
        "&lt;c&gt;.png: no polyps, uncertainty 0.20",
        "a.png: 1 polyp, uncertainty 0.02",
    ]


def test_overlay_has_the_number_and_probability_of_each_polyp() -> None:
    probability = np.full((120, 160), 0.1, np.float32)
    probability[60:100, 10:60], probability[30:50, 110:150] = 0.9, 0.6
    prediction, image = polyps.Prediction(probability, 0.5), np.full((120, 160, 3), 200, np.uint8)
    assert prediction.labels == [(10, 60, "1: 0.90"), (110, 30, "2: 0.60")]
    unlabelled, labelled = (
        overlay(image, prediction.mask, labels=labels) for labels in ((), prediction.labels)
    )
    rows, columns = np.nonzero((unlabelled != labelled).any(-1))
    assert {*zip(rows < 40, columns > 100, strict=True)} == {(True, True), (False, False)}
    assert rows.max() <= 60 and columns.min() >= 10  # above the boxes


def test_a_single_file_has_a_folder_of_its_name(workspace: Path) -> None:
    predict("first", "images/synthetic_0000.jpg", "--probabilities")
    assert files("first/predictions/synthetic_0000") == {
        *(f"synthetic_0000_{kind}" for kind in ("mask.png", "overlay.jpg", "probabilities.png")),
        *("polyps.csv", "predictions.json", "index.html"),
    }
    predict("first", "images", "--out", "first/predictions/synthetic_0000", "--probabilities")
    assert len(files("first/predictions/synthetic_0000/masks")) == 19  # one is done


def test_outputs_of_single_files_in_one_folder_do_not_overwrite_each_other(workspace: Path) -> None:
    for name in ("scan.jpg", "scan_mask.jpg", "scan_overlay.avi", "polyps.avi"):
        shutil.copy("images/synthetic_0000.jpg", name)
    for name in ("scan_overlay.avi", "polyps.avi"):
        writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*"MJPG"), 5, (48, 48))
        writer.write(np.zeros((48, 48, 3), np.uint8))
        writer.release()
    for name in ("scan.jpg", "scan_mask.jpg", "polyps.avi"):
        predict("first", name, "--out", "out")
    before = contents("out")
    assert {"scan_mask.png", "scan_mask_mask.png", "polyps_frames.csv", "polyps.csv"} <= before.keys()
    assert "predictions named scan_overlay are there" in error_of("first", "scan_overlay.avi", "--out", "out")
    assert contents("out") == before


def test_find_leaves_out_specks() -> None:
    array = np.zeros((200, 200), np.float32)
    array[0, 0:3] = array[100, 100:104] = 0.9  # 3 pixels of 40,000 are less than a ten-thousandth, 4 are not
    assert [(polyp.left, polyp.pixels) for polyp in polyps.find_polyps(array, 0.5)] == [(100, 4)]
    assert polyps.find_polyps(array, 0.95) == []


def test_predict_averages_several_runs(workspace: Path) -> None:
    predict("first", "images", "--with", "second", "--probabilities", "--no-overlays")
    out = workspace / "first/predictions/images_ensemble-of-2"
    images = sorted(Path("images").iterdir())
    for path, one, other in zip(
        images, probability(images, "first"), probability(images, "second"), strict=True
    ):
        stored = grey(out / "probabilities" / f"{path.stem}.png") / 65535
        assert np.abs(stored - (one + other) / 2).max() < 1e-4
        assert np.abs(one - other).max() > 0.05
    assert read_json(out)["runs"] == ["first", "second"] and not (out / "overlays").exists()


def test_predict_takes_flips_and_threshold(workspace: Path) -> None:
    predict("first", "images", "--tta", "--threshold", "0.3")
    images = sorted(Path("images").iterdir())
    for path, expected in zip(images, probability(images, "first", flips=True), strict=True):
        mask = grey(workspace / f"first/predictions/images_tta_threshold-0.3/masks/{path.stem}.png")
        assert np.array_equal(mask, np.where(expected >= 0.3, 255, 0))


def test_mask_has_the_size_of_the_upright_image(workspace: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Path("phone.jpg").write_bytes(encoded(np.zeros((30, 50, 3), np.uint8), "JPEG", exif=exif.tobytes()))
    predict("first", "phone.jpg", "--out", "out")
    assert grey(workspace / "out/phone_mask.png").shape == (50, 30)


def test_predict_takes_the_threshold_of_the_run(workspace: Path) -> None:
    checkpoint = workspace / "first/checkpoints/best.ckpt"
    content = torch.load(checkpoint)
    content["hyper_parameters"]["threshold"] = 0.3
    torch.save(content, checkpoint)
    predict("first", "images", "--out", "out")
    assert read_json("out")["threshold"] == 0.3


# ---- names


def test_predict_keeps_the_structure_of_folders(workspace: Path) -> None:
    image = next(Path("images").iterdir())
    for name in ("in/a/1.jpg", "in/b/1.jpg", "in/1.jpg", "in/.hidden.jpg", "in/.git/1.jpg", "in/notes.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, name)
    (workspace / "in/loop").symlink_to(workspace / "in")
    (workspace / "in/linked.jpg").symlink_to(image.absolute())
    predict("first", "in", "--out", "out", "--no-overlays")
    masks = {"masks/a/1.png", "masks/b/1.png", "masks/1.png", "masks/linked.png"}
    assert files("out") == masks | {"polyps.csv", "predictions.json", "index.html"}


def test_names_are_distinct_and_predictable(workspace: Path) -> None:
    Path("in").mkdir()
    for number, name in enumerate(("1.png", "1.bmp", "A.png", "a.png", "b.jpg")):
        cv2.imwrite(f"in/{name}", np.zeros((20 + number, 30, 3), np.uint8))
    Path("in/b.png").mkdir()
    cv2.imwrite("in/b.png/c.png", np.zeros((50, 30, 3), np.uint8))
    predict("first", "in", "--out", "out", "--no-overlays")
    masks = {record["image"]: record["files"][0] for record in read_json("out")["images"]}
    assert len({name.casefold() for name in masks.values()}) == len(masks) == 6
    for name, mask in masks.items():
        assert grey(workspace / "out" / mask).shape == cv2.imread(f"in/{name}").shape[:2]
    assert set(masks.values()) >= {
        "masks/1.png.png",
        "masks/1.bmp.png",
        "masks/b.jpg.png",
        "masks/b.png/c.png",
    }
    before = contents("out")
    predict("first", "in", "--out", "out", "--no-overlays")
    assert contents("out") == before
    Path("in/1.bmp").unlink()
    cv2.imwrite("in/a.jpg", np.zeros((99, 30, 3), np.uint8))
    predict("first", "in/1.png", "in/a.jpg", "--out", "out", "--no-overlays")
    images = {record["image"]: record["files"] for record in read_json("out")["images"]}
    assert images["1.png"] == ["masks/1.png"] and len(images) == 7
    assert files("out/masks") == {file.removeprefix("masks/") for [file] in images.values()}


HOSTILE = [
    b"two\nlines.png", b"-rf.png", b"a..png", b"'quotes\".png", b"=cmd()|' '!A0.png", b"+1.png", b"@sum.png",
    "Größe ☃.png".encode(), b"%s%d%n.png", b"\\..\\x.png",
    b"a,b;c.png", b"\xff\xfe.png", b"x" * 251 + b".png",
    b" .png", b"$(touch owned).png", b"\x1b[31mred.png",
]  # fmt: skip


def test_predict_accepts_hostile_names(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    for name in HOSTILE:
        (workspace / "in" / os.fsdecode(name)).write_bytes(encoded(np.zeros((20, 30, 3), np.uint8)))
    before = sorted(os.listdir("."))
    predict("first", "in", "--out", "out", "--no-overlays", "--threshold", "0.01")
    predict("first", "in", "--out", "out", "--no-overlays", "--threshold", "0.01")
    assert "16 with polyps, all done before" in capsys.readouterr().out
    records = read_json("out")["images"]
    assert {os.fsencode(record["image"]) for record in records} == set(HOSTILE)
    assert len(os.listdir("out/masks")) == 16
    assert sorted(os.listdir(".")) == sorted([*before, "out"])
    cells = {row["image"] for row in rows("out")}
    assert len(cells) == 16 and {"'=cmd()|' '!A0.png", "'-rf.png", "two\nlines.png"} <= cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


def test_predict_refuses_other_images_of_the_same_names(workspace: Path) -> None:
    shutil.copytree("images", "others")
    predict("first", "images", "--out", "out")
    before = contents("out")
    message = error_of("first", "others", "--out", "out")
    assert re.search(
        r"others/\S+: predictions named \S+ are there, of \S+images/\S+: give another --out", message
    )
    assert contents("out") == before
    predict("first", "images", "others", "--out", "both", "--no-overlays")  # together they have a folder each
    assert len(files("both/masks/images")) == len(files("both/masks/others")) == 20


# ---- again


def test_predict_skips_what_is_finished(
    workspace: Path, batches: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    predict("first", "images", "--out", "out")
    before = contents("out")
    assert sum(batches) == 20 and max(batches) == 8
    predict("first", "images", "--out", "out")
    assert sum(batches) == 20 and contents("out") == before
    assert "20 images, 2" in (message := capsys.readouterr().out) and "all done before, in out" in message
    deleted, changed = sorted(Path("images").iterdir())[:2]
    (workspace / "out/masks" / f"{deleted.stem}.png").unlink()
    cv2.imwrite(str(changed), np.zeros((33, 44, 3), np.uint8))
    predict("first", "images", "--out", "out")
    assert sum(batches) == 22 and grey(workspace / "out/masks" / f"{changed.stem}.png").shape == (33, 44)
    assert "18 done before" in capsys.readouterr().out
    predict("first", "images", "--out", "out", "--probabilities")
    assert sum(batches) == 42
    predict("first", "images", "--out", "out", "--overwrite")
    assert sum(batches) == 62


def test_predict_continues_after_ctrl_c(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, batches: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    predict("first", "images", "--out", "whole")
    counted = Predictor.predict_all

    def interrupted(self: Predictor, images: Sequence[Array]) -> list[Array]:
        if len(batches) == 5:
            raise KeyboardInterrupt
        return counted(self, images)

    monkeypatch.setattr(Predictor, "predict_all", interrupted)
    with pytest.raises(SystemExit) as error:
        predict("first", "images", "--out", "out")
    assert error.value.code == 130
    names = [record["image"] for record in read_json("out")["images"]]
    assert 0 < len(names) < 20 and not [name for name in files("out") if "part" in name]
    assert {row["image"] for row in rows("out")} <= set(names)
    batches.clear()
    monkeypatch.setattr(Predictor, "predict_all", counted)
    predict("first", "images", "--out", "out")
    assert sum(batches) == 20 - len(names)
    assert [record["image"] for record in read_json("out")["images"]] == [
        record["image"] for record in read_json("whole")["images"]
    ]
    assert rows("out") == rows("whole")
    assert contents("out/masks") == contents("whole/masks")


@pytest.mark.slow
def test_predict_continues_after_a_kill(workspace: Path, batches: list[int]) -> None:
    for number in range(600):
        shutil.copy("images/synthetic_0000.jpg", f"images/{number}.jpg")
    command = [
        sys.executable,
        "-m",
        "polyp.cli",
        "predict",
        "first",
        "images",
        "--out",
        "out",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command)
    while not Path("out/predictions.json").is_file() or not read_json("out")["images"]:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    count = len(read_json("out")["images"])
    predict("first", "images", "--out", "out")
    assert sum(batches) == 620 - count and len(read_json("out")["images"]) == 620
    predict("first", "images", "--out", "whole")
    assert contents("out/masks") == contents("whole/masks") and rows("out") == rows("whole")
    assert read_json("out") == json.loads(json.dumps(read_json("whole")).replace("whole/", "out/"))


def test_full_disk_leaves_no_incomplete_files(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if "polyps.csv" not in self.name:
            return write_bytes(self, content)
        write_bytes(self, content[:10])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left on device" in error_of("first", "images", "--out", "out")
    assert not [name for name in files("out") if "part" in name]
    monkeypatch.undo()
    monkeypatch.chdir(workspace)
    predict("first", "images", "--out", "out")
    assert len(read_json("out")["images"]) == 20


def test_predict_refuses_to_mix_settings(workspace: Path) -> None:
    predict("first", "images", "--out", "out")
    before = contents("out")
    for arguments, reason in (
        (("second", "images"), "other models"),
        (("first", "images", "--with", "second"), "other models"),
        (("first", "images", "--threshold", "0.4"), "threshold 0.5, and not 0.4"),
        (("first", "images", "--tta"), "tta False, and not True"),
    ):
        assert error_of(*arguments, "--out", "out") == (
            f"out holds predictions made with {reason}: give another --out, or --overwrite to replace them"
        )
        assert contents("out") == before
    predict("second", "images/synthetic_0000.jpg", "--out", "out", "--overwrite")
    assert files("out") == {
        *("synthetic_0000_mask.png", "synthetic_0000_overlay.jpg"),
        *("polyps.csv", "predictions.json", "index.html"),
    }
    assert len(read_json("out")["images"]) == 1


def test_predict_refuses_to_overwrite_other_files(workspace: Path) -> None:
    Path("mine/masks").mkdir(parents=True)
    Path("mine/masks/synthetic_0000.png").write_text("truth")
    for arguments in ((), ("--overwrite",)):
        assert "mine holds masks, and no predictions: give another --out" in error_of(
            "first", "images", "--out", "mine", *arguments
        )
    assert files("mine") == {"masks/synthetic_0000.png"}
    assert "is in images, a folder of images" in error_of("first", "images", "--out", "images/out")
    predict("first", "images", "--out", "out")
    assert "where predictions are written" in error_of("first", "out/masks", "--out", "out")
    content = read_json("out")
    content["images"][0]["files"].append("masks/../../first/config.yaml")
    for damaged in ("{", json.dumps(content)):  # what the second one names would be deleted
        Path("out/predictions.json").write_text(damaged)
        assert "is damaged: give another --out" in error_of("second", "images", "--out", "out", "--overwrite")
    assert Path("first/config.yaml").is_file()


# ---- from Python


def test_model_predicts_paths_arrays_and_lists(workspace: Path) -> None:
    paths = sorted(Path("images").iterdir())
    expected = probability(paths, "first")
    for models, threshold, arrays in (
        (["first"], 0.5, expected),
        ([Path("first/checkpoints/best.ckpt")], 0.5, expected),
        (
            ["first", "second"],
            0.3,
            [(a + b) / 2 for a, b in zip(expected, probability(paths, "second"), strict=True)],
        ),
    ):
        loaded = polyp.load(models, device="cpu")
        images = [str(paths[0]), *paths[1:-1], read_image(paths[-1])]
        predictions = loaded.predict(images, threshold)
        for prediction, array in zip(predictions, arrays, strict=True):
            assert (
                prediction.probability.dtype == np.float32
                and np.abs(prediction.probability - array).max() < 1e-6
            )
            assert np.array_equal(prediction.mask, prediction.probability >= threshold)
            assert prediction.polyps == polyps.find_polyps(prediction.probability, threshold)
        assert np.array_equal(loaded.predict(paths[3]).probability, predictions[3].probability)
    assert np.array_equal(
        predictions[0].probability, polyp.load(["first", "second"]).predict(paths[0]).probability
    )


def test_model_refuses_other_arrays_and_files(workspace: Path) -> None:
    loaded = polyp.load("first", device="cpu")
    for image in (
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 3)),
        np.zeros((0, 9, 3), np.uint8),
        "first/config.yaml",
    ):
        with pytest.raises(InputError):
            loaded.predict([image])


# ---- bad input


def test_predict_lists_unreadable_images_at_the_end(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images/text.jpg").write_text("no image")
    Path("images/cut.png").write_bytes(Path("images/synthetic_0000.jpg").read_bytes()[:500])
    os.mkfifo("images/pipe.jpg")
    Path("images/gone.jpg").symlink_to("nowhere")
    message = error_of("first", "images", "--out", "out").split("\n")
    assert message[0] == "4 problems with 22 inputs; the others are done" and len(message) == 5
    patterns = [
        "cut.png: not a readable",
        "gone.jpg: a broken",
        "pipe.jpg: a broken",
        "text.jpg: not a readable",
    ]
    for line, pattern in zip(sorted(message[1:]), patterns, strict=True):
        assert re.search(pattern, line)
    assert len(read_json("out")["images"]) == 20 and "20 images, " in capsys.readouterr().out


def test_predict_leaves_no_folder_where_nothing_can_be_read(workspace: Path) -> None:
    Path("text.jpg").write_text("no image")
    assert "text.jpg: not a readable" in error_of("first", "text.jpg", "--out", "out")
    assert not Path("out").exists()


def test_mask_of_a_damaged_image_is_removed(workspace: Path) -> None:
    predict("first", "images", "--out", "out")
    Path("images/synthetic_0000.jpg").write_text("no image")
    assert "not a readable image" in error_of("first", "images", "--out", "out")
    assert len(read_json("out")["images"]) == 19
    assert len(os.listdir("out/masks")) == len(os.listdir("out/overlays")) == 19


def test_predict_names_an_unreadable_folder(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("images", "images/closed")
    scandir = os.scandir

    def refused(path: Any) -> Any:  # the tests may run as root, who may read everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    message = error_of("first", "images", "--out", "out")
    assert message.endswith("images/closed: the folder cannot be read (Permission denied)")
    assert len(read_json("out")["images"]) == 20


def test_predict_refuses_bad_input_before_predicting(workspace: Path, batches: list[int]) -> None:
    Path("empty").mkdir()
    Path("text.jpg").write_text("no image")
    Path("text").write_text("no image")
    os.mkfifo("pipe.jpg")
    for arguments, pattern in (
        (("first", "none.jpg"), "none.jpg is not there"),
        (("first", "empty"), "empty: no images or videos there"),
        (("first", "text.jpg"), "text.jpg: not a readable image"),
        (("first", "text"), "text: not a readable image"),
        (("first", "pipe.jpg"), "pipe.jpg is not a file"),
        (("none", "images"), "none is not there: give a run's folder or a checkpoint"),
        (("images", "images"), "not the folder of a run"),
        (("first", "images", "--threshold", "1.5"), "--threshold 1.5 must lie between 0 and 1"),
        (("first", "images", "--out", "text.jpg"), "cannot write to text.jpg"),
    ):
        assert re.search(pattern, message := error_of(*arguments)) and "\n" not in message, arguments
    shutil.rmtree("second/checkpoints")
    assert "second has no checkpoints/best.ckpt" in error_of("second", "images")
    assert batches == []


def test_predict_takes_files_without_an_ending(workspace: Path) -> None:
    shutil.copy("images/synthetic_0000.jpg", "scan")
    predict("first", "scan", "--out", "out")
    assert (workspace / "out/scan_mask.png").is_file()


def test_predict_refuses_nan(workspace: Path) -> None:
    checkpoint = workspace / "first/checkpoints/best.ckpt"
    content = torch.load(checkpoint)
    for value in content["state_dict"].values():
        if value.is_floating_point():
            value.fill_(torch.nan)
    torch.save(content, checkpoint)
    assert "nan" in error_of("first", "images", "--out", "out")


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.slow
def test_mutated_images_get_a_mask_or_a_line(workspace: Path) -> None:

    Path("in").mkdir()
    expected = {}
    for number, content in enumerate(mutated()):
        path = Path(f"in/{number}.png")
        path.write_bytes(content)
        with suppress(InputError):
            expected[path.stem] = read_image(path).shape[:2]
    message = error_of("first", "in", "--out", "out", "--no-overlays")
    assert message.startswith(f"{500 - len(expected)} problems with 500 inputs; the others are done")
    assert {path.stem: grey(path).shape for path in Path("out/masks").iterdir()} == expected
