"""The result of a comparison as a table and in the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rich.markup import escape

from polyp import terminal
from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.recipes import Recipe, format_setting, shorten_keys
from polyp.errors import printable
from polyp.report.tables import Column, Table, format_mean, format_p

BY_SOURCE = "Test Dice by source (95 %)"
RANK = Column("rank", "", lambda row: f"#{row['rank']}", "right")


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
