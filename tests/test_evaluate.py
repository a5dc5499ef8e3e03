"""`polyp evaluate`: the numbers are those counted by hand, and nothing is lost."""

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import THREE_EPOCHS, run_script, train_once
from omegaconf import OmegaConf

from polyp.cli import main
from polyp.commands.evaluate import page as report_page
from polyp.commands.evaluate.summary import describe_control
from polyp.data.layouts import list_pairs
from polyp.data.masks import read_mask
from polyp.data.sources import Synthetic
from polyp.images import components, read_image
from polyp.inference.predictor import Predictor, load_predictor
from polyp.metrics import literature
from polyp.runs.data import load_run_data
from polyp.runs.folder import RunFolder
from polyp.runs.model import ModelSource, load_checkpoint

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small runs: `first`, and `second` with another seed and another split."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(train_once(tmp_path_factory, *THREE_EPOCHS), folder / "first")
    other = train_once(tmp_path_factory, *THREE_EPOCHS, "seed=1", "data.split_seed=1")
    shutil.copytree(other, folder / "second")
    return folder


@pytest.fixture
def run(trained_runs: Path, tmp_path: Path) -> Path:
    """A run of the test's own."""
    return shutil.copytree(trained_runs / "first", tmp_path / "run")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder of images that no run has seen."""
    return Synthetic(root=str(tmp_path / "drawn"), count=10, size=48, drawing_seed=5).prepare()


def read_metrics(run: Path, name: str = "test") -> dict[str, Any]:
    return json.loads((run / "evaluations" / name / "metrics.json").read_text())


def read_rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "per_image.csv").read_text().splitlines()))


def probabilities(run: Path, images: Sequence[Path]) -> list[np.ndarray]:
    """What the run's best checkpoint says, one image at a time."""
    predictor = load_predictor([str(run)])
    return [predictor.predict(read_image(path)) for path in images]


def dice(probability: np.ndarray, mask: np.ndarray, threshold: float = 0.5) -> float:
    prediction = probability >= threshold
    whole = prediction.sum() + mask.sum()
    return 2 * (prediction & (mask == 1)).sum() / whole if whole else 1.0


def error_message(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that a command leaves with."""
    with pytest.raises(SystemExit) as error:
        main(["evaluate", *arguments])
    text = str(error.value.code)
    assert text.startswith("polyp: ") and "\n" not in text
    return text


# ---- a run on its own test images


def test_a_run_scores_what_training_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(run)])
    trained_metrics, metrics = RunFolder(run).read_metrics()["test"], read_metrics(run)
    for name in ("dice", "iou", "precision", "recall", "mae", "pooled_dice"):
        assert metrics["numbers"][name]["value"] == pytest.approx(trained_metrics[name], abs=1e-6), name
        assert metrics["definitions"][name]
    assert metrics["numbers"]["dice"]["interval"] == pytest.approx(trained_metrics["dice_interval"], abs=1e-6)
    assert metrics["n"] == trained_metrics["n"] == len(read_rows(run / "evaluations" / "test"))
    for old, new in zip(read_rows(run), read_rows(run / "evaluations" / "test"), strict=True):
        assert {name: new[name] for name in old} == old
    output = capsys.readouterr().out
    assert f"{trained_metrics['dice']:.3f}" in output and all(
        name in output for name in ("report.html", "metrics.json")
    )
    assert (
        sum(re.search(rf"^{name} +\d", output, re.MULTILINE) is not None for name in metrics["numbers"]) == 6
    )
    worst = min(read_rows(run), key=lambda row: float(row["dice"]))
    assert f"lowest on {worst['stem']} {float(worst['dice']):.3f}" in output
    result = next(line for line in output.splitlines() if line.startswith("Dice is"))
    assert result in (run / "evaluations" / "test" / "report.html").read_text()


def test_the_page_opens_offline_and_shows_the_worst_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "CASES", 1)
    main(["evaluate", str(run)])
    page = (run / "evaluations" / "test" / "report.html").read_text()
    assert "http" not in page
    assert all(source.startswith("data:image/") for source in re.findall(r'src="(.{12})', page))
    worst, *_, best = sorted(read_rows(run), key=lambda row: float(row["dice"]))
    captions = [f"{row['stem']}: Dice {float(row['dice']):.3f}" for row in (worst, best)]
    assert re.search(f"Worst</h3>.*{captions[0]}.*Best</h3>.*{captions[1]}", page, re.DOTALL)


def test_strata_are_means_over_their_images(run: Path) -> None:
    main(["evaluate", str(run)])
    strata = read_metrics(run)["strata"]
    assert {"size", "number", "shape"} == strata.keys()
    dices = [float(row["dice"]) for row in read_rows(run)]
    for parts in strata.values():
        assert sum(of["n"] for of in parts.values()) == len(dices)
        assert sum(of["n"] * of["dice"] for of in parts.values()) == pytest.approx(sum(dices))


def test_a_run_keeps_the_split_that_it_was_trained_with(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tested = [row["stem"] for row in read_rows(run)]
    config = RunFolder(run).read_config()
    config["data"]["split_seed"] += 1  # as if another version drew another split
    RunFolder(run).write_config(config, json.loads(RunFolder(run).split_file.read_text()))
    main(["evaluate", str(run)])
    assert [row["stem"] for row in read_rows(run / "evaluations" / "test")] == tested
    RunFolder(run).split_file.write_text("[]")
    assert "split.json is damaged" in error_message(capsys, str(run), "--overwrite")


def test_a_random_split_that_was_not_recorded_is_refused(
    run: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(run).split_file.unlink()  # as of polyp 0.5
    assert "has no split.json" in error_message(capsys, str(run))
    assert not (run / "evaluations").exists()
    with pytest.raises(SystemExit, match=r"has no split\.json"):
        run_script(f"resume={run}", "trainer.max_epochs=5")
    main(["evaluate", str(run), "--data", str(dataset)])
    unchecked = read_metrics(run, dataset.name)["training_images"]["unchecked"]
    assert "has no split.json" in unchecked[str(run)]
    config = RunFolder(run).read_config()
    config["data"]["split"] = str(dataset / "split.csv")
    stems = sorted(pair.stem for pair in list_pairs(dataset).pairs)
    subsets = ["train"] * 6 + ["val", "val", "test", "test"]
    (dataset / "split.csv").write_text("stem,subset\n" + "".join(map("{},{}\n".format, stems, subsets)))
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config))
    main(["evaluate", str(run)])  # another split is in its file
    assert [row["stem"] for row in read_rows(run / "evaluations" / "test")] == stems[-2:]


# ---- other images


def test_a_folder_is_scored_whole(run: Path, dataset: Path) -> None:
    main(["evaluate", str(run), "--data", str(dataset), "--threshold", "0.3"])
    images = sorted((dataset / "images").iterdir())
    masks = [read_mask(dataset / "masks" / f"{path.stem}.png") for path in images]
    expected = [dice(p, m, 0.3) for p, m in zip(probabilities(run, images), masks, strict=True)]
    metrics = read_metrics(run, f"{dataset.name}_threshold-0.3")
    assert metrics["numbers"]["dice"]["value"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert "0.3" in metrics["definitions"]["dice"]
    assert 0 < np.mean(expected) < 1


def test_several_sets_in_one_go(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CVC-300", "Kvasir"):
        shutil.copytree(dataset, tmp_path / "TestDataset" / name)
    (tmp_path / "TestDataset" / "Kvasir" / "notes.txt").touch()
    main(["evaluate", str(run), "--data", str(tmp_path / "TestDataset")])
    first = read_metrics(run, "CVC-300")["numbers"]
    assert first == read_metrics(run, "Kvasir")["numbers"]
    together = capsys.readouterr().out.split("report.html")[-1]
    for name in ("CVC-300", "Kvasir"):
        assert re.search(rf"^{name} +10 +{first['dice']['value']:.3f} ", together, re.MULTILINE)


def test_no_set_is_passed_over(run: Path, dataset: Path, tmp_path: Path) -> None:
    for name in ("CVC-300", "Kvasir"):
        shutil.copytree(dataset, tmp_path / "TestDataset" / name)
    (tmp_path / "TestDataset/Kvasir/masks").rename(tmp_path / "TestDataset/Kvasir/other")
    with pytest.raises(SystemExit, match=r"Kvasir/images/: none of its 10 images has a mask"):
        main(["evaluate", str(run), "--data", str(tmp_path / "TestDataset")])


def test_normal_frames_have_false_alarms(run: Path, dataset: Path) -> None:
    main(["evaluate", str(run), "--data", str(dataset / "images"), "--normal", "--name", "normal"])
    counts = [components(p >= 0.5)[0] for p in probabilities(run, sorted((dataset / "images").iterdir()))]
    metrics = read_metrics(run, "normal")
    assert metrics["numbers"]["false_alarms"]["value"] == np.mean([count > 0 for count in counts])
    assert metrics["numbers"]["false_positives_per_image"]["value"] == np.mean(counts) > 0
    assert metrics["normal"] is True and "dice" not in metrics["numbers"]


def test_normal_frames_of_a_run_are_scored_beside_its_test_images(run: Path, dataset: Path) -> None:
    frames = sorted((dataset / "images").iterdir())
    split = json.loads(RunFolder(run).split_file.read_text()) | {"normal": [f"normal/{frames[0].stem}"]}
    split["train"] += [f"normal/{frame.stem}" for frame in frames[1:]]
    config = RunFolder(run).read_config()
    config["data"]["normal"] = str(dataset / "images")
    RunFolder(run).write_config(config, split)
    main(["evaluate", str(run)])
    normal = read_metrics(run, "normal")
    count, _ = components(probabilities(run, frames[:1])[0] >= 0.5)
    assert normal["n"] == 1 and normal["normal"] is True
    assert normal["numbers"]["false_alarms"]["value"] == (count > 0)
    assert read_metrics(run)["n"] == len(split["test"])


@pytest.mark.parametrize(
    ("missed", "interval", "verdict"),
    [
        (0.08, (0.05, 0.12), set()),
        (0.12, (0.08, 0.16), {"perhaps by chance"}),
        (0.2, (0.15, 0.25), {"the limit does not hold"}),
    ],
)
def test_report_says_whether_the_limit_of_missed_pixels_holds(
    missed: float, interval: tuple[float, float], verdict: set[str]
) -> None:
    number = {"value": 0.8, "interval": None, "n": 9}
    results = {"missed": {"value": missed, "interval": interval, "n": 9}, "dice": number, "precision": number}
    control = {
        "threshold": 0.1,
        "share": 0.1,
        "confidence": 0.95,
        "missed": 0.06,
        "images": 80,
        "here": results,
    }
    text = describe_control(control)
    assert {words for words in ("perhaps by chance", "the limit does not hold") if words in text} == verdict


def test_normal_frames_that_cannot_be_read_are_all_told_before_the_work(run: Path, dataset: Path) -> None:
    frames = sorted((dataset / "images").iterdir())
    frames[0].write_bytes(b"no picture")
    shutil.copy(frames[1], frames[1].with_suffix(".jpeg"))
    with pytest.raises(SystemExit) as error:
        main(["evaluate", str(run), "--data", str(dataset / "images"), "--normal"])
    assert re.search(
        f"2 problems.*\n.*{frames[0].name}: not a readable image.*\n.*{frames[1].stem}", str(error.value.code)
    )
    assert not (run / "evaluations").exists()


# ---- several models, several views


def test_an_ensemble_is_the_mean_of_the_probabilities(
    trained_runs: Path, run: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["evaluate", str(run), str(trained_runs / "second"), "--data", str(dataset), "--name", "both"])
    assert (
        f"polyp predict {run} FOLDER_OR_VIDEO --with {trained_runs / 'second'}\n" in capsys.readouterr().out
    )
    images = sorted((dataset / "images").iterdir())
    masks = [read_mask(dataset / "masks" / f"{path.stem}.png") for path in images]
    both = zip(probabilities(run, images), probabilities(trained_runs / "second", images), masks, strict=True)
    assert read_metrics(run, "both")["numbers"]["dice"]["value"] == pytest.approx(
        np.mean([dice((a + b) / 2, m) for a, b, m in both]), abs=1e-6
    )


def test_models_of_another_split_are_no_ensemble(
    trained_runs: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "was trained on" in error_message(capsys, str(run), str(trained_runs / "second"))


def test_a_threshold_needs_images_that_no_model_was_trained_on(
    trained_runs: Path, run: Path, dataset: Path
) -> None:
    main(["evaluate", str(run), str(trained_runs / "second"), "--data", str(dataset), "--missed", "0.9"])
    metrics = read_metrics(run, f"{dataset.name}_ensemble-of-2")
    assert metrics["risk_control"] is None
    assert any("no threshold is chosen" in warning and "second" in warning for warning in metrics["warnings"])


def test_data_that_are_gone_are_known_by_their_fingerprint(run: Path, dataset: Path) -> None:
    other = shutil.copytree(run, run.with_name("other"))
    RunFolder(other).split_file.unlink()
    main(["evaluate", str(run), str(other), "--data", str(dataset), "--name", "others"])
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["data"]["fingerprint"] = read_metrics(run, "others")["fingerprint"]
    (other / "metrics.json").write_text(json.dumps(metrics))
    main(["evaluate", str(run), str(other), "--data", str(dataset), "--name", "own"])
    texts = [
        read_metrics(run, name)["training_images"]["unchecked"][str(other)] for name in ("others", "own")
    ]
    assert ["trained on this data set" in text for text in texts] == [False, True]


def test_flips_are_averaged(run: Path, dataset: Path) -> None:
    model, images = load_checkpoint(ModelSource.of(str(run))), sorted((dataset / "images").iterdir())[:2]
    pictures = [torch.from_numpy(read_image(path)).permute(2, 0, 1) for path in images]
    expected = [
        sum(model.predict([p.flip(axes)])[0].flip(axes) for axes in ((), (-1,), (-2,), (-1, -2))) / 4
        for p in pictures
    ]
    arrays = [read_image(path) for path in images]
    results = Predictor([model], torch.device("cpu"), flips=True).predict_all(arrays)
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, reference.numpy(), atol=1e-5)
    plain = Predictor([model], torch.device("cpu")).predict_all(arrays)
    assert not np.allclose(plain[0], results[0], atol=1e-4)


# ---- bad input


def test_an_evaluation_is_kept_unless_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(run)])
    page = run / "evaluations" / "test" / "report.html"
    page.write_text("mine")
    assert "--overwrite" in error_message(capsys, str(run))
    assert page.read_text() == "mine"
    main(["evaluate", str(run), "--overwrite"])
    assert page.read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "--data nowhere is not a folder"),
        (["--threshold", "1.5"], "--threshold 1.5 must lie between 0 and 1"),
        (["--scales", "9"], "--scales 9 must lie"),
        (["--data", "x", "--subset", "val"], "--subset val is of the run's own images"),
        (["--normal"], "--normal needs --data"),
        (["--device", "meta"], "--device meta is not there"),
        (["--device", "cuda:7"], "--device cuda:7 is not there"),
        (["--name", "../x"], "--name ../x must be a single folder's name"),
        (["--name", "..", "--overwrite"], "--name .. must be a single folder's name"),
        (["--name", ""], "--name  must be a single folder's name"),
        (["--archive", __file__], "--archive means nothing for data=synthetic"),
    ],
)
def test_options_that_cannot_work(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_message(capsys, str(run), *arguments)
    assert not (run / "evaluations").exists()


def test_a_folder_by_a_relative_path_has_its_name(
    run: Path, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset / "images")
    dataset.rename(named := dataset.with_name("[bold] drawn"))  # which is no markup
    main(["evaluate", str(run), "--data", "..", "--overwrite"])
    assert read_metrics(run, named.name)["n"] == 10 and RunFolder(run).read_metrics()["best"]
    assert named.name in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "evaluations").touch()
    assert "cannot write to" in error_message(capsys, str(run))


def test_damaged_files_of_a_run(run: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.json").write_text("{")
    main(["evaluate", str(run)])  # needs none of it
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("  split:", "  unknown: 1\n  split:"))
    assert "config.yaml does not fit this version of polyp" in error_message(capsys, str(run), "--overwrite")
    for damaged in ("a: [", "- 1"):
        (run / "config.yaml").write_text(damaged)
        assert "config.yaml is damaged" in error_message(capsys, str(run))


def test_a_folder_without_masks(run: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(dataset / "masks")
    for folder in (dataset, dataset / "images"):
        line = error_message(capsys, str(run), "--data", str(folder))
        assert "--masks" in line and "--normal" in line


def test_masks_of_another_size(run: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = next((dataset / "masks").iterdir())
    cv2.imwrite(str(mask), np.full((7, 9), 255, np.uint8))
    with pytest.raises(SystemExit) as error:
        main(["evaluate", str(run), "--data", str(dataset)])
    assert mask.stem in str(error.value.code) and "its mask is 9x7" in str(error.value.code)


def test_images_that_it_was_trained_on_are_found_whatever_their_names(
    run: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_run_data(run, RunFolder(run).read_config())
    train, (val, *_) = data.get_pairs("train"), data.get_pairs("val")
    for number, pair in enumerate([*train[:2], val]):  # byte-identical
        shutil.copy(pair.image, dataset / "images" / f"copy_{number}{pair.image.suffix}")
        shutil.copy(pair.mask, dataset / "masks" / f"copy_{number}{pair.mask.suffix}")
    cv2.imwrite(
        str(dataset / "images/again.jpg"), cv2.imread(str(train[2].image)), [cv2.IMWRITE_JPEG_QUALITY, 60]
    )
    shutil.copy(train[2].mask, dataset / "masks/again.png")
    main(["evaluate", str(run), "--data", str(dataset)])
    metrics = read_metrics(run, dataset.name)
    training = metrics["training_images"]
    assert {image["stem"]: (image["like"], image["subset"]) for image in training["images"]} == {
        "again": (train[2].stem, "train"),
        "copy_0": (train[0].stem, "train"),
        "copy_1": (train[1].stem, "train"),
        "copy_2": (val.stem, "val"),
    }
    assert training["checked"] == [str(run)] and training["unchecked"] == {} and training["found"] == 4
    others = [
        float(row["dice"])
        for row in read_rows(run / "evaluations" / dataset.name)
        if "synthetic" in row["stem"]
    ]
    assert len(others) == training["without"]["n"] == 10 and metrics["n"] == 14
    dice = training["without"]["numbers"]["dice"]
    assert dice["value"] == pytest.approx(np.mean(others), abs=1e-6) and dice["interval"] is not None
    page = (run / "evaluations" / dataset.name / "report.html").read_text()
    for text in (capsys.readouterr().out, page):
        assert "4 of the 14 images" in text and f"{dice['value']:.3f}" in text and "copy_0" in text


@pytest.mark.slow
def test_training_images_of_all_models_are_looked_for_and_unknown_ones_are_said(
    trained_runs: Path, run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = trained_runs / "second"
    of = [load_run_data(home, RunFolder(home).read_config()) for home in (run, second)]
    stem = next(
        stem for stem in of[1].subsets["train"] if stem in of[0].subsets["test"]
    )  # of the second one alone
    shutil.copy(of[0].pairs[of[0].rows[stem]].image, dataset / "images/frame.jpg")
    elsewhere = shutil.copy(RunFolder(run).best_checkpoint, tmp_path / "mine.ckpt")
    frames = str(dataset / "images")
    main(["evaluate", str(run), str(second), str(elsewhere), "--data", frames, "--normal", "--name", "all"])
    training = read_metrics(run, "all")["training_images"]
    assert [(image["stem"], image["model"]) for image in training["images"]] == [("frame", str(second))]
    assert list(training["unchecked"]) == [str(elsewhere)] and str(elsewhere) in capsys.readouterr().out
    main(["evaluate", str(run), "--data", str(Path(of[0].pairs[0].image).parents[1]), "--name", "own"])
    assert read_metrics(run, "own")["training_images"]["found"] >= 18


def test_an_older_checkpoint_has_the_precision_of_its_configuration(run: Path, dataset: Path) -> None:
    change_checkpoint(
        run, lambda content: {key: value for key, value in content.items() if key != "precision"}
    )
    config = RunFolder(run).read_config()
    config["trainer"]["precision"] = "32-true"
    RunFolder(run).write_config(config, json.loads(RunFolder(run).split_file.read_text()))
    main(["evaluate", str(run), "--data", str(dataset), "--name", "precise"])
    assert read_metrics(run, "precise")["computed"] == "exact, 32-true, cpu"


def test_a_single_image_has_no_interval(run: Path, dataset: Path) -> None:
    for path in sorted(dataset.glob("*/*"))[1:10] + sorted(dataset.glob("masks/*"))[1:]:
        path.unlink(missing_ok=True)
    main(["evaluate", str(run), "--data", str(dataset), "--name", "one"])
    metrics = read_metrics(run, "one")
    assert metrics["n"] == 1 and metrics["numbers"]["dice"]["interval"] is None


def change_checkpoint(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = RunFolder(run).best_checkpoint
    torch.save(change(torch.load(file, weights_only=True)), file)


def test_nan_is_no_answer(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def poison(content: dict[str, Any]) -> dict[str, Any]:
        next(value for name, value in content["state_dict"].items() if name.endswith("bias")).fill_(
            float("nan")
        )
        return content

    change_checkpoint(run, poison)
    assert "nan" in error_message(capsys, str(run))
    assert not (run / "evaluations").exists()


class Code:
    pass


def with_complex_mean(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {"network.mean": weights["network.mean"].cfloat()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: {"weights": content["state_dict"]}, "is no checkpoint of polyp's"),
        (lambda content: [1, 2], "is no checkpoint of polyp's"),
        (lambda content: content | {"code": Code()}, "holds code (test_evaluate.Code)"),
        (lambda content: content | {"state_dict": {}}, "does not fit this version of polyp"),
        (lambda content: content | {"state_dict": {1: 2}}, "does not fit this version of polyp"),
        (lambda content: content | {"state_dict": with_complex_mean(content["state_dict"])}, "does not fit"),
        (
            lambda content: content | {"hyper_parameters": content["hyper_parameters"] | {"stages": "x"}},
            "stages",
        ),
        (
            lambda content: content | {"hyper_parameters": content["hyper_parameters"] | {1: 2}},
            "names are no text",
        ),
        (lambda content: content | {"precision": "half"}, "precision=half"),
    ],
)
def test_what_is_no_checkpoint_of_ours(
    change: Callable[[dict[str, Any]], Any], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_checkpoint(run, change)
    assert message in error_message(capsys, str(run))


def test_a_damaged_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = RunFolder(run).best_checkpoint
    file.write_bytes(file.read_bytes()[:-1000])
    assert "is damaged" in error_message(capsys, str(run))


def test_what_is_no_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not there" in error_message(capsys, str(tmp_path / "nothing"))
    assert "is not the folder of a run" in error_message(capsys, str(tmp_path))
    elsewhere = shutil.copy(RunFolder(run).best_checkpoint, tmp_path / "mine.ckpt")
    assert "say with --data" in error_message(capsys, str(elsewhere))


def test_a_checkpoint_anywhere(run: Path, dataset: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copy(RunFolder(run).best_checkpoint, tmp_path / "mine.ckpt"))
    main(["evaluate", str(elsewhere), "--data", str(dataset)])
    main(["evaluate", str(RunFolder(run).last_checkpoint), "--data", str(dataset)])
    main(["evaluate", str(RunFolder(run).best_checkpoint), "--data", str(dataset)])
    assert read_metrics(run, dataset.name)["n"] == 10  # as for the run itself
    assert (
        read_metrics(tmp_path, f"mine_{dataset.name}")["n"]
        == read_metrics(run, f"last_{dataset.name}")["n"]
        == 10
    )


# ---- the extra


def test_without_the_extra_the_rest_of_the_table_is_there(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "py_sod_metrics", None)  # as if it were not installed
    monkeypatch.setattr(literature, "find_spec", lambda name: None)
    main(["evaluate", str(run)])
    assert "pip install -e '.[literature]'" in caplog.text
    numbers = read_metrics(run)["numbers"]
    assert "wfm" not in numbers and "nsd" in numbers


def test_with_the_extra_the_literatures_numbers_are_there(run: Path) -> None:
    pytest.importorskip("py_sod_metrics", reason="needs pip install -e '.[literature]'")
    main(["evaluate", str(run)])
    metrics = read_metrics(run)
    assert {"wfm", "sm", "em_max", "dice_mean"} <= metrics["numbers"].keys() == metrics["definitions"].keys()
    assert metrics["numbers"]["dice_max"]["value"] >= metrics["numbers"]["dice_mean"]["value"]
