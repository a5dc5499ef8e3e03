"""`polyp compare`: runs found, held against each other, and told in the terminal, a CSV, a page and a model card."""

import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from polyp import files, runs
from polyp.comparison.differences import Comparison, compare
from polyp.comparison.found import Run, find_runs
from polyp.comparison.report import as_csv, table, tell, write_page
from polyp.errors import InputError

PAGE, TABLE, CARD = "compare.html", "table.csv", "MODEL_CARD.md"

DRAWN = ("loss.png", "dice*.png", "effect_*.png", "parallel.png", "image_*.png")
"""The pictures of a comparison, which may lie among others."""


def main(
    folders: Sequence[str],
    out: str | None = None,
    card: str | None = None,
    root: str | None = None,
    overwrite: bool = False,
    pictures: bool = True,
) -> Path:
    """Compare runs and write what there is to say.

    Args:
        folders: runs, sweeps, or folders of these.
        out: where to write; a new folder below outputs/comparisons by default.
        card: the run that the model card is for; the best by validation by default.
        root: where the data are if they have moved, for the pictures.
        overwrite: replace what a former comparison has left in `out`.
        pictures: draw charts and predictions, which takes longest.

    Returns:
        The folder that was written.

    Raises:
        InputError: there is nothing to compare, or the folder holds something.
    """
    found = find_runs([Path(folder) for folder in [*folders, *([card] if card else [])]])
    finished = [run for run in found if run.metrics]
    if card and len(finished) == 1:
        return _card_alone(finished[0], card, out, overwrite)
    comparison = compare(found)
    subject = _subject(finished, card) if card else comparison.reference.first
    folder = _prepare(out, overwrite)
    costs = {recipe.number: _gmacs(recipe.first) for recipe in comparison.recipes}
    rows = table(comparison, costs)
    tell(comparison, rows)
    files.write_text(folder / TABLE, as_csv(comparison, costs))
    replaces, started = (folder / PAGE).exists(), time.time()
    write_page(comparison, rows, costs, folder / PAGE, root, pictures)
    if replaces:  # else no picture there is a comparison's
        _remove_pictures(folder, started)
    _write_card(folder, subject, comparison)
    console = Console(highlight=False, soft_wrap=True)
    for name, file in (("the page", PAGE), ("the table", TABLE), ("model card", CARD)):
        console.print(f"  {name:10} {escape(os.path.relpath(folder / file))}")
    return folder


def _subject(finished: Sequence[Run], card: str) -> Run:
    """The run that a model card was asked for."""
    for run in finished:
        if run.folder.resolve() == Path(card).resolve():
            return run
    raise InputError(f"--card {card} is no finished run: give the folder of one")


def _card_alone(run: Run, card: str, out: str | None, overwrite: bool) -> Path:
    subject, folder = _subject([run], card), _prepare(out, overwrite)
    _write_card(folder, subject, None)
    Console(highlight=False, soft_wrap=True).print(f"  model card {escape(os.path.relpath(folder / CARD))}")
    return folder


def _write_card(folder: Path, subject: Run, comparison: Comparison | None) -> None:
    from polyp.comparison.card import card  # imports torch

    files.write_text(folder / CARD, card(subject, _gmacs(subject), comparison))


def _prepare(out: str | None, overwrite: bool) -> Path:
    folder = Path(out) if out else Path("outputs", "comparisons", f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    files.check_writable(folder)
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise InputError(f"{folder} is not empty: give another --out, or --overwrite to replace a comparison")
    return folder


def _remove_pictures(folder: Path, before: float) -> None:
    """Remove the pictures of a former comparison that the new one has not drawn."""
    for picture in (file for name in DRAWN for file in (folder / runs.PICTURES).glob(name)):
        if picture.stat().st_mtime < before:
            picture.unlink()


def _gmacs(run: Run) -> float | None:
    """10^9 multiply-accumulates; None for a network that this version cannot build."""
    from polyp.model.cost import multiply_accumulates

    try:
        return multiply_accumulates(run.config["model"]) / 1e9
    except InputError:
        return None
