"""The results of a sweep: a table in the terminal and results.csv."""

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from polyp import files
from polyp.errors import InputError, override_word, shell_word, train_command
from polyp.report.tables import Column, Table
from polyp.runs import resume
from polyp.runs.configuration import task_overrides
from polyp.runs.folder import RESULTS_FILE, RunFolder
from polyp.training.sweeps import varied_overrides


@dataclass(frozen=True)
class Job:
    """A finished job of a sweep.

    Attributes:
        number: its own, from 0.
        overrides: those that differ from the other jobs', by key.
        metrics: the content of its metrics.json.
        validation: equal for jobs whose validation numbers can be compared: the images and the monitored
            number.
    """

    number: int
    overrides: Mapping[str, str]
    metrics: Mapping[str, Any]
    validation: Hashable


def read_results(folder: Path) -> tuple[list[Job], dict[Path, str]]:
    """The finished jobs of a sweep, best validation first, and why the others failed, by folder.

    Jobs that were not validated on the same images by the same number keep their own order.
    """
    done, failed = [], {}
    for number, job in resume.job_folders(folder).items():
        if not (RunFolder(job).metrics_file).exists():
            failed[job] = _read_last_line(RunFolder(job).log_file)
            continue
        try:
            overrides = files.read_yaml(job / ".hydra" / "overrides.yaml")
            varied = varied_overrides(task_overrides([str(override) for override in overrides]), folder)
            metrics, config = RunFolder(job).read_metrics(), RunFolder(job).read_config()
        except InputError as error:
            failed[job] = str(error)
            continue
        split = metrics["data"]["split"]
        seed = config["data"]["split_seed"] if split == "random" else None
        part = config["trainer"].get("limit_val_batches")
        validation = metrics["best"]["monitor"], metrics["data"]["fingerprint"], split, seed, part
        done.append(Job(number, varied, metrics, validation))
    if _are_comparable(done):
        done.sort(key=lambda job: -job.metrics["best"]["value"])
    return done, failed


def _are_comparable(jobs: Sequence[Job]) -> bool:
    return len({job.validation for job in jobs}) <= 1


def _read_last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line for line in reversed(lines) if line.strip()), "it wrote no log")


def _build_table(done: Sequence[Job]) -> Table:
    """A row for each job: the overrides that differ, the monitored number, the test's, and the time."""
    keys = list(dict.fromkeys(key for job in done for key in job.overrides))
    monitors = list(dict.fromkeys(job.metrics["best"]["monitor"] for job in done))
    rows = []
    for job in done:
        best, test = job.metrics["best"], job.metrics["test"]
        numbers = {best["monitor"]: best["value"], "test/dice": test["dice"], "test/iou": test["iou"]}
        row = {"job": job.number, **dict.fromkeys([*keys, *monitors]), **job.overrides, **numbers}
        rows.append({**row, "minutes": job.metrics["seconds"] / 60})
    scores = [Column(name, format=".3f") for name in dict.fromkeys([*monitors, "test/dice"])]
    overrides = [Column(key, key.rpartition(".")[2], align="right") for key in keys]
    return Table(rows, [Column("job"), *overrides, *scores, Column("minutes", format=".1f")])


def print_results(done: Sequence[Job], failed: Mapping[Path, str], folder: Path) -> None:
    """Print the table of a sweep, and the jobs that failed, each with its last message and its log.

    Args:
        done, failed: see `read_results`.
        folder: the sweep's.
    """
    console = Console(highlight=False, soft_wrap=True)
    if done:
        console.print()
        _build_table(done).print()
        if not _are_comparable(done):
            console.print(
                "These jobs were validated on different images or by different numbers, which cannot be "
                "compared: they are listed in their order, not by their validation"
            )
    for pruned in (job for job in done if job.metrics.get("pruned")):
        epochs = pruned.metrics["epochs"]
        console.print(f"pruned job {pruned.number} after {epochs} epochs: it validated below the median")
    for job, reason in failed.items():
        log = os.path.relpath(RunFolder(job).log_file)
        console.print(f"[bold red]failed[/] job {escape(job.name)}: {escape(reason)}\n       {escape(log)}")
    path = os.path.relpath(folder)
    sweep = shell_word(path)
    if failed:
        console.print(f"To try these again: {train_command()} {override_word('resume', path)}", markup=False)
    console.print(f"\n  the sweep  {path}", markup=False)
    console.print(f"  curves     tensorboard --logdir {sweep}", markup=False)
    if len(done) > 1:
        console.print(f"  compare    polyp compare {sweep}", markup=False)


def write_results(folder: Path, done: Sequence[Job]) -> None:
    """Write results.csv: a row for each job, with a column for each key that was varied.

    Raises:
        WriteError: it cannot be written.
    """
    files.write_text(folder / RESULTS_FILE, _build_table(done).to_csv())
