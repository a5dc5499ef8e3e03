"""What came out of a sweep: a table in the terminal and results.csv."""

import os
import shlex
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyp import files, runs, tables
from polyp.errors import InputError, train_command
from polyp.runs import resume
from polyp.sweeps import varying

WIDTH = 160
"""Characters of a table in a file, which has no width that it must be squeezed into."""


@dataclass(frozen=True)
class Job:
    """A finished job of a sweep.

    Attributes:
        number: its own, from 0.
        overrides: what sets it apart from the others, by key.
        metrics: of its metrics.json.
        validation: equal for jobs whose validation numbers can be compared: the images and the monitored number.
    """

    number: int
    overrides: Mapping[str, str]
    metrics: Mapping[str, Any]
    validation: Hashable

    @property
    def numbers(self) -> dict[str, float]:
        """What is in the table."""
        best, test = self.metrics["best"], self.metrics["test"]
        scores = {best["monitor"]: best["value"], "test/dice": test["dice"], "test/iou": test["iou"]}
        return scores | {"minutes": self.metrics["seconds"] / 60}


def read_results(folder: Path) -> tuple[list[Job], dict[Path, str]]:
    """The finished jobs of a sweep, best validation first, and why the others are not, by folder.

    Jobs that were not validated on the same images by the same number are in their own order.
    """
    done, failed = [], {}
    for number, job in resume.job_folders(folder).items():
        if not (job / runs.METRICS).exists():
            failed[job] = _last_line(job / runs.LOG)
            continue
        try:
            overrides = files.read_yaml(job / ".hydra" / "overrides.yaml")
            varied = varying(resume.command([str(override) for override in overrides]), folder)
            metrics = runs.read_metrics(job)
            done.append(Job(number, varied, metrics, _validation(runs.read_config(job), metrics)))
        except InputError as error:
            failed[job] = str(error)
    if comparable(done):
        done.sort(key=lambda job: -job.metrics["best"]["value"])
    return done, failed


def comparable(jobs: Sequence[Job]) -> bool:
    """Whether the validation numbers are of the same images."""
    return len({job.validation for job in jobs}) <= 1


def _validation(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> Hashable:
    data, split = config.get("data", {}), metrics["data"].get("split")
    # Before there was data.split_seed the run's own seed drew the split.
    drawn = data.get("split_seed", config.get("seed")) if split == "random" else None
    part = config.get("trainer", {}).get("limit_val_batches")
    return metrics["best"]["monitor"], metrics["data"]["fingerprint"], split, drawn, part


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def print_table(done: Sequence[Job], failed: Mapping[Path, str], folder: Path) -> None:
    """The jobs of a sweep, and those that failed, each with its last word and its log.

    Args:
        done, failed: see `read_results`.
        folder: the sweep's.
    """
    console = Console(highlight=False, soft_wrap=True)
    if done:
        table = Table(box=None, pad_edge=False)
        keys, names = _columns(done)
        names.remove("test/iou")
        for name in ("job", *(key.rpartition(".")[2] for key in keys), *names):
            table.add_column(escape(name), justify="right")
        for job in done:
            digits = {name: 1 if name == "minutes" else 3 for name in names}
            cells = [f"{job.numbers[name]:.{digits[name]}f}" if name in job.numbers else "" for name in names]
            table.add_row(str(job.number), *(escape(job.overrides.get(key, "")) for key in keys), *cells)
        console.print()
        Console(width=max(console.width, WIDTH)).print(table)
        if not comparable(done):
            console.print(
                "These jobs were validated on different images or by different numbers, which cannot be compared: they "
                "are listed in their order, not by their validation"
            )
    for folder_of_job, reason in failed.items():
        log = os.path.relpath(folder_of_job / runs.LOG)
        console.print(f"[bold red]failed[/] job {escape(folder_of_job.name)}: {escape(reason)}\n       {escape(log)}")
    where = shlex.quote(os.path.relpath(folder))
    if failed:
        console.print(f"To try these again: {train_command()} resume={where}", markup=False)
    console.print(f"\n  the sweep  {where}", markup=False)
    console.print(f"  curves     tensorboard --logdir {where}", markup=False)
    if len(done) > 1:
        console.print(f"  compare    polyp compare {where}", markup=False)


def write_results(folder: Path, done: Sequence[Job]) -> None:
    """Write results.csv: a row for each job, with a column for each key that was varied.

    Raises:
        WriteError: it cannot be written.
    """
    keys, names = _columns(done)
    rows = [{"job": job.number, **job.overrides, **job.numbers} for job in done]
    files.write_text(folder / runs.RESULTS, tables.to_csv(rows, ["job", *keys, *names]))


def _columns(done: Sequence[Job]) -> tuple[list[str], list[str]]:
    """The keys and the names of the numbers that any job has; the monitored numbers come first."""
    keys = list(dict.fromkeys(key for job in done for key in job.overrides))
    monitors = [job.metrics["best"]["monitor"] for job in done]
    return keys, list(dict.fromkeys([*monitors, *(name for job in done for name in job.numbers)]))
