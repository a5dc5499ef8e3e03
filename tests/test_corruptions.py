"""`polyp evaluate --corruptions`: the Dice that corrupted images cost."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from conftest import THREE_EPOCHS, train_once

from polyp.cli import main
from polyp.commands.evaluate import testsets
from polyp.commands.evaluate.corruptions import CORRUPTIONS, corrupt_set
from polyp.commands.evaluate.options import CorruptionName
from polyp.data.pairs import Pair
from polyp.data.sources import Synthetic
from polyp.inference.predictor import load_predictor
from polyp.runs.folder import RunFolder


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_once(tmp_path_factory, *THREE_EPOCHS)


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained_run, tmp_path / "run")


@pytest.fixture
def generated_set(tmp_path: Path) -> testsets.TestSet:
    source = Synthetic(root=str(tmp_path / "drawn"), count=10, size=128)
    return testsets.TestSet("drawn", source.find().pairs)


def read_table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "corruptions.csv").read_text().splitlines()))


def test_losses_are_those_of_images_corrupted_by_hand(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(run)])
    main(["evaluate", str(run), "--corruptions", "dark", "view"])
    plain, corrupted = run / "evaluations" / "test", run / "evaluations" / "test_corruptions"
    assert (corrupted / "per_image.csv").read_bytes() == (plain / "per_image.csv").read_bytes()
    metrics: dict[str, Any] = json.loads((corrupted / "metrics.json").read_text())
    plain_metrics: dict[str, Any] = json.loads((plain / "metrics.json").read_text())
    assert all(metrics[name] == value for name, value in plain_metrics.items() if name != "seconds")

    table = read_table(corrupted)
    assert [(row["corruption"], int(row["severity"])) for row in table] == [
        (name, severity) for name in ("dark", "view") for severity in range(1, 6)
    ]
    assert [float(row["dice"]) for row in table] == [row["dice"] for row in metrics["corruptions"]]
    predictor, dice = load_predictor([str(run)]), []
    data = json.loads((run / "split.json").read_text())["test"]
    source = Synthetic(count=20, size=48)
    pairs = {pair.stem: pair for pair in source.find(source.prepare()).pairs}
    for image, mask in (pairs[stem].read() for stem in data):
        prediction = predictor.predict((image * np.float32(0.5)).astype(np.uint8)) >= 0.5
        dice.append(2 * (prediction & (mask == 1)).sum() / (prediction.sum() + mask.sum()))
    assert float(table[1]["dice"]) == pytest.approx(np.mean(dice), abs=2e-3)
    loss = RunFolder(run).read_metrics()["test"]["dice"] - float(table[1]["dice"])
    assert float(table[1]["loss"]) == pytest.approx(loss, abs=1e-6)

    output = capsys.readouterr().out
    assert "Loss of Dice" in output and f"{loss:.3f}" in output
    page = (corrupted / "report.html").read_text()
    assert all(CORRUPTIONS[name].meaning in page for name in ("dark", "view"))
    assert CORRUPTIONS["blur"].meaning not in page


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_grow_and_depend_on_the_image_alone(name: str, generated_set: testsets.TestSet) -> None:
    pair = generated_set.pairs[1]
    image, mask = generated_set.read(pair)
    distances = []
    for severity in range(1, 6):
        corrupted, truth = corrupt_set(generated_set, name, severity).read(pair)
        again, _ = corrupt_set(generated_set, name, severity).read(pair)
        assert np.array_equal(corrupted, again)
        assert corrupted.shape == image.shape and corrupted.dtype == np.uint8
        assert np.array_equal(truth, mask) or name == "view"
        distances.append(np.abs(corrupted.astype(float) - image).mean())
    assert distances == sorted(distances) and distances[0] > 0


def test_a_smaller_view_shrinks_the_mask_with_the_image(generated_set: testsets.TestSet) -> None:
    mask = generated_set.pairs[1].mask
    assert mask is not None
    pair = Pair("itself", mask, mask)
    areas = []
    for severity in range(1, 6):
        image, truth = corrupt_set(generated_set, "view", severity).read(pair)
        assert np.mean((image[..., 0] > 127) == (truth == 1)) > 0.98
        areas.append(truth.sum() / generated_set.read(pair)[1].sum())
    assert areas == pytest.approx([0.81, 0.64, 0.49, 0.36, 0.25], abs=0.02)


def test_the_option_has_the_names_of_all_corruptions() -> None:
    assert get_args(CorruptionName) == tuple(CORRUPTIONS)


@pytest.mark.slow
def test_all_corruptions_of_a_run(run: Path) -> None:
    main(["evaluate", str(run), "--corruptions"])
    table = read_table(run / "evaluations" / "test_corruptions")
    assert len(table) == 5 * len(CORRUPTIONS)
    assert {row["corruption"] for row in table} == set(CORRUPTIONS)
    page = (run / "evaluations" / "test_corruptions" / "report.html").read_text()
    assert "corruptions.pdf" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corruptions", "fog"], "fog"),
        (["--corruptions", "--normal", "--data", "x"], "--corruptions measures the loss of Dice"),
    ],
)
def test_corruptions_that_cannot_be_measured_are_refused(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(["evaluate", str(run), *arguments])
    assert message in str(error.value.code) + "".join(capsys.readouterr())
    assert not (run / "evaluations").exists()
