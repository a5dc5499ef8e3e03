"""The page of a comparison, with charts and pictures."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from urllib.parse import quote

from polyp import files
from polyp.commands.compare import charts, examples
from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.recipes import shorten_keys
from polyp.commands.compare.summary import BY_SOURCE, RANK, build_source_table
from polyp.errors import InputError
from polyp.report.charts import render_file
from polyp.report.html import Number, Page
from polyp.report.pictures import LEGEND
from polyp.report.tables import Column, Table, count

PICTURES_FOLDER = "pictures"

EVALUATIONS_INTRO = (
    "What polyp evaluate has found, by test set. Differences in Dice are to the first row, on the same "
    "images; the 95 % intervals hold for all rows of a table together, for other images, not for other seeds."
)

HINTS = {
    "val/dice": "Mean over the validation images, at network resolution; the mean over seeds and folds.",
    "test/dice": "2 TP / (2 TP + FP + FN) of each test image at original resolution, mean over the images; "
    "the interval is a bootstrap over the images.",
    "p": "Of no difference in test Dice to the best, corrected for the number of comparisons.",
    "verdict": "The paired difference in test Dice to the best by validation, with its 95 % interval for all "
    "comparisons together. Not distinguishable is not the same as equal.",
    "gmacs": "10^9 multiply-accumulates for one image at the network's size.",
    "images_per_second": "Training images per second of the whole run, validation included.",
}
"""The meanings of columns and numbers, shown on hover."""


def write_page(
    comparison: Comparison,
    table: Table,
    evaluations: Mapping[str, Table],
    file: Path,
    root: str | None,
    pictures: bool,
) -> None:
    """Write the page, and its pictures of test images also as files beside it.

    Args:
        table, evaluations: of `build_table` and `build_evaluation_tables`.
        root: where the data are if they have moved.
        pictures: whether to draw charts and predictions.
    """
    page = Page("Runs compared", comparison.headline)
    page.numbers(_list_numbers(comparison))
    page.section("Result")
    for text in comparison.warnings:
        page.text(text, "warning")
    page.table(_build_result_table(comparison, table))
    if pictures:
        page.charts(charts.plot_differences(comparison))
    if (by_source := build_source_table(comparison, table)).rows:
        page.heading(BY_SOURCE)
        page.table(by_source)
    for text in comparison.notes:
        page.text(text)
    if evaluations:
        page.section("Evaluations", EVALUATIONS_INTRO)
    for heading, evaluation in evaluations.items():
        page.heading(heading)
        page.table(evaluation)
    if pictures:
        _add_figures(page, comparison, file.parent / PICTURES_FOLDER, root)
    page.section(
        "Settings and runs",
        "The settings that differ, without transforms that all have; table.csv has them in full.",
    )
    settings = [{"rank": recipe.number, **recipe.texts} for recipe in comparison.recipes]
    names = shorten_keys(comparison.keys).items()
    page.table(Table(settings, [RANK, *(Column(key, name) for key, name in names)]))
    page.table(_build_run_table(comparison))
    if comparison.unfinished:
        page.heading("Unfinished")
        page.table([{"run": run.name, "progress": run.progress} for run in comparison.unfinished])
    if comparison.damaged:
        page.heading("Left out")
        page.table([{"run": run.name, "reason": run.damage} for run in comparison.damaged])
    page.section("Method")
    page.include("compare_method.html")
    page.write(file)


def _list_numbers(comparison: Comparison) -> list[Number]:
    best, rivals = comparison.reference, len(comparison.differences)
    interval = "95 %: {:.3f} to {:.3f}".format(*best.interval) if best.interval else ""
    numbers = [
        Number(f"test Dice of #{best.number}", f"{best.dice.mean():.3f}", interval, HINTS["test/dice"]),
        Number(f"validation Dice of #{best.number}", f"{best.val:.3f}", "ranks the runs", HINTS["val/dice"]),
        Number("configurations", str(len(comparison.recipes)), count(len(comparison.runs), "finished run")),
    ]
    if rivals:
        share, noun = f"{len(comparison.ties)} of {rivals}", f"other configuration{'s' * (rivals != 1)}"
        numbers.append(Number("not distinguishable", share, noun, HINTS["verdict"]))
    numbers.append(Number("test images", str(len(best.stems)), f"split {best.first.split}"))
    noise, detail = "unknown", "one seed each"
    if comparison.noise:
        noise, detail = f"{comparison.noise[0]:.3f}", "standard deviation of test Dice"
    return [*numbers, Number("noise between seeds", noise, detail)]


def _build_result_table(comparison: Comparison, table: Table) -> Table:
    """The table of the page, with the scores and the verdict first, which fit on a narrow screen."""
    labels = {recipe.number: recipe.label for recipe in comparison.recipes}
    columns = {column.name: replace(column, hint=HINTS.get(column.name, "")) for column in table.columns}
    columns["label"] = Column("label", "configuration", lambda row: labels[row["rank"]], align="left")
    names = ["rank", "label", "seeds", "folds", "val/dice", "test/dice", "over_folds", "verdict"]
    names += ["test/false_alarms", "p", "parameters", "gmacs", "minutes"]
    return Table(table.rows, [columns[name] for name in names if name in columns])


def _build_run_table(comparison: Comparison) -> Table:
    columns = [
        RANK,
        Column("run"),
        Column("seed"),
        *[Column("fold")] * comparison.has_folds,
        Column("val/dice", "val Dice", ".3f"),
        Column("test/dice", "test Dice", ".3f"),
        Column("epochs"),
        Column("minutes", format=".1f"),
        Column("images_per_second", "images/s", ".1f", hint=HINTS["images_per_second"]),
        Column("peak_memory_mb", "memory, MB", ".0f"),
    ]
    rows = [
        {"rank": recipe.number, "run": run.name, "seed": run.seed, "fold": run.fold, **run.numbers}
        for recipe in comparison.recipes
        for run in recipe.runs
    ]
    return Table(rows, columns)


def _add_figures(page: Page, comparison: Comparison, folder: Path, root: str | None) -> None:
    recipes, total = examples.choose_recipes(comparison), len(comparison.recipes)
    links: dict[str, str] = {}
    try:
        pairs = examples.find_pairs(comparison, root)
        links = {stem: quote(os.path.relpath(pair.image, folder.parent)) for stem, pair in pairs.items()}
        images, problem = examples.draw_examples(comparison, recipes, pairs), ""
    except InputError as error:
        images = []
        problem = f"No pictures of test images: {error}. --root FOLDER says where images/ and masks/ are."
        print(f"note {problem}")
    letters = dict(zip((image.stem for image in images), ascii_uppercase, strict=False))
    page.section("The same test images")
    page.charts(charts.plot_images(comparison, letters, links))
    page.text(problem, "warning")
    if images:
        page.text(
            "Failures of the best come first, then images on which the runs disagree, then other kinds."
        )
    if len(recipes) < total and images:
        page.text(f"Pictures of {len(recipes)} of {total}: the best by validation, others over the ranking.")
    for image in images:
        letter = letters[image.stem]
        page.heading(f"{letter}  {image.title}", letter)
        page.gallery(image.tiles, LEGEND, "small")
        file = folder / f"image_{letter}_{image.stem.replace('/', '_')}.png"
        files.write_bytes(file, render_file(charts.draw_tiles(image.tiles, image.title), "png"))
    if effects := charts.plot_effects(comparison):
        page.section("What each setting does")
        page.charts(effects)
    if costs := charts.plot_costs(comparison):
        page.section("Dice and what it costs")
        page.charts(costs)
    page.section("Curves")
    if curves := charts.plot_curves(comparison):
        page.charts(curves)
    else:
        page.text("No run has TensorBoard files any more.", "faint")
