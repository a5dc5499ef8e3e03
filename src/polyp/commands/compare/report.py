"""The result of a comparison: the table, the terminal, and the page with charts and pictures."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rich.markup import escape

from polyp import files, terminal
from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.recipes import Recipe, format_setting, shorten_keys
from polyp.errors import InputError, printable
from polyp.report.tables import Column, Table, count, format_mean, format_p

PICTURES_FOLDER = "pictures"
BY_SOURCE = "Test Dice by source (95 %)"
RANK = Column("rank", "", lambda row: f"#{row['rank']}", "right")

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

if TYPE_CHECKING:
    from polyp.report.html import Number, Page


def build_table(comparison: Comparison) -> Table:
    """The table of a comparison: a row for each recipe, the best by validation first."""
    has_seeds = any(len(recipe.seeds) > 1 for recipe in comparison.recipes)
    dice = "out-of-fold Dice (95 %)" if comparison.has_folds else "test Dice (95 %)"
    columns = [
        RANK,
        *build_setting_columns(comparison.keys),
        *[Column("seeds", format=lambda row: str(len(row["seeds"].split())))] * has_seeds,
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
    folds = {}
    if comparison.has_folds:
        mean, deviation = recipe.over_folds or (None, None)
        folds = {"folds": " ".join(map(str, recipe.folds)), "over_folds": mean, "over_folds_sd": deviation}
    sources = {
        f"test/dice {name}{end}": value
        for name, numbers in recipe.sources.items()
        for end, value in numbers.items()
    }
    return {
        "rank": recipe.number,
        **{key: recipe.values.get(key) for key in comparison.keys},
        "seeds": " ".join(map(str, recipe.seeds)),
        **folds,
        "val/dice": recipe.val,
        "val/dice_sd": recipe.deviations.get("val/dice"),
        "test/dice": recipe.means["test/dice"],
        "test/dice_sd": recipe.deviations.get("test/dice"),
        "test/dice_low": low,
        "test/dice_high": high,
        "n": len(recipe.stems),
        **sources,
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
    """Test Dice by source, a row for each recipe with several sources."""
    columns = {}
    for recipe in reversed(comparison.recipes):
        for name, numbers in recipe.sources.items():
            key, label = f"test/dice {name}", f"{printable(name)} ({numbers['_n']} images)"
            columns[key] = Column(key, label, partial(format_mean, name=key))
    return Table([row for row in table.rows if columns.keys() & row.keys()], [RANK, *columns.values()])


def build_setting_columns(keys: Sequence[str], optional: bool = False) -> list[Column]:
    """A column for each setting."""

    def format_cell(row: Mapping[str, Any], key: str) -> str:
        return format_setting(row[key])

    names = shorten_keys(keys).items()
    return [Column(key, name, partial(format_cell, key=key), optional=optional) for key, name in names]


def print_comparison(comparison: Comparison, table: Table, all_columns: bool) -> None:
    """Print the table of `build_table`, the result, warnings and notes; `all_columns` ignores the width."""
    best = comparison.reference.number
    short = table if all_columns else _build_short_table(comparison, table)
    short.print(bold=lambda row: row["rank"] == best, fit=not all_columns, option="--all-columns")
    console = terminal.console()
    if (by_source := build_source_table(comparison, table)).rows:
        console.print(f"\n{BY_SOURCE}")
        by_source.print()
    console.print(f"\n[bold]{escape(comparison.headline)}[/]")
    for text in comparison.warnings:
        if text not in comparison.headline:
            console.print(f"[bold yellow]warning[/] {escape(text)}")
    for text in comparison.notes:
        console.print(escape(text))
    for run in comparison.unfinished:
        console.print(f"unfinished {escape(run.name)}: {escape(run.progress)}")
    for run in comparison.damaged:
        console.print(f"[bold yellow]left out[/] {escape(run.damage)}")


def _build_short_table(comparison: Comparison, table: Table) -> Table:
    """The most important columns, then the other columns of the table as far as they fit.

    Of keys that always change together only one is shown. Keys that most recipes have come first.
    """
    recipes = comparison.recipes
    keys = [group[0] for group in comparison.key_groups]
    keys.sort(key=lambda key: -sum(key in recipe.values for recipe in recipes))
    columns = [
        Column("rank", "", lambda row: f"#{row['rank']}"),
        *build_setting_columns(keys, optional=True),
        Column("val/dice", "val Dice", ".3f"),
        Column("test/dice", "test Dice (95 %)", partial(format_mean, name="test/dice", short=True)),
        Column("verdict", format=lambda row: comparison.short_verdict(recipes[row["rank"] - 1])),
    ]
    names = {column.name for column in columns}
    columns += [replace(column, optional=True) for column in table.columns if column.name not in names]
    return Table(table.rows, columns)


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


def _list_numbers(comparison: Comparison) -> "list[Number]":
    from polyp.report.html import Number  # imports matplotlib

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


def _add_figures(page: "Page", comparison: Comparison, folder: Path, root: str | None) -> None:
    from polyp.commands.compare import charts, examples  # import matplotlib and torch
    from polyp.report.charts import render_file
    from polyp.report.pictures import LEGEND  # imports torch

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
