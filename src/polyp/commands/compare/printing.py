"""The output of a comparison in the terminal."""

from dataclasses import replace
from functools import partial

from rich.markup import escape

from polyp import terminal
from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.page import BY_SOURCE, build_setting_columns, build_source_table
from polyp.report.tables import Column, Table, format_mean


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
