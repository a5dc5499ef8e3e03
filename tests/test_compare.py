"""`polyp compare` of runs whose scores are known: the statistics, the warnings, and what is written."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from conftest import SMALL, Train
from run_writers import write_folds, write_run
from torch.utils.tensorboard import SummaryWriter

from polyp import cli
from polyp.commands.compare import charts, examples
from polyp.commands.compare.comparison import compare
from polyp.commands.compare.read_runs import find_runs
from polyp.errors import InputError
from polyp.metrics.difference import sign_flip_tests
from polyp.runs.folder import RunFolder

IMAGES = np.random.default_rng(0).uniform(0.5, 0.9, 60)
NOISE = np.random.default_rng(1).normal(0, 0.03, 60)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def error_message(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as error:
        cli.main(["compare", *map(str, arguments)])
    output = str(error.value)
    assert output.startswith("polyp: ") and "\n" not in output
    return output


def test_compare_separates_a_difference_from_chance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs/best", IMAGES, val=0.9)
    write_run(tmp_path / "runs/worse", IMAGES - 0.05 + NOISE, val=0.8, changed=["model.encoder=resnet18"])
    write_run(tmp_path / "runs/same", IMAGES + NOISE - NOISE.mean(), val=0.7, changed=["model.encoder=vgg11"],
          parameters=500_000)  # fmt: skip
    write_run(tmp_path / "runs/begun", IMAGES)
    (tmp_path / "runs/begun/metrics.json").unlink()
    out = tmp_path / "out"
    cli.main(["compare", str(tmp_path / "runs"), "--out", str(out), "--no-pictures"])
    best, worse, same = table(out)
    assert [row["model.encoder"] for row in (best, worse, same)] == ["mobilenet_v2", "resnet18", "vgg11"]
    assert [row["verdict"] for row in (best,)] == ["best by validation"]
    assert worse["verdict"].startswith("worse than the best by 0.0")
    assert float(worse["difference"]) == pytest.approx(NOISE.mean() - 0.05)
    assert float(worse["difference_low"]) < float(worse["difference"]) < float(worse["difference_high"]) < 0
    assert float(worse["p"]) < 0.001
    assert same["verdict"].startswith("not distinguishable from the best: ")
    assert same["verdict"].endswith("with 25% of the parameters")
    assert float(best["images_per_second"]) == 4 and float(best["gmacs"]) > 0
    output = capsys.readouterr().out
    assert "Seed noise is unknown" in output and "seed=0,1,2" in output
    assert "begun" in output and "epoch 2 of 2" in output
    page = (out / "compare.html").read_text()
    assert all(row["verdict"] in page for row in (best, worse, same)) and "Bonferroni" in page


@pytest.mark.parametrize("width", [80, 100])
def test_rows_fit_the_terminal(
    width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 unlike experiments: what does not fit is named, and each row keeps its rank and its verdict."""
    for number in range(18):
        keys = [f"+own.key_{number}={number}", f"optim.decoder_lr={1e-4 * (number + 1)}"]
        augment = f"+augment.name={'a long recipe of augmentations ' * 2}{number % 2}"
        run = tmp_path / "runs" / f"{number:02}"
        write_run(
            run,
            IMAGES - 0.05 * (number > 9) + np.roll(NOISE, number),
            val=0.9 - 0.01 * number,
            changed=[*keys, augment],
        )
    for name, value in {"COLUMNS": str(width), "TTY_COMPATIBLE": "1", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    arguments = [
        "compare",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "out"),
        "--no-pictures",
        "--overwrite",
    ]
    cli.main(arguments)
    head, *rows = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()[:19]
    assert max(map(len, (head, *rows))) <= width and "verdict" in head and "…" not in "".join(rows)
    assert [row.split()[0] for row in rows] == [f"#{rank}" for rank in range(1, 19)]
    assert "best by validation" in rows[0] and all(
        re.search("not distinguishable|(worse|better) by 0", row) for row in rows[1:]
    )
    cli.main([*arguments, "--all-columns"])
    head = capsys.readouterr().out.splitlines()[0]
    assert all(name in head for name in ("key_17", "images/s"))


def test_reference_is_best_by_validation(tmp_path: Path) -> None:
    write_run(tmp_path / "a", IMAGES, val=0.9)
    write_run(tmp_path / "b", IMAGES + 0.05, val=0.8, changed=["optim.decoder_lr=1e-4"])
    comparison = compare(find_runs([tmp_path]))
    assert comparison.reference.first.folder.name == "a"
    assert comparison.verdict(comparison.recipes[1]) == "better on the test set by 0.050 (0.050 to 0.050)"


def test_p_values_and_intervals_are_corrected_for_comparisons(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    for folder, count in ((few, 1), (many, 8)):
        write_run(folder / "best", IMAGES, val=0.9)
        for number in range(count):
            noise = np.random.default_rng(number + 5).normal(-0.006, 0.02, 60)
            write_run(
                folder / f"other_{number}",
                IMAGES + noise,
                val=0.8 - number / 100,
                changed=[f"optim.decoder_lr={number}"],
            )
    alone, among = (compare(find_runs([folder])).differences[2] for folder in (few, many))
    assert alone.value == among.value and alone.interval is not None and among.interval is not None
    assert among.p > alone.p
    assert among.interval[0] < alone.interval[0] < alone.interval[1] < among.interval[1]


def test_seeds_are_averaged_and_their_noise_counts(tmp_path: Path) -> None:
    for seed, shift in enumerate((0.0, 0.04, -0.04)):
        write_run(tmp_path / f"a{seed}", IMAGES + shift, val=0.9 + shift, seed=seed)
    write_run(tmp_path / "b0", IMAGES - 0.05, val=0.8, changed=["optim.decoder_lr=1e-4"])
    write_run(tmp_path / "c0", IMAGES - 0.3, val=0.5, changed=["optim.decoder_lr=1e-5"])
    comparison = compare(find_runs([tmp_path]))
    first, near, far = comparison.recipes
    assert first.seeds == [0, 1, 2] and first.val == pytest.approx(0.9)
    assert first.deviations["test/dice"] == pytest.approx(0.04)  # by hand: (0, .04, -.04)
    assert comparison.noise == (pytest.approx(0.04), 2)
    # By hand, for two comparisons: t(.9875, 2) = 6.2053, x .04 x sqrt(1 + 1/3)
    assert comparison.differences[2].margin == pytest.approx(6.2053 * 0.04 * (4 / 3) ** 0.5, rel=1e-4)
    assert (
        comparison.verdict(near)
        == "worse on these images by 0.050 (0.050 to 0.050), but seeds alone do ±0.287"
    )
    assert comparison.verdict(far).startswith("worse than the best by 0.300")
    assert comparison.headline.endswith("on the 60 test images, given the noise of the seeds.")
    assert any("0.0400 between seeds" in note for note in comparison.notes)


def test_seed_run_twice_counts_once(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_run(tmp_path / place, IMAGES)
    comparison = compare(find_runs([tmp_path]))
    assert len(comparison.recipes) == 1 and comparison.recipes[0].seeds == [0] and comparison.noise is None


def test_neutral_keys_make_no_configuration(tmp_path: Path) -> None:
    write_run(
        tmp_path / "a", IMAGES, seed=0, changed=["data.num_workers=0", "model.encoder_weights=/here/w.pt"]
    )
    write_run(
        tmp_path / "b", IMAGES, seed=1, changed=["data.num_workers=4", "model.encoder_weights=/there/w.pt"]
    )
    (recipe,) = compare(find_runs([tmp_path])).recipes
    assert recipe.seeds == [0, 1]


def test_labels_have_one_of_the_keys_that_change_together(tmp_path: Path) -> None:
    both = [("1e-5", "1e-3"), ("1e-6", "1e-4")]
    for number, (encoder, decoder) in enumerate(both):
        write_run(
            tmp_path / str(number),
            IMAGES,
            val=0.9 - number / 10,
            changed=[
                f"optim.encoder_lr={encoder}",
                f"optim.decoder_lr={decoder}",
                f"data.augmented={number == 0}",
            ],
        )
    comparison = compare(find_runs([tmp_path]))
    assert set(comparison.keys) == {"optim.encoder_lr", "optim.decoder_lr", "data.augmented"}
    assert [len(recipe.label.split(", ")) for recipe in comparison.recipes] == [1, 1]


@pytest.mark.parametrize(
    ("changed", "metrics", "warning"),
    [
        ([], {"data": {"split": "pranet"}}, "Other split: official: #1; pranet: #2."),
        (
            [],
            {"data": {"fingerprint": "xyz"}},
            "Other data (fingerprint of all images and masks): abc: #1; xyz: #2.",
        ),
        ([], {"definitions": {"dice": "something else"}}, "Other definition of the scores"),
        ([], {"definitions": {"dice": "what dice is", "test": "x" * 99}}, "Other definition of the scores"),
        (["monitor=test/dice"], {"best": {"monitor": "test/dice"}}, "The test set was used for selection"),
        ([], {"data": {"image_size": [32, 32]}}, "Other resolution"),
        ([], {"epochs": 1}, "Epochs trained: 2: #1; 1: #2."),
    ],
)
def test_compare_warns_of_runs_that_are_not_comparable(
    tmp_path: Path,
    changed: list[str],
    metrics: dict[str, dict[str, str]],
    warning: str,
) -> None:
    write_run(tmp_path / "a", IMAGES, val=0.9)
    write_run(tmp_path / "b", IMAGES, val=0.8, changed=["optim.decoder_lr=1", *changed], **metrics)
    with SummaryWriter(str(tmp_path / "b")) as writer:  # where val/dice is, if the run went by another number
        for epoch in range(2):
            writer.add_scalar("val/dice", 0.1, epoch)
    comparison = compare(find_runs([tmp_path]))
    assert any(output.startswith(warning) for output in [*comparison.warnings, *comparison.notes])


def test_seeds_with_other_random_splits_are_other_configurations(tmp_path: Path) -> None:
    images = IMAGES[:30]
    for seed in (0, 1):  # with the same test images by chance, so that nothing else tells them apart
        write_run(
            tmp_path / f"old{seed}",
            images,
            seed=seed,
            changed=["data.split=random"],
            data={"split": "random"},
        )
    comparison = compare(find_runs([tmp_path]))
    assert len(comparison.recipes) == 2
    assert any(warning.startswith("Other validation images") for warning in comparison.warnings)
    for seed in (2, 3):
        changed = ["data.split=random", "data.split_seed=0"]
        write_run(tmp_path / f"new{seed}", images, seed=seed, changed=changed, data={"split": "random"})
        shutil.rmtree(tmp_path / f"old{seed - 2}")
    comparison = compare(find_runs([tmp_path]))
    assert [recipe.seeds for recipe in comparison.recipes] == [[2, 3]]
    assert not any(warning.startswith("Other validation images") for warning in comparison.warnings)


def test_other_test_images_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", IMAGES[:50], val=0.95)
    assert "no two of the 2 runs" in error_message(
        capsys, tmp_path, write_run(tmp_path / "b", IMAGES, val=0.9)
    )
    write_run(tmp_path / "c", IMAGES, val=0.8, changed=["optim.decoder_lr=1"])
    comparison = compare(find_runs([tmp_path]))
    assert comparison.reference.first.folder.name == "b"
    assert [comparison.verdict(recipe) for recipe in comparison.recipes][::2] == [
        "other test images: not compared",
        "not distinguishable from the best: +0.000 (+0.000 to +0.000)",
    ]
    assert any(output.startswith("Other test images: #1.") for output in comparison.warnings)


def test_single_test_image_has_no_intervals(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a", [0.9], val=0.9)
    write_run(tmp_path / "runs/b", [0.7], val=0.8, changed=["optim.decoder_lr=1"])
    cli.main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-pictures"])
    best, other = table(tmp_path / "out")
    assert best["test/dice_low"] == "" and other["difference_low"] == ""
    assert other["verdict"] == "worse by 0.200 on 1 test image, too few to tell a difference from chance"
    assert "no intervals" in (tmp_path / "out/MODEL_CARD.md").read_text()


@pytest.mark.parametrize("images", [4, 6])
def test_verdict_agrees_with_interval_and_names_too_few_images(tmp_path: Path, images: int) -> None:
    loss = np.array([0.05, 0.3, 0.02, 0.1, 0.2, 0.06])[:images]
    write_run(tmp_path / "runs/a", IMAGES[:images], val=0.9)
    write_run(tmp_path / "runs/b", IMAGES[:images] - loss, val=0.8, changed=["optim.decoder_lr=1"])
    write_run(tmp_path / "runs/c", IMAGES[:images] - loss / 2, val=0.7, changed=["optim.decoder_lr=2"])
    cli.main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-pictures"])
    few = compare(find_runs([tmp_path / "runs"]))
    assert all(
        difference.interval is None and difference.p >= 0.05 for difference in few.differences.values()
    )
    assert any("7 or more are needed" in warning for warning in few.warnings)  # 4 / 2^7 = .031
    assert all(row["difference_low"] == "" for row in table(tmp_path / "out"))
    shutil.rmtree(tmp_path / "runs/c")
    alone = compare(find_runs([tmp_path / "runs"])).differences[2]
    assert (alone.interval is None) == (images == 4)
    if alone.interval is not None:  # the sum of no other signs is as large: p = 2 / 2^6
        assert alone.p == 2 / 64 and alone.interval == pytest.approx((-0.3, -0.02))


def test_compare_refuses_fewer_than_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no finished run found" in error_message(capsys, tmp_path)
    run = write_run(tmp_path / "a", IMAGES)
    output = error_message(capsys, tmp_path)
    assert "only finished run" in output and "polyp compare --card" in output
    write_run(tmp_path / "b", IMAGES)
    (tmp_path / "b/metrics.json").unlink()
    assert "1 unfinished" in error_message(capsys, tmp_path)
    assert "is not a folder" in error_message(capsys, tmp_path / "nowhere")
    cli.main(["compare", "--card", str(run), "--out", str(tmp_path / "out")])
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["MODEL_CARD.md"]


@pytest.mark.parametrize("content", ["{", "[]", '{"test": {"dice": 0.5}}'])
def test_compare_refuses_a_damaged_metrics_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    run = write_run(tmp_path / "a", IMAGES)
    (run / "metrics.json").write_text(content)
    assert f"{run / 'metrics.json'} is damaged" in error_message(capsys, run)


def damage_file(file: Path, damage: str) -> None:
    content = file.read_bytes()
    file.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "NUL": bytes(len(content))}[damage])


@pytest.mark.parametrize("damage", ["empty", "cut", "NUL"])
def test_compare_leaves_out_damaged_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    for number, name in enumerate(("a", "b", "metrics.json", "config.yaml", "per_image.csv")):
        run = write_run(
            tmp_path / "runs" / name, IMAGES, val=0.9 - number / 10, changed=[f"optim.decoder_lr={number}"]
        )
        if (run / name).is_file():
            damage_file(run / name, damage)
    with SummaryWriter(str(tmp_path / "runs/a")) as writer:
        writer.add_scalar("val/dice", 0.5, 0)
    (events,) = (tmp_path / "runs/a").glob("events*")
    damage_file(events, damage)
    gone = write_run(
        tmp_path / "runs/gone", IMAGES, best={"monitor": "val/iou"}
    )  # and its curves, so that it has no rank
    cli.main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    assert [row["runs"].rpartition("/")[2] for row in table(tmp_path / "out")] == ["a", "b"]
    output, page = capsys.readouterr().out, (tmp_path / "out/compare.html").read_text()
    left_out = [line for line in output.splitlines() if line.startswith("left out")]
    assert len(left_out) == 4
    for name in ("metrics.json", "config.yaml", "per_image.csv"):
        file = tmp_path / "runs" / name / name
        assert any(f"{file} is damaged" in line for line in left_out) and f"{file} is damaged" in page
        assert f"{file} is damaged" in error_message(capsys, tmp_path / "runs", file.parent)
    assert any("gone" in line for line in left_out) and gone.name in page


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("metrics.json", '"seconds": 50.0', '"seconds": 0'),
        ("metrics.json", '"dice": 0.', '"dice": NaN, "old": 0.'),
        ("metrics.json", '"epochs": 2', '"epochs": "two"'),
        ("metrics.json", '"device": "a CPU", ', ""),
        ("config.yaml", "seed: 0", "seed: zero"),
        ("config.yaml", "model:", "model: unet\nold:"),
        ("per_image.csv", "image_3,50", "image_3,inf"),
    ],
)
def test_compare_refuses_impossible_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, before: str, after: str
) -> None:
    run = write_run(tmp_path / "a", IMAGES)
    text = (run / file).read_text()
    (run / file).write_text(text.replace(before, after, 1))
    assert (run / file).read_text() != text
    assert f"{run / file} is damaged" in error_message(capsys, run)


def test_compare_refuses_missing_or_damaged_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", IMAGES)
    file = write_run(tmp_path / "b", IMAGES) / "per_image.csv"
    rows = file.read_text().splitlines()
    for damaged in (
        rows[:-3],
        [*rows[:-1], rows[-1].replace("image", "x") + ",1"],
        [*rows[:-1], "image_59,1,2"],
        ["a"],
    ):
        file.write_text("\n".join(damaged))
        assert f"{file} is damaged" in error_message(capsys, file.parent)
    file.write_text("\n".join([*rows[:-1], re.sub(r"0\.\d+", "nan", rows[-1])]))
    assert f"{file} is damaged" in error_message(capsys, file.parent)
    file.unlink()
    assert f"{tmp_path / 'b'} has no per_image.csv" in error_message(capsys, file.parent)
    (tmp_path / "b/config.yaml").write_text("a: [")
    assert "config.yaml is damaged" in error_message(capsys, file.parent)
    (tmp_path / "b/config.yaml").write_text("data: {}\nmodel: {}\n")
    assert "config.yaml is damaged" in error_message(capsys, file.parent)


def test_compare_refuses_an_unreadable_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", denied)
    assert f"{tmp_path} cannot be read (Permission denied)" in error_message(capsys, tmp_path)


def test_compare_refuses_to_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write_run(tmp_path / "runs" / name, IMAGES, changed=[f"model.loss={name}"])
    arguments = ["compare", str(tmp_path / "runs"), "--no-pictures", "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("precious")
    assert "--overwrite" in error_message(capsys, *arguments[1:])
    cli.main([*arguments, "--overwrite"])
    cli.main([*arguments, "--overwrite"])
    assert (tmp_path / "out/mine").read_text() == "precious"
    assert error_message(capsys, *arguments[1:], "--overwrite", "--card", tmp_path / "runs").endswith(
        "give the folder of one"
    )


def test_overwrite_keeps_pictures_of_others(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path / "runs" / name, IMAGES, changed=[f"model.loss={name}"])
    run = tmp_path / "runs/a"
    (run / "pictures").mkdir()
    (run / "pictures/0_a.png").write_text("precious")
    arguments = ["compare", "--card", str(run), "--out", str(run), "--overwrite"]
    for folders in ([], [], [str(tmp_path / "runs")], [str(tmp_path / "runs")]):
        cli.main([*arguments, *folders, "--no-pictures"])
        assert (run / "pictures/0_a.png").read_text() == "precious"


def test_comparing_needs_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "a", IMAGES)
    write_run(tmp_path / "b", IMAGES, changed=["model.loss=bce"])
    code = (
        "import sys; from pathlib import Path; import polyp.commands.compare.compare;from "
        "polyp.commands.compare.read_runs import find_runs; from polyp.commands.compare.comparison import "
        f"compare;compare(find_runs([Path({str(tmp_path)!r})])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_effect_charts_group_keys_and_show_means(tmp_path: Path) -> None:
    for number in range(8):
        rates = [
            f"optim.decoder_lr={10.0**-number}",
            f"model.loss={'ab'[number % 2]}",
            f"optim.twice={number % 2}",
        ]
        write_run(tmp_path / str(number), IMAGES, val=0.9 - number / 100, changed=rates)
    effects = charts.plot_effects(compare(find_runs([tmp_path])))
    # Keys that change together share a chart.
    assert [chart.name for chart in effects] == ["effect_loss", "effect_decoder_lr"]
    loss, rate = effects
    assert "loss, twice cannot be separated" in loss.caption and "separated" not in rate.caption
    (effect,) = loss.figure.axes
    means = [text.get_text() for text in effect.texts]
    assert means == ["0.870", "0.860"]  # by hand: means of .90 .88 .86 .84 and of .89 .87 .85 .83
    assert [label.get_text() for label in effect.get_yticklabels()] == ["a", "b"]
    assert rate.figure.axes[0].get_yscale() == "log"
    assert rate.figure.axes[0].get_xlim() == effect.get_xlim()


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("better", [0, 1, 4])
def test_headline_counts_the_others(tmp_path: Path, number: int, better: int) -> None:
    write_run(tmp_path / "best", IMAGES, val=0.9)
    for other in range(number):
        noise = NOISE - NOISE.mean() if other < better else NOISE - 0.2
        write_run(tmp_path / f"{other}", IMAGES + noise, val=0.5 - other / 10, changed=[f"optim.lr={other}"])
    comparison = compare(find_runs([tmp_path]))
    assert len(comparison.ties) == min(better, number)
    subject, negation = {
        (1, 0): ("The other configuration is", ""),
        (1, 1): ("The other configuration is", "not "),
        (2, 0): ("Both other configurations are", ""),
        (2, 1): ("1 of the 2 other configurations is", "not "),
        (2, 2): ("Neither of the 2 other configurations is", ""),
        (4, 0): ("All 4 other configurations are", ""),
        (4, 1): ("1 of the 4 other configurations is", "not "),
        (4, 4): ("None of the 4 other configurations is", ""),
    }[number, min(better, number)]
    assert comparison.rivals == f"{subject} {negation}distinguishable from it on the 60 test images."


def test_texts_of_transforms_are_what_differs(tmp_path: Path) -> None:
    flip, blur = ({"_target_": f"albumentations.{name}", "p": 0.5} for name in ("HorizontalFlip", "Blur"))
    stronger = {**flip, "p": 1.0}
    assert _texts(tmp_path / "a", [flip], [flip, blur]) == ["no others", "+ Blur"]
    assert _texts(tmp_path / "b", [flip], [stronger]) == [
        "+ HorizontalFlip(p=0.5)",
        "+ HorizontalFlip(p=1.0)",
    ]
    assert _texts(tmp_path / "c", [flip], []) == ["+ HorizontalFlip", "none"]


def test_a_setting_without_a_value_is_none_in_labels(tmp_path: Path) -> None:
    for channels in ("null", "[8,8]"):
        changed = (f"model.decoder_channels={channels}", "optim.decoder_lr=2e-3")
        write_run(tmp_path / channels, IMAGES, 0.8, changed=changed)
    labels = {recipe.label for recipe in compare(find_runs([tmp_path])).recipes}
    assert labels == {"decoder_channels none", "decoder_channels [8, 8]"}


def _texts(folder: Path, *lists: list[dict[str, Any]]) -> list[str]:
    for number, transforms in enumerate(lists):
        write_run(
            folder / str(number),
            IMAGES,
            0.9 - number / 10,
            changed=[f"augment.transforms={json.dumps(transforms)}"],
        )
    return [recipe.texts["augment"] for recipe in compare(find_runs([folder])).recipes]


def test_costs_that_differ_have_charts_with_one_axis_of_dice(tmp_path: Path) -> None:
    for number, seconds in enumerate((50.0, 80.0, 5000.0)):
        cost = {"parameters": 2_000_000 - number, "seconds": seconds}
        changed = [f"optim.decoder_lr={number}"]
        write_run(tmp_path / str(number), IMAGES, val=0.9 - number / 10, changed=changed, **cost)
    cost_charts = charts.plot_costs(compare(find_runs([tmp_path])))
    assert [chart.name for chart in cost_charts] == ["dice_against_parameters", "dice_against_minutes"]
    parameters, minutes = (chart.figure.axes[0] for chart in cost_charts)
    assert parameters.get_ylim() == minutes.get_ylim()
    assert (parameters.get_xscale(), minutes.get_xscale()) == ("linear", "log")


def test_curves_are_drawn_where_only_unfinished_runs_have_them(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b", "begun")):
        write_run(tmp_path / name, IMAGES, changed=[f"optim.decoder_lr={number}"])
    (tmp_path / "begun/metrics.json").unlink()
    with SummaryWriter(str(tmp_path / "begun")) as writer:
        writer.add_scalar("val/dice", 0.5, 0)
    curves = charts.plot_curves(compare(find_runs([tmp_path])))
    assert [chart.name for chart in curves] == ["loss", "dice"]


def test_tiles_accept_formula_signs_in_names(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    charts.draw_tiles([(picture, "a$x_{$")], "é$x_{$0: polyp").savefig(tmp_path / "odd.png")  # no formula


def test_pareto_front_by_hand() -> None:
    assert charts.find_pareto_front([(1, 0.5), (2, 0.4), (2, 0.7), (3, 0.7), (4, 0.9)]) == [0, 2, 4]


def test_folds_are_pooled_over_all_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(2).uniform(0.5, 0.9, 62)  # folds of unequal sizes
    worse = images - 0.05 + np.random.default_rng(3).normal(0, 0.03, 62)
    write_folds(tmp_path / "runs/a", images, [0.9, 0.8, 0.7, 0.85, 0.75])
    write_folds(
        tmp_path / "runs/b", worse, [0.89, 0.79, 0.69, 0.84, 0.74], changed=["model.encoder=resnet18"]
    )
    cli.main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-pictures"])
    best, other = table(tmp_path / "out")
    means = [images[fold::5].mean() for fold in range(5)]
    assert float(best["test/dice"]) == pytest.approx(images.mean()) != pytest.approx(np.mean(means))
    assert float(best["over_folds"]) == pytest.approx(np.mean(means))
    assert float(best["over_folds_sd"]) == pytest.approx(np.std(means, ddof=1))
    assert float(best["val/dice"]) == pytest.approx(0.8)
    assert (best["n"], best["folds"], best["seeds"]) == ("62", "0 1 2 3 4", "0")
    assert float(best["test/dice_low"]) < images.mean() < float(best["test/dice_high"])
    (alone,) = sign_flip_tests((worse - images)[:, None], 0.05)
    assert float(other["difference"]) == pytest.approx(alone.value)
    assert float(other["p"]) == pytest.approx(alone.p) and alone.p < 0.05
    assert other["model.encoder"] == "resnet18" and "data.fold" not in other
    text = "5 folds, n = 62 out-of-fold"
    spread = f"{np.mean(means):.3f} ± {np.std(means, ddof=1):.3f}"
    for output in (
        capsys.readouterr().out,
        (tmp_path / "out/compare.html").read_text(),
        (tmp_path / "out/MODEL_CARD.md").read_text(),
    ):
        assert text in output and spread in output
    assert "Seed noise is unknown" in (tmp_path / "out/compare.html").read_text()


def test_folds_are_no_seeds(tmp_path: Path) -> None:
    for seed, shift in enumerate((0.0, 0.03)):
        write_folds(tmp_path / f"a{seed}", IMAGES + shift, [0.9, 0.5, 0.7], seed=seed)
    write_folds(tmp_path / "b", IMAGES - 0.1, [0.4, 0.4, 0.4], changed=["model.loss=bce"])
    comparison = compare(find_runs([tmp_path]))
    first, second = comparison.recipes
    assert (first.seeds, first.folds, len(first.runs)) == ([0, 1], [0, 1, 2], 6)
    # By hand: the sd of two numbers 0.03 apart, whatever the folds
    assert comparison.noise == (pytest.approx(0.03 / 2**0.5), 1)
    assert first.dice == pytest.approx((IMAGES + 0.015)[[int(stem[6:]) for stem in first.stems]])
    assert comparison.differences[second.number].value == pytest.approx(-0.115)


def test_folds_of_another_division_or_missing_are_not_compared(tmp_path: Path) -> None:
    vals = [0.9, 0.8, 0.7]
    write_folds(tmp_path / "a", IMAGES, vals)
    write_folds(tmp_path / "b", IMAGES, np.subtract(vals, 0.1), changed=["model.loss=bce"])
    write_folds(tmp_path / "other", IMAGES, vals, shift=1, changed=["data.group=patient"])
    write_folds(tmp_path / "missing", IMAGES, vals, only=[0, 2], changed=["model.loss=dice"])
    write_run(tmp_path / "official", IMAGES, val=0.9, changed=["model.loss=focal"])
    comparison = compare(find_runs([tmp_path]))
    names = {recipe.first.folder.parent.name: recipe for recipe in comparison.recipes}
    assert [recipe.first.folder.parent.name for recipe in comparison.comparable] == ["a", "b"]
    for name in ("other", "missing"):
        assert comparison.verdict(names[name]) == "other test images: not compared"
    assert [recipe.missing_folds for recipe in comparison.recipes if recipe.missing_folds] == [[1]]
    number = names["missing"].number
    assert any(text.startswith(f"Missing folds: 1 of #{number}.") for text in comparison.warnings)
    assert names["missing"].test_images == "2 of 3 folds, n = 40 out-of-fold"


def test_runs_of_one_configuration_with_another_division_are_not_pooled(tmp_path: Path) -> None:
    write_folds(tmp_path / "a", IMAGES, [0.9, 0.8, 0.7], only=[0, 1])
    write_folds(tmp_path / "b", IMAGES, [0.9, 0.8, 0.7], only=[2], shift=1)
    write_folds(tmp_path / "c", IMAGES, [0.9, 0.8, 0.7], only=[2])
    comparison = compare(find_runs([tmp_path]))
    assert sorted((recipe.folds, recipe.missing_folds) for recipe in comparison.recipes) == [
        ([0, 1, 2], []),
        ([2], [0, 1]),
    ]


def test_sources_have_their_own_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = ["CVC", "=1+1"] * 30
    for name, shift in (("a", 0.0), ("b", -0.1)):
        write_run(tmp_path / "runs" / name, IMAGES + shift, 0.9 + shift, changed=[f"model.loss={name}"],
                  sources=sources)  # fmt: skip
    write_run(tmp_path / "runs/old", IMAGES, 0.1)
    cli.main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-pictures"])
    first, second, old = table(tmp_path / "out")
    for row, shift in ((first, 0.0), (second, -0.1)):
        assert float(row["test/dice CVC"]) == pytest.approx(IMAGES[::2].mean() + shift)
        assert float(row["test/dice =1+1"]) == pytest.approx(IMAGES[1::2].mean() + shift)
        assert (
            float(row["test/dice CVC_low"]) < float(row["test/dice CVC"]) < float(row["test/dice CVC_high"])
        )
    assert old["test/dice CVC"] == ""
    value = f"{IMAGES[::2].mean():.3f} ("
    page, card = ((tmp_path / "out" / name).read_text() for name in ("compare.html", "MODEL_CARD.md"))
    assert "CVC (30 images)" in page and value in page
    assert f"source: CVC | 30 | {IMAGES[::2].mean():.3f}" in card
    assert "CVC (30 images)" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_of_a_real_sweep(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in ("FAILURES", "DISAGREEMENTS", "VARIETY"):
        monkeypatch.setattr(examples, number, 1)
    rates = "optim.decoder_lr=1e-3,1e-4"
    outputs = train("-m", *SMALL, "data.count=50", rates, "+trainer.limit_train_batches=2")
    out = tmp_path / "out"
    cli.main(["compare", str(outputs), "--out", str(out)])
    page = (out / "compare.html").read_text()
    assert "http://" not in page and "https://" not in page and page.count("<img") >= 8
    addresses = re.findall(r'(?:src|href)="([^"#][^"]*)', page)
    files = [unquote(address) for address in addresses if not address.startswith(("data:image/", "data:app"))]
    assert files and all((out / file).is_file() for file in files)  # images without a picture on the page
    pictures = {file.name for file in (out / "pictures").iterdir()}
    assert all(name.startswith("image_") for name in pictures) and len(pictures) == page.count("<h3 id=") > 1
    for chart in ("loss", "dice", "effect_decoder_lr", "images_1_2"):
        assert f'download="{chart}.pdf"' in page
    first = table(out)[0]
    (run,) = [Path(row["runs"]) for row in (first,)]
    assert json.loads((run / "metrics.json").read_text())["test"]["dice"] == pytest.approx(
        float(first["test/dice"])
    )
    shutil.rmtree(run / "checkpoints")
    comparison = compare(find_runs([outputs]))
    with pytest.raises(InputError, match=r"checkpoints/best\.ckpt"):
        examples.draw_examples(comparison, comparison.recipes, examples.find_pairs(comparison))


def test_stored_configuration_is_not_resolved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    for number, name in enumerate("ab"):
        run = write_run(tmp_path / "runs" / name, IMAGES, changed=[f"optim.decoder_lr={number}"])
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["model"] |= {"encoder": "${oc.env:SECRET}", "extra": "${oc.env:SECRET}" + name}
        config["data"]["root"] = "${oc.env:SECRET}"
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    cli.main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    written = "".join(
        file.read_text(errors="ignore") for file in (tmp_path / "out").rglob("*") if file.is_file()
    )
    assert "hunter2" not in written + capsys.readouterr().out
    assert "${oc.env:SECRET}" in written
    expected_error = pytest.raises(SystemExit)
    with expected_error as error:
        cli.main(["evaluate", str(tmp_path / "runs/a")])
    assert "hunter2" not in str(error.value)


def test_csv_cells_are_no_formulas(tmp_path: Path) -> None:
    stems = ["=1+1", "@x", "-1", "'=quoted", "'quoted", "plain"]
    for name, loss in (("a", "+x"), ("b", "=cmd()")):
        run = write_run(tmp_path / "runs" / name, IMAGES[:6], changed=[f"model.loss='{loss}'"])
        rows = [{"stem": stem} | row for stem, row in zip(stems, runs_rows(run), strict=True)]
        RunFolder(run).write_rows(rows)
        with (run / "per_image.csv").open(newline="") as file:
            assert not any(row["stem"].startswith(("=", "+", "-", "@")) for row in csv.DictReader(file))
    runs = find_runs([tmp_path / "runs"])
    assert all(sorted(run.scores.index) == sorted(stems) for run in runs)
    cli.main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-pictures"])
    assert sorted(row["model.loss"] for row in table(tmp_path / "out")) == ["'+x", "'=cmd()"]


def runs_rows(run: Path) -> list[dict[str, float]]:
    """The numbers of per_image.csv without the stems."""
    with (run / "per_image.csv").open(newline="") as file:
        return [
            {key: float(value) for key, value in row.items() if key != "stem"} for row in csv.DictReader(file)
        ]


def write_evaluation(run: Path, name: str, dice: np.ndarray, first: int = 0, **metrics: Any) -> None:
    """An evaluation of a run on images of these numbers, as far as comparing reads it."""
    folder = write_run(run / "evaluations" / name, dice, numbers=range(first, first + len(dice)))
    (folder / "config.yaml").unlink()  # it is no run
    content = {
        **{"images": "test", "normal": False, "n": len(dice), "models": ["best.ckpt"], "threshold": 0.5},
        "tta": {"flips": False, "scales": [1.0]},
    }
    (folder / "metrics.json").write_text(json.dumps(content | metrics))


def test_evaluations_are_compared_by_test_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, out = tmp_path / "sweep", tmp_path / "out"
    best = write_run(sweep / "b", IMAGES, 0.9)
    other = write_run(sweep / "a", IMAGES, 0.8, changed=["optim.decoder_lr=1e-4"])
    flips = IMAGES + 0.02 + NOISE - NOISE.mean()
    write_evaluation(best, "test", IMAGES)
    write_evaluation(best, "test_tta", flips, tta={"flips": True, "scales": [1.0]})
    write_evaluation(sweep, "both", IMAGES, models=["a.ckpt", "b.ckpt"])
    write_evaluation(other, "CVC", IMAGES[:20] - 0.1, 100, images="CVC")
    write_evaluation(best, "CVC", IMAGES[:20], 100, images="CVC", training_images={"found": 3})
    write_evaluation(best, "normal", IMAGES, images="normal", normal=True)
    write_evaluation(best, "broken", IMAGES, n=7)
    cli.main(["compare", str(sweep), "--out", str(out), "--no-pictures"])
    with (out / "evaluations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sets = {
        images: [row for row in rows if row["images"] == images] for images in {r["images"] for r in rows}
    }
    own, foreign = sets["test, 60 images"], sets["CVC, 20 images"]
    assert [Path(row["run"]).name for row in own] == ["b", "b", "a", "sweep"]
    assert "flips" in own[1]["prediction"] and "2 models" in own[3]["prediction"]
    assert own[0]["difference"] == "" and float(own[1]["difference"]) == pytest.approx(0.02)
    (expected,) = sign_flip_tests(np.stack([flips - IMAGES], axis=1), 0.05 / 3)  # three comparisons
    assert float(own[1]["p"]) == pytest.approx(3 * expected.p, abs=0.001) and own[1]["verdict"] == "better"
    assert [Path(row["run"]).name for row in foreign] == ["b", "a"] and "3 of the images" in foreign[0][
        "remark"
    ]
    assert float(foreign[1]["difference"]) == pytest.approx(-0.1) and foreign[1]["verdict"] == "worse"
    assert "broken: 60 images instead of 7" in capsys.readouterr().out
    assert "CVC, 20 images</h3>" in (out / "compare.html").read_text()
