"""What a comparison says in the terminal."""

from dataclasses import replace
from functools import partial

from rich.markup import escape

from polyp import terminal
from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.page import BY_SOURCE, build_source_table, format_cell
from polyp.commands.compare.recipes import shorten_keys
from polyp.report.tables import Column, Table, format_mean


def print_comparison(comparison: Comparison, table: Table, all_columns: bool) -> None:
    """Print the table and what to know about it.

    Args:
        comparison: the subject.
        table: see `polyp.commands.compare.page.build_table`.
        all_columns: print its columns, whatever the width of the terminal.
    """
    shown = table if all_columns else _build_short_table(comparison, table)
    shown.print(
        bold=lambda row: row["rank"] == comparison.reference.number,
        fit=not all_columns,
        option="--all-columns",
    )
    console = terminal.console()
    if (by_source := build_source_table(comparison, table)).rows:
        console.print(f"\n{BY_SOURCE}")
        by_source.print()
    console.print(f"\n[bold]{escape(comparison.headline)}[/]")
    for text in (text for text in comparison.warnings if text not in comparison.headline):
        console.print(f"[bold yellow]warning[/] {escape(text)}")
    for text in comparison.notes:
        console.print(escape(text))
    for run in comparison.unfinished:
        console.print(f"unfinished {escape(run.name)}: {escape(run.progress)}")
    for run in comparison.damaged:
        console.print(f"[bold yellow]left out[/] {escape(run.damage)}")


def _build_short_table(comparison: Comparison, table: Table) -> Table:
    """What matters first: rank, settings, validation, test and verdict, then all others of its columns.

    Of keys that always change together one is shown, and first those that most recipes have.
    """
    recipes = comparison.recipes
    keys = sorted(
        (group[0] for group in comparison.varying),
        key=lambda key: -sum(key in recipe.values for recipe in recipes),
    )
    first = [
        Column("rank", "", lambda row: f"#{row['rank']}"),
        *(
            Column(key, name, partial(format_cell, key=key), optional=True)
            for key, name in shorten_keys(keys).items()
        ),
        Column("val/dice", "val Dice", ".3f"),
        Column("test/dice", "test Dice (95 %)", partial(format_mean, name="test/dice", short=True)),
        Column("verdict", format=lambda row: comparison.short_verdict(recipes[row["rank"] - 1])),
    ]
    names = {column.name for column in first}
    others = [replace(column, optional=True) for column in table.columns if column.name not in names]
    return Table(table.rows, [*first, *others])
