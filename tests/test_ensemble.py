"""Sweeps over seeds and folds as ensembles: all commands take them, and no run scores what it has seen."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from run_writers import on_drawn_images, write_model_run

import polyp
from polyp.cli import main
from polyp.commands.app.inference_queue import InferenceQueue
from polyp.errors import InputError
from polyp.images import read_image
from polyp.runs.folder import RESULTS_FILE, SWEEP_FILE, RunFolder

COUNT = 20
"""Drawn images of the data set that all runs here have."""


def write_sweep(folder: Path, jobs: Sequence[dict[str, Any]], key: str = "seed") -> Path:
    """A finished sweep.

    Args:
        folder: where.
        jobs: for each run the settings that are its own, with dotted keys.
        key: that the jobs' folders are named by.
    """
    for number, settings in enumerate(jobs):
        name = f"{number}_{key.rpartition('.')[2]}-{settings[key]}"
        run = on_drawn_images(write_model_run(folder / name, seed=number), COUNT)
        config = OmegaConf.load(run / "config.yaml")
        config.seed, config.data.split_seed = 0, 0
        for changed, value in settings.items():
            OmegaConf.update(config, changed, value)
        OmegaConf.save(config, run / "config.yaml")
    (folder / SWEEP_FILE).write_text("")
    rows = [f"{number},{folder}" for number in range(len(jobs))]
    (folder / RESULTS_FILE).write_text("\n".join(["job,folder", *rows]))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep over two seeds and an image."""
    folder = tmp_path_factory.mktemp("ensemble")
    write_sweep(folder / "seeds", [{"seed": 0}, {"seed": 1}])
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "frame.png"), cv2.resize(image, (80, 60)))
    return folder


@pytest.fixture
def here(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the sweep `seeds` and `images`."""
    monkeypatch.chdir(shutil.copytree(written, tmp_path / "here"))
    return Path.cwd()


def probability(*models: str) -> np.ndarray:
    """The probabilities of the image."""
    return polyp.load(list(models)).predict("images/frame.png").probability


def refusal(*arguments: str) -> str:
    """The line that a command leaves with."""
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    text = str(error.value.code)
    assert text.startswith("polyp: ") and "\n" not in text
    return text


def scores(evaluation: Path) -> dict[str, float]:
    """Dice by stem."""
    rows = csv.DictReader((evaluation / "per_image.csv").read_text().splitlines())
    return {row["stem"]: float(row["dice"]) for row in rows}


# ---- what a sweep stands for


@pytest.mark.slow
def test_sweep_is_the_average_of_its_runs(here: Path) -> None:
    runs = ["seeds/0_seed-0", "seeds/1_seed-1"]
    first, second = map(probability, runs)
    assert np.abs(first - second).max() > 0.01, "equal models prove nothing"
    np.testing.assert_allclose(probability("seeds"), (first + second) / 2, atol=1e-6)
    assert np.array_equal(probability("seeds"), probability(*runs))
    queue = InferenceQueue({"seeds": "seeds"})
    assert np.array_equal(queue.predictors["seeds"].predict(read_image(Path("images/frame.png"))),
                          probability("seeds"))  # fmt: skip
    queue.close()


def test_predictions_of_a_sweep_lie_in_its_folder(here: Path) -> None:
    main(["predict", "seeds", "images"])
    folder = here / "seeds" / "predictions" / "images"
    mask = cv2.imread(str(folder / "masks" / "frame.png"), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(mask == 255, probability("seeds") >= 0.5)
    assert json.loads((folder / "predictions.json").read_text())["runs"] == [
        "seeds/0_seed-0",
        "seeds/1_seed-1",
    ]


@pytest.mark.parametrize("key", ["model.encoder", "optim.decoder_lr", "data.split_seed"])
def test_sweep_over_other_settings_is_no_ensemble(key: str, here: Path) -> None:
    values = {"model.encoder": ["a", "b"], "optim.decoder_lr": [1, 2], "data.split_seed": [0, 1]}[key]
    write_sweep(here / "mixed", [{key: value, "seed": seed} for seed, value in enumerate(values)], key)
    for command in (["predict", "mixed", "images"], ["evaluate", "mixed"], ["export", "mixed", "--onnx"]):
        text = refusal(*command)
        assert f"differ in {key}," in text and "mixed/0_" in text
    with pytest.raises(InputError, match=key):
        polyp.load("mixed")


def test_sweep_over_data_sets_is_no_ensemble(here: Path) -> None:
    file = RunFolder("seeds/0_seed-0").metrics_file
    metrics = json.loads(file.read_text())
    metrics["data"]["fingerprint"] = "another"
    file.write_text(json.dumps(metrics))
    assert "differ in data.fingerprint," in refusal("predict", "seeds", "images")


def test_unfinished_sweep_is_refused_with_the_command_that_resumes_it(here: Path) -> None:
    (here / "seeds" / RESULTS_FILE).unlink()
    assert "resume=seeds" in refusal("predict", "seeds", "images")
    RunFolder("seeds/1_seed-1").metrics_file.unlink()
    text = refusal("predict", "seeds", "images")
    assert "1_seed-1" in text and "0_seed-0" not in text and "resume=seeds" in text


# ---- evaluate


def test_seeds_are_evaluated_together_on_their_test_images(here: Path) -> None:
    main(["evaluate", "seeds"])
    main(["evaluate", "seeds/0_seed-0", "seeds/1_seed-1", "--name", "named"])
    scored = scores(here / "seeds" / "evaluations" / "test")
    assert len(scored) == COUNT // 10
    assert scored == scores(here / "seeds" / "0_seed-0" / "evaluations" / "named")


def write_folds(folder: Path, folds: int = 4, seeds: int = 1) -> Path:
    """A sweep over folds, each of which tests an equal share of the images and validates on the next one."""
    jobs = [{"data.folds": folds, "data.fold": n % folds, "seed": n // folds} for n in range(folds * seeds)]
    write_sweep(folder, jobs, "data.fold")
    stems = [f"synthetic_{number:04}" for number in range(COUNT)]
    for number in range(folds * seeds):
        test, val = stems[number % folds :: folds], stems[(number + 1) % folds :: folds]
        split = {"train": [s for s in stems if s not in [*test, *val]], "val": val, "test": test}
        (folder / f"{number}_fold-{number % folds}" / "split.json").write_text(json.dumps(split))
    return folder


@pytest.mark.slow
def test_folds_are_evaluated_out_of_fold_on_all_images(here: Path) -> None:
    write_folds(here / "folds", folds=2, seeds=2)
    main(["evaluate", "folds"])
    expected = {}
    for fold in range(2):
        main(["evaluate", f"folds/{fold}_fold-{fold}", f"folds/{fold + 2}_fold-{fold}"])
        expected |= scores(here / "folds" / f"{fold}_fold-{fold}" / "evaluations" / "test_ensemble-of-2")
    evaluation = here / "folds" / "evaluations" / "out-of-fold"
    assert len(expected) == COUNT and scores(evaluation) == expected
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert metrics["n"] == COUNT and metrics["numbers"]["dice"]["interval"] and metrics["strata"]
    assert metrics["numbers"]["dice"]["value"] == pytest.approx(np.mean(list(expected.values())))


def test_folds_on_other_data_are_an_ensemble(here: Path) -> None:
    write_folds(here / "folds", folds=2)
    shutil.copytree(here / "images", here / "other" / "images")
    (here / "other" / "masks").mkdir()
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:60] = 255
    cv2.imwrite(str(here / "other" / "masks" / "frame.png"), mask)
    main(["evaluate", "folds", "--data", "other"])
    truth, prediction = mask == 255, probability("folds") >= 0.5
    dice = 2 * (truth & prediction).sum() / (truth.sum() + prediction.sum())
    assert scores(here / "folds" / "evaluations" / "other")["frame"] == pytest.approx(dice, abs=1e-6)


# ---- export


@pytest.mark.slow
def test_exported_sweep_averages_the_probabilities_in_one_file(here: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs pip install -e '.[onnx]'")
    main(["export", "seeds", "--onnx", "--int8"])
    folder = here / "seeds" / "export"
    record = json.loads((folder / "export.json").read_text())
    assert len(record["models"]) == 2 and max(record["onnx"]["float32"]["difference"].values()) < 1e-4
    np.testing.assert_allclose(probability("seeds/export/model.onnx"), probability("seeds"), atol=0.02)
    assert np.abs(probability("seeds/export/model_int8.onnx") - probability("seeds")).max() < 0.3
    deviation = polyp.load("seeds/export/model.onnx").predictor.deviation(
        [read_image(Path("images/frame.png"))]
    )
    assert deviation is not None and 0 < deviation < 0.02
    main(["predict", "seeds/export/model.onnx", "images"])
    assert (here / "seeds" / "predictions" / "model_images" / "polyps.csv").is_file()


def test_export_refuses_runs_of_several_image_sizes_and_no_place_for_them(here: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs pip install -e '.[onnx]'")
    runs = ["seeds/0_seed-0", "seeds/1_seed-1"]
    assert "--out FOLDER" in refusal("export", *runs, "--onnx")
    file = RunFolder(runs[1]).best_checkpoint
    content = torch.load(file, weights_only=True)
    content["hyper_parameters"]["image_size"] = 96
    torch.save(content, file)
    assert "image sizes" in refusal("export", *runs, "--onnx", "--out", "both")
