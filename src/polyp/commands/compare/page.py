"""What a comparison shows: a table (in the terminal, as CSV and on the page), charts and pictures."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.recipes import Recipe, format_setting, shorten_keys
from polyp.errors import InputError, printable
from polyp.report.tables import Column, Table, format_mean

PICTURES_FOLDER = "pictures"
BY_SOURCE = "Test Dice by source (95 %)"

if TYPE_CHECKING:
    from polyp.report.html import Page


def build_table(comparison: Comparison) -> Table:
    """The table of a comparison: a row for each recipe, best validation first."""
    settings = shorten_keys(comparison.keys).items()
    several_seeds = any(len(recipe.seeds) > 1 for recipe in comparison.recipes)
    dice = "out-of-fold Dice (95 %)" if comparison.has_folds else "test Dice (95 %)"
    columns = [
        Column("rank", "", lambda row: f"#{row['rank']}"),
        *(Column(key, name, partial(_format_setting, key=key)) for key, name in settings),
        *[Column("seeds", format=lambda row: str(len(row["seeds"].split())))] * several_seeds,
        *[Column("folds", format=lambda row: str(len(row["folds"].split())))] * comparison.has_folds,
        Column("val/dice", "val Dice", partial(format_mean, name="val/dice")),
        Column("test/dice", dice, partial(format_mean, name="test/dice")),
        *[Column("over_folds", "over folds", partial(format_mean, name="over_folds"))] * comparison.has_folds,
        *[Column("test/false_alarms", "false alarms", ".1%")] * any(run.normal for run in comparison.runs),
        Column("p", format=_format_p),
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
    return Table(rows, [Column("rank", "", lambda row: f"#{row['rank']}"), *columns])


def _format_setting(row: Mapping[str, Any], key: str) -> str:
    return format_setting(row[key])


def _format_p(row: Mapping[str, Any]) -> str:
    p = row["p"]
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def print_comparison(comparison: Comparison, table: Table) -> None:
    """Print the table and what to know about it to the terminal."""
    console = Console(highlight=False, soft_wrap=True)
    table.print(bold=lambda row: row["rank"] == comparison.reference.number)
    if (by_source := build_source_table(comparison, table)).rows:
        console.print(f"\n{BY_SOURCE}")
        by_source.print()
    console.print(f"\n[bold]{escape(comparison.headline)}[/]")
    for text in comparison.warnings:
        console.print(f"[bold yellow]warning[/] {escape(text)}")
    for text in comparison.notes:
        console.print(escape(text))
    for run in comparison.unfinished:
        console.print(f"unfinished {escape(run.name)}: {escape(run.progress)}")
    for run in comparison.damaged:
        console.print(f"[bold yellow]left out[/] {escape(run.damage)}")


def write_page(comparison: Comparison, table: Table, file: Path, root: str | None, pictures: bool) -> None:
    """Write the page, and its pictures as files beside it.

    Args:
        comparison: the subject.
        table: see `build_table`.
        file: where to write it.
        root: where the data are if they have moved.
        pictures: draw charts and predictions.
    """
    from polyp.report.html import Page  # imports matplotlib

    page = Page("Runs compared", comparison.headline)
    counts = f"{len(comparison.runs)} finished runs of {len(comparison.recipes)} configurations"
    page.section("Table", f"{counts}, best validation first; {comparison.reference.test_images}.")
    for text in comparison.warnings:
        page.text(text, "warning")
    page.table(table)
    if (by_source := build_source_table(comparison, table)).rows:
        page.heading(BY_SOURCE)
        page.table(by_source)
    for text in comparison.notes:
        page.text(text)
    if comparison.unfinished:
        page.heading("Unfinished")
        page.table([{"run": run.name, "progress": run.progress} for run in comparison.unfinished])
    if comparison.damaged:
        page.heading("Left out")
        page.table([{"run": run.name, "reason": run.damage} for run in comparison.damaged])
    if pictures:
        _add_charts(page, comparison, file.parent / PICTURES_FOLDER)
        _add_examples(page, comparison, file.parent / PICTURES_FOLDER, root)
    page.section("How to read it")
    page.include("compare_method.html")
    page.heading("Runs")
    rows = [
        {"": f"#{recipe.number}", "run": run.name, "seed": run.seed, "fold": run.fold, **run.numbers}
        for recipe in comparison.recipes
        for run in recipe.runs
    ]
    numbers = Column("val/dice", "val Dice", ".3f"), Column("test/dice", "test Dice", ".3f")
    fold = [Column("fold")] * comparison.has_folds
    page.table(Table(rows, [Column(""), Column("run"), Column("seed"), *fold, *numbers]))
    page.write(file)


def _add_charts(page: "Page", comparison: Comparison, folder: Path) -> None:
    from polyp.commands.compare import charts  # imports matplotlib

    sections = {
        "Curves": charts.plot_curves(comparison),
        "Dice and what it costs": charts.plot_costs(comparison),
        "What each hyperparameter does": charts.plot_effects(comparison),
    }
    for heading, figures in sections.items():
        if figures:
            page.section(heading)
            page.charts([(figure, text, folder / f"{name}.png") for name, (figure, text) in figures.items()])
        elif heading == "Curves":
            page.section(heading)
            page.text("No run has TensorBoard files any more.", "faint")


def _add_examples(page: "Page", comparison: Comparison, folder: Path, root: str | None) -> None:
    from polyp.commands.compare import charts, examples  # import matplotlib and torch

    page.section(
        "The same test images",
        "Chosen for the variety of their polyps, then for what the runs disagree on. Green: truth. Yellow: "
        "prediction. The number is the Dice of the image.",
    )
    recipes, total = examples.choose_recipes(comparison), len(comparison.recipes)
    try:
        images = examples.draw_examples(comparison, recipes, root)
    except InputError as error:
        text = f"No pictures of test images: {error}. --root FOLDER says where images/ and masks/ are."
        page.text(text, "warning")
        Console(highlight=False, soft_wrap=True).print(f"[bold yellow]note[/] {escape(text)}")
        return
    if len(recipes) < total:
        page.text(f"{len(recipes)} of {total}: the best by validation, and others spread over the ranking.")
    for number, image in enumerate(images, 1):
        page.heading(image.title)
        page.gallery(image.tiles, small=True)
        file = folder / f"image_{number}_{image.stem.replace('/', '_')}.png"
        charts.draw_tiles(image.tiles, image.title).savefig(file, dpi=144)
