"""What a comparison shows: a table (as CSV and on the page), charts and pictures."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from polyp import files
from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.recipes import Recipe, format_setting, shorten_keys
from polyp.errors import InputError, printable
from polyp.report.tables import Column, Table, count, format_mean, format_p

PICTURES_FOLDER = "pictures"
BY_SOURCE = "Test Dice by source (95 %)"

EVALUATIONS = (
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
"""What columns and numbers of the page mean."""

if TYPE_CHECKING:
    from polyp.report.html import Number, Page


def build_table(comparison: Comparison) -> Table:
    """The table of a comparison: a row for each recipe, best validation first."""
    settings = shorten_keys(comparison.keys).items()
    several_seeds = any(len(recipe.seeds) > 1 for recipe in comparison.recipes)
    dice = "out-of-fold Dice (95 %)" if comparison.has_folds else "test Dice (95 %)"
    columns = [
        Column("rank", "", lambda row: f"#{row['rank']}", "right"),
        *(Column(key, name, partial(format_cell, key=key)) for key, name in settings),
        *[Column("seeds", format=lambda row: str(len(row["seeds"].split())))] * several_seeds,
        *[Column("folds", format=lambda row: str(len(row["folds"].split())))] * comparison.has_folds,
        Column("val/dice", "val Dice", partial(format_mean, name="val/dice")),
        Column("test/dice", dice, partial(format_mean, name="test/dice")),
        *[Column("over_folds", "over folds", partial(format_mean, name="over_folds"))] * comparison.has_folds,
        *[Column("test/false_alarms", "false alarms", ".1%")] * any(run.normal for run in comparison.runs),
        Column("p", format=format_p),
        Column("verdict", align="left"),
        Column("parameters", format=lambda row: f"{row['parameters'] / 1e6:.2f} M"),
        Column("gmacs", "GMACs", ".2f"),
        Column("peak_memory_mb", "memory, MB", ".0f"),
        Column("minutes", format=".1f"),
        Column("images_per_second", "images/s", ".1f"),
    ]
    return Table([_build_row(comparison, recipe) for recipe in comparison.recipes], columns)


def _build_row(comparison: Comparison, recipe: Recipe) -> dict[str, Any]:
    difference = comparison.differences.get(recipe.number)
    low, high = recipe.interval or (None, None)
    difference_low, difference_high = (difference.interval if difference else None) or (None, None)
    val, test = "val/dice", "test/dice"
    spread = zip(("over_folds", "over_folds_sd"), recipe.over_folds or (None, None), strict=True)
    folds = {"folds": " ".join(map(str, recipe.folds)), **dict(spread)}
    sources = recipe.sources.items()
    return {
        "rank": recipe.number,
        **{key: recipe.values.get(key) for key in comparison.keys},
        "seeds": " ".join(map(str, recipe.seeds)),
        **(folds if comparison.has_folds else {}),
        val: recipe.val,
        f"{val}_sd": recipe.deviations.get(val),
        test: recipe.means[test],
        f"{test}_sd": recipe.deviations.get(test),
        f"{test}_low": low,
        f"{test}_high": high,
        "n": len(recipe.stems),
        **{f"{test} {name}{end}": value for name, part in sources for end, value in part.items()},
        "difference": difference and difference.value,
        "difference_low": difference_low,
        "difference_high": difference_high,
        "p_images": difference and difference.images_p,
        "p": difference and difference.p,
        "seed_margin": difference and difference.margin,
        "verdict": comparison.verdict(recipe),
        "parameters": recipe.parameters,
        "gmacs": recipe.first.gmacs,
        **recipe.means,
        "runs": " ".join(run.name for run in recipe.runs),
    }


def build_source_table(comparison: Comparison, table: Table) -> Table:
    """Test Dice by source, a row for each recipe with several sources; no rows if there is none."""
    parts = {name: part for recipe in reversed(comparison.recipes) for name, part in recipe.sources.items()}
    labels = {f"test/dice {name}": f"{printable(name)} ({part['_n']} images)" for name, part in parts.items()}
    columns = [Column(key, label, partial(format_mean, name=key)) for key, label in labels.items()]
    rows = [row for row in table.rows if labels.keys() & row.keys()]
    return Table(rows, [Column("rank", "", lambda row: f"#{row['rank']}", "right"), *columns])


def format_cell(row: Mapping[str, Any], key: str) -> str:
    """The value of a setting in a row."""
    return format_setting(row[key])


def write_page(
    comparison: Comparison,
    table: Table,
    evaluations: Mapping[str, Table],
    file: Path,
    root: str | None,
    pictures: bool,
) -> None:
    """Write the page, and its pictures of test images as files beside it.

    Args:
        comparison: the subject.
        table: see `build_table`.
        evaluations: see `polyp.commands.compare.evaluations.build_evaluation_tables`.
        file: where to write it.
        root: where the data are if they have moved.
        pictures: draw charts and predictions.
    """
    from polyp.report.html import Page  # imports matplotlib

    page = Page("Runs compared", comparison.headline)
    page.numbers(_list_numbers(comparison))
    page.section("Result")
    for text in comparison.warnings:
        page.text(text, "warning")
    page.table(_build_result_table(comparison, table))
    if pictures:
        from polyp.commands.compare.charts import plot_differences  # imports matplotlib

        page.charts(plot_differences(comparison))
    if (by_source := build_source_table(comparison, table)).rows:
        page.heading(BY_SOURCE)
        page.table(by_source)
    for text in comparison.notes:
        page.text(text)
    if evaluations:
        page.section("Evaluations", EVALUATIONS)
    for heading, evaluation in evaluations.items():
        page.heading(heading)
        page.table(evaluation)
    if pictures:
        _add_figures(page, comparison, file.parent / PICTURES_FOLDER, root)
    page.section(
        "Settings and runs",
        "The settings that differ, without transforms that all have; table.csv has them in full.",
    )
    names = shorten_keys(comparison.keys).items()
    settings = [{"": f"#{recipe.number}", **recipe.texts} for recipe in comparison.recipes]
    page.table(Table(settings, [Column("", align="right"), *(Column(key, name) for key, name in names)]))
    rows = [
        {"": f"#{recipe.number}", "run": run.name, "seed": run.seed, "fold": run.fold, **run.numbers}
        for recipe in comparison.recipes
        for run in recipe.runs
    ]
    numbers = [
        Column("val/dice", "val Dice", ".3f"),
        Column("test/dice", "test Dice", ".3f"),
        Column("epochs"),
        Column("minutes", format=".1f"),
        Column("images_per_second", "images/s", ".1f", hint=HINTS["images_per_second"]),
        Column("peak_memory_mb", "memory, MB", ".0f"),
    ]
    fold = [Column("fold")] * comparison.has_folds
    page.table(Table(rows, [Column("", align="right"), Column("run"), Column("seed"), *fold, *numbers]))
    if comparison.unfinished:
        page.heading("Unfinished")
        page.table([{"run": run.name, "progress": run.progress} for run in comparison.unfinished])
    if comparison.damaged:
        page.heading("Left out")
        page.table([{"run": run.name, "reason": run.damage} for run in comparison.damaged])
    page.section("Method")
    page.include("compare_method.html")
    page.write(file)


def _list_numbers(comparison: Comparison) -> "list[Number]":
    from polyp.report.html import Number  # imports matplotlib

    best, noise, others = comparison.reference, comparison.noise, len(comparison.differences)
    interval = "95 %: {:.3f} to {:.3f}".format(*best.interval) if best.interval else ""
    return [
        Number(f"test Dice of #{best.number}", f"{best.dice.mean():.3f}", interval, HINTS["test/dice"]),
        Number(f"validation Dice of #{best.number}", f"{best.val:.3f}", "ranks the runs", HINTS["val/dice"]),
        Number("configurations", str(len(comparison.recipes)), count(len(comparison.runs), "finished run")),
        *[
            Number(
                "not distinguishable",
                f"{len(comparison.alike)} of {others}",
                f"other configuration{'s' * (others != 1)}",
                HINTS["verdict"],
            )
        ]
        * bool(others),
        Number("test images", str(len(best.stems)), f"split {best.first.split}"),
        Number(
            "noise between seeds",
            f"{noise[0]:.3f}" if noise else "unknown",
            "standard deviation of test Dice" if noise else "one seed each",
        ),
    ]


def _build_result_table(comparison: Comparison, table: Table) -> Table:
    """The table of the page: its result and verdict come before what fits beside them on a wide screen."""
    titles = {recipe.number: recipe.label for recipe in comparison.recipes}
    shown = ("test/false_alarms", "p", "parameters", "gmacs", "minutes")
    columns = {column.name: column for column in table.columns}
    first = ("rank", "seeds", "folds", "val/dice", "test/dice", "over_folds", "verdict")
    configuration = Column("title", "configuration", lambda row: titles[row["rank"]], align="left")
    order = [columns[name] for name in (*first, *shown) if name in columns]
    order = [replace(column, hint=HINTS.get(column.name, "")) for column in order]
    return Table(table.rows, [order[0], configuration, *order[1:]])


def _add_figures(page: "Page", comparison: Comparison, folder: Path, root: str | None) -> None:
    from polyp.commands.compare import charts, examples  # import matplotlib and torch
    from polyp.report.charts import render_file
    from polyp.report.pictures import LEGEND  # imports torch

    recipes, total = examples.choose_recipes(comparison), len(comparison.recipes)
    try:
        images, problem = examples.draw_examples(comparison, recipes, root), ""
    except InputError as error:
        images = []
        problem = f"No pictures of test images: {error}. --root FOLDER says where images/ and masks/ are."
        print(f"note {problem}")  # above the progress that is shown
    letters = dict(zip((image.stem for image in images), ascii_uppercase, strict=False))
    page.section("The same test images")
    page.charts(charts.plot_images(comparison, letters))
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
