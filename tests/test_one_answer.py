"""One run, one device, one answer: test, evaluate, predict and app give the same bits, whatever else they
see.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, run_script

from polyp.cli import main
from polyp.commands.app.inference_queue import InferenceQueue, InputImage
from polyp.data.pairs import read_image
from polyp.inference.predictor import Predictor, load_predictor
from polyp.model.segmenter import PolypSegmenter
from polyp.runs.data import load_run_data
from polyp.runs.folder import RunFolder

PRECISIONS = ("32-true", "bf16-mixed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        for precision in PRECISIONS:
            run_script(
                *SMALL,
                "data.count=40",
                f"trainer.precision={precision}",
                f"hydra.run.dir={folder / precision}",
            )
    return {precision: folder / precision for precision in PRECISIONS}


def test_images(run: Path) -> list[Path]:
    return [pair.image for pair in load_run_data(run, RunFolder(run).read_config()).get_pairs("test")]


test_images.__test__ = False  # type: ignore[attr-defined]


def rows(file: Path) -> list[dict[str, str]]:
    names = ("stem", "tp", "fp", "fn", "dice", "iou", "mae")
    with file.open(newline="") as stream:
        return [{name: row[name] for name in names} for row in csv.DictReader(stream)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_command_gives_the_bits_of_the_test(
    runs: dict[str, Path], precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs[precision]
    images = test_images(run)
    predictor = load_predictor([str(run)])
    expected = [predictor.predict(read_image(path)) for path in images]
    assert predictor.backend == f"exact, {precision}, {predictor.device}" and predictor.is_exact
    assert np.concatenate([p.ravel() for p in expected]).std() > 1e-3, "constant answers prove nothing"

    main(["evaluate", str(run), "--name", "again", "--overwrite"])
    evaluated = rows(run / "evaluations" / "again" / "per_image.csv")
    for tested, again in zip(rows(run / "per_image.csv"), evaluated, strict=True):
        assert tested.pop("mae")[:7] == again.pop("mae")[:7]  # summed in another order of the same pixels
        assert tested == again

    main(["predict", str(run), *map(str, images), "--out", str(tmp_path / "out"), "--probabilities"])
    for path, probability in zip(images, expected, strict=True):
        written = cv2.imread(
            str(tmp_path / "out" / "probabilities" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED
        )
        assert np.array_equal(written, np.rint(probability * 65535).astype(np.uint16))

    queue = InferenceQueue({"it": str(run)})
    for path, probability in zip(images, expected, strict=True):
        load = partial(InputImage, "key", read_image(path))
        assert np.array_equal(queue.submit(partial(queue.predict, load)).result().probability, probability)
    queue.close()

    shutil.copy(RunFolder(run).best_checkpoint, tmp_path / "copied.ckpt")
    copied = load_predictor([str(tmp_path / "copied.ckpt")])
    assert all(
        np.array_equal(copied.predict(read_image(path)), p) for path, p in zip(images, expected, strict=True)
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_other_images_of_a_call_change_no_bit(runs: dict[str, Path], precision: str) -> None:
    images = [read_image(path) for path in test_images(runs[precision])]
    images += [cv2.resize(images[0], (71, 33)), np.zeros((200, 90, 3), np.uint8)]
    predictor = load_predictor([str(runs[precision])])
    alone = [predictor.predict(image) for image in images]
    together = predictor.predict_all(images)
    backwards = predictor.predict_all(images[::-1])[::-1]
    for first, second, third in zip(alone, together, backwards, strict=True):
        assert np.array_equal(first, second) and np.array_equal(first, third)


@pytest.mark.parametrize(
    ("arch", "encoder", "precision"), [("unet", "resnet34", "bf16-mixed"), ("segformer", "mit_b0", "32-true")]
)
def test_threads_change_no_bit(arch: str, encoder: str, precision: str) -> None:
    torch.manual_seed(0)
    model = PolypSegmenter(arch, encoder, None, None, None, None, 1, 128, 0.5)
    model.precision = precision
    images = [torch.randint(0, 256, (3, 191, 203), dtype=torch.uint8) for _ in range(2)]
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            answers.append(torch.stack(model.predict(images)))
            assert torch.get_num_threads() == threads, "training in the same process keeps its threads"
    finally:
        torch.set_num_threads(before)
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


def test_what_is_fast_says_so_and_how_far_it_is_away(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["32-true"]
    images = [str(path) for path in test_images(run)]
    main(["predict", str(run), *images, "--out", str(tmp_path / "out"), "--compute", "fast"])
    assert "from exact on 4 images" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["backend"].startswith("fast, ")
    with pytest.raises(SystemExit, match="made with backend fast, "):  # not mixed with exact ones
        main(["predict", str(run), *images, "--out", str(tmp_path / "out")])
    main(["evaluate", str(run), "--compute", "fast"])
    metrics: dict[str, Any] = json.loads((run / "evaluations" / "test_fast" / "metrics.json").read_text())
    predictor = load_predictor([str(run)], "fast")
    pixels = [read_image(Path(path)) for path in images]
    exact = Predictor(predictor.models, predictor.device).predict_all(pixels)
    largest = max(np.abs(a - b).max() for a, b in zip(predictor.predict_all(pixels[:4]), exact, strict=False))
    assert "from exact on 4 images" in capsys.readouterr().out
    assert run.name in (run / "evaluations" / "test_fast" / "report.html").read_text()[:500]
    assert metrics["computed"].startswith("fast, ") and metrics["deviation"] == pytest.approx(float(largest))


@pytest.mark.slow
def test_interrupted_predictions_flip_no_mask_on_older_cpus(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["32-true"]
    images = [str(path) for path in test_images(run)]
    older = os.environ | {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "PYTHONPATH": str(ROOT / "src"),
    }
    for out, calls in {"whole": [images], "parts": [images[:2], images]}.items():
        for paths in calls:
            command = [
                sys.executable,
                "-m",
                "polyp.cli",
                "predict",
                str(run),
                *paths,
                "--out",
                str(tmp_path / out),
            ]
            subprocess.run([*command, "--probabilities"], env=older, check=True, capture_output=True)
    for kind in ("masks", "probabilities"):
        for file in (tmp_path / "whole" / kind).iterdir():
            assert file.read_bytes() == (tmp_path / "parts" / kind / file.name).read_bytes()
