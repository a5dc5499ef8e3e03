"""`polyp compare`: compares runs and writes a table, a page with pictures, and a model card."""

import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.markup import escape

from polyp import files, terminal
from polyp.commands.compare.comparison import Comparison, compare
from polyp.commands.compare.evaluations import build_evaluation_tables, find_evaluations
from polyp.commands.compare.options import Options
from polyp.commands.compare.read_runs import find_runs
from polyp.commands.compare.summary import build_table, print_comparison
from polyp.errors import InputError, shell_word
from polyp.report.tables import Table

PAGE_FILE, TABLE_FILE = "compare.html", "table.csv"
EVALUATIONS_FILE, CARD_FILE = "evaluations.csv", "MODEL_CARD.md"

PICTURE_PATTERNS = ("loss.png", "dice*.png", "effect_*.png", "image_*.png")
"""The files of a comparison in pictures/, where other files may be too; before 0.8 charts were among them."""


def run(options: Options) -> Path:
    """Compare runs and write the result.

    Returns:
        The folder of the result.

    Raises:
        InputError: there is nothing to compare, or the folder is not empty.
    """
    folders = [Path(name) for name in options.folders]
    card = Path(options.card) if options.card else None
    with terminal.status("reading the runs"):
        runs = find_runs([*folders, card] if card else folders)
    finished = [run for run in runs if run.metrics]
    comparison = None
    if not card or len(finished) != 1:
        with terminal.status("comparing the runs"):
            comparison = compare(runs)
        subject = comparison.reference.first
    if card:
        matches = [run for run in finished if run.folder.resolve() == card.resolve()]
        if not matches:
            raise InputError(f"--card {options.card} is no finished run: give the folder of one")
        subject = matches[0]
    out = Path(options.out or f"outputs/comparisons/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    files.check_writable(out)
    if out.exists() and any(out.iterdir()) and not options.overwrite:
        raise InputError(f"{out} is not empty: give another --out, or --overwrite to replace a comparison")
    places = {}
    if comparison:
        _write_comparison(comparison, out, folders, options)
        names = {"page": PAGE_FILE, "table": TABLE_FILE, "evaluations": EVALUATIONS_FILE}
        places = {name: os.path.relpath(out / file) for name, file in names.items() if (out / file).exists()}
    from polyp.commands.compare.card import write_card  # imports torch

    write_card(out / CARD_FILE, subject, comparison)
    places["model card"] = os.path.relpath(out / CARD_FILE)
    places["use it"] = f"polyp predict {shell_word(os.path.relpath(subject.folder))} FOLDER_OR_VIDEO"
    terminal.print_places(places)
    return out


def _write_comparison(comparison: Comparison, out: Path, folders: Sequence[Path], options: Options) -> None:
    with terminal.loading():  # torch and matplotlib
        from polyp.commands.compare.page import PICTURES_FOLDER, write_page

    with terminal.status("comparing the runs"):
        table = build_table(comparison)
        evaluations, problems = find_evaluations(folders)
        tables = build_evaluation_tables(comparison, evaluations)
    print_comparison(comparison, table, options.all_columns)
    for text in problems:
        terminal.console().print(f"[bold yellow]left out[/] {escape(text)}")
    files.write_text(out / TABLE_FILE, table.to_csv())
    has_page, started = (out / PAGE_FILE).exists(), time.time()
    with terminal.status("drawing the page"):
        write_page(comparison, table, tables, out / PAGE_FILE, options.root, options.pictures)
    if rows := [{"images": name, **row} for name, table in tables.items() for row in table.rows]:
        files.write_text(out / EVALUATIONS_FILE, Table(rows).to_csv())
    if not has_page:
        return  # other files in the folder are not of an earlier comparison
    if not rows:
        (out / EVALUATIONS_FILE).unlink(missing_ok=True)
    for pattern in PICTURE_PATTERNS:
        for picture in (out / PICTURES_FOLDER).glob(pattern):
            if picture.stat().st_mtime < started:
                picture.unlink()
