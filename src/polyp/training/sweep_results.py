"""The results of a sweep: a table in the terminal and results.csv."""

import os
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.markup import escape

from polyp import files, terminal
from polyp.errors import InputError, override_word, shell_word, train_command
from polyp.metrics.intervals import bootstrap_interval
from polyp.report.tables import Column, Table, format_mean
from polyp.runs.folder import RESULTS_FILE, RunFolder
from polyp.runs.sweep_folder import JOBS_FILE, find_jobs
from polyp.terminal import format_seconds
from polyp.training.job_labels import read_varied, shorten_numbers


@dataclass(frozen=True)
class Job:
    """A finished job of a sweep.

    Attributes:
        number: its number, from 0.
        overrides: those that differ from the other jobs', by key; not the fold of a cross-validation.
        metrics: the content of its metrics.json.
        validation: the validation images without the fold, and the monitored number: where these are equal,
            the numbers can be compared.
        dice: the test Dice by stem of a fold of a cross-validation; empty without folds.
    """

    number: int
    overrides: Mapping[str, str]
    metrics: Mapping[str, Any]
    validation: Hashable
    dice: Mapping[str, float]

    @property
    def monitor(self) -> str:
        """The name of the number that has chosen the best checkpoint."""
        return self.metrics["best"]["monitor"]

    def extends(self, result: "Result") -> bool:
        """Whether it differs from a result's jobs in its fold alone, and shares no test image with them."""
        return bool(self.dice) and all(
            (job.overrides, job.validation) == (self.overrides, self.validation)
            and self.dice.keys().isdisjoint(job.dice)
            for job in result
        )


Result = list[Job]
"""The jobs of one configuration: one for each fold of a cross-validation, or a single one."""


def read_results(folder: Path) -> tuple[list[Result], dict[Path, str]]:
    """The results of a sweep, best validation first, and why the other jobs failed, by folder.

    Those that were not validated on the same images by the same number keep the order of the jobs.
    """
    results: list[Result] = []
    failures: dict[Path, str] = {}
    for number, path in find_jobs(folder).items():
        run = RunFolder(path)
        if not run.metrics_file.exists():
            failures[path] = (run.read_log() or ["it wrote no log"])[-1]
            continue
        try:
            job = _read_job(number, run)
        except InputError as error:
            failures[path] = str(error)
            continue
        for result in results:
            if job.extends(result):
                result.append(job)
                break
        else:
            results.append([job])
    if _are_comparable(results):
        results.sort(key=lambda result: -_mean_validation(result))
    return results, failures


def _read_job(number: int, run: RunFolder) -> Job:
    overrides = read_varied(run.path)
    metrics, config = run.read_metrics(), run.read_config()
    folds = metrics["data"].get("folds")
    dice = run.read_scores()["dice"].to_dict() if folds else {}
    if folds:
        overrides.pop("data.fold", None)
    split = folds or metrics["data"]["split"]
    seed = config["data"]["split_seed"] if folds or split == "random" else None
    limit = config["trainer"].get("limit_val_batches")
    validation = metrics["best"]["monitor"], metrics["data"]["fingerprint"], split, seed, limit
    return Job(number, overrides, metrics, validation, dice)


def _are_comparable(results: Sequence[Result]) -> bool:
    return len({(result[0].validation, _folds(result)) for result in results}) <= 1


def _folds(result: Result) -> frozenset[int | None]:
    return frozenset(job.metrics["data"].get("fold") for job in result)


def _mean_validation(result: Result) -> float:
    return fmean(job.metrics["best"]["value"] for job in result)


def _list_numbers(result: Result) -> str:
    return " ".join(str(job.number) for job in result)


def _build_table(results: Sequence[Result]) -> Table:
    """A row for each result: the overrides that differ, the monitored number, the test's, and the time.

    Of several folds these are means, but test/dice is over the images of all folds.
    """
    keys = list(dict.fromkeys(key for result in results for key in result[0].overrides))
    monitors = list(dict.fromkeys(result[0].monitor for result in results))
    columns = [Column("job")]
    for key in keys:
        format_value = partial(_format_override, key=key)
        columns.append(Column(key, key.rpartition(".")[2], format_value, "right", optional=True))
    monitor_columns = [Column(name, format=".3f") for name in monitors]
    if any(result[0].dice for result in results):
        columns += [Column("folds"), *monitor_columns]
        columns.append(_mean_column("test/dice", "out-of-fold Dice (95 %)", short=True))
        columns += [Column("n"), _mean_column("over_folds", "over folds")]
    else:
        columns += [*monitor_columns, _mean_column("test/dice", "test/dice (95 %)", short=True)]
    columns.append(Column("minutes", format=".1f", optional=True))
    rows = [{**dict.fromkeys(["job", *keys, *monitors]), **_build_row(result)} for result in results]
    return Table(rows, columns)


def _mean_column(name: str, title: str, **options: Any) -> Column:
    return Column(name, title, partial(format_mean, name=name, **options))


def _format_override(row: Mapping[str, Any], key: str) -> str:
    return shorten_numbers(row[key] or "")


def _build_row(result: Result) -> dict[str, Any]:
    first, tests = result[0], [job.metrics["test"] for job in result]
    row: dict[str, Any] = {"job": _list_numbers(result) if len(result) > 1 else first.number}
    row |= {**first.overrides, first.monitor: _mean_validation(result)}
    row |= {f"test/{name}": fmean(test[name] for test in tests) for name in ("dice", "iou")}
    low, high = tests[0].get("dice_interval") or (None, None)
    row |= {"test/dice_low": low, "test/dice_high": high}
    scores = sorted((stem, value) for job in result for stem, value in job.dice.items())
    if dice := [value for _, value in scores]:  # in this order `polyp compare` gives the same interval
        low, high = bootstrap_interval(dice) if len(dice) > 1 else (None, None)
        row |= {"test/dice": fmean(dice), "test/dice_low": low, "test/dice_high": high, "n": len(dice)}
        over_folds = [test["dice"] for test in tests]
        deviation = stdev(over_folds) if len(result) > 1 else None
        row |= {"folds": len(result), "over_folds": fmean(over_folds), "over_folds_sd": deviation}
    return {**row, "minutes": fmean(job.metrics["seconds"] / 60 for job in result)}


def print_job(folder: Path, kind: str, number: int, total: int, varied: Mapping[str, str]) -> None:
    """Print which job of a sweep begins, how far the sweep is, and the best validation so far.

    Args:
        folder: the sweep's.
        kind: job or trial.
        number, total: the job's number, from 0, and the number of jobs.
        varied: the job's overrides, see `select_varied`.
    """
    settings = [f"{key.rpartition('.')[2]} {shorten_numbers(value)}" for key, value in varied.items()]
    console = terminal.console()
    title = f"\n[bold]{kind} {number}[/] ({number + 1} of {total})"
    console.print(f"{title}: {escape(', '.join(settings)) or 'the default'}")
    start = (folder / JOBS_FILE).stat().st_mtime  # written when a sweep is started or continued
    metrics = [RunFolder(job).metrics_file for job in find_jobs(folder).values()]
    parts, elapsed = list[str](), time.time() - start
    if count := sum(file.exists() and file.stat().st_mtime > start for file in metrics):
        remaining = format_seconds(elapsed / count * (total - number))
        parts.append(f"{format_seconds(elapsed)} elapsed, about {remaining} left")
    results, _ = read_results(folder)
    if results and _are_comparable(results):
        best = results[0]
        score = f"{best[0].monitor} {_mean_validation(best):.3f}"
        parts.append(f"best so far: job {_list_numbers(best)} with {score}")
    if parts:
        console.print("; ".join(parts))


def print_results(results: Sequence[Result], failures: Mapping[Path, str], folder: Path) -> None:
    """Print the table of a sweep, and the jobs that failed, each with its last message and its log."""
    console = terminal.console()
    jobs = [job for result in results for job in result]
    if results:
        console.print()
        _build_table(results).print()
        if not _are_comparable(results):
            console.print(
                "These jobs were validated on different images or by different numbers, which cannot be "
                "compared: they are listed in their order, not by their validation"
            )
    for result in results:
        count = result[0].metrics["data"].get("folds", 0)
        if folds := sorted(set(range(count)) - _folds(result)):
            console.print(
                f"[bold yellow]missing[/] fold {', '.join(map(str, folds))} of {count} beside job "
                f"{_list_numbers(result)}: the numbers are of the other folds alone"
            )
    for job in jobs:
        if job.metrics.get("pruned"):
            epochs = job.metrics["epochs"]
            console.print(f"pruned job {job.number} after {epochs} epochs: it validated below the median")
    for job_folder, reason in failures.items():
        log = os.path.relpath(RunFolder(job_folder).log_file)
        console.print(f"[bold red]failed[/] job {escape(job_folder.name)}: {escape(reason)}")
        console.print(f"       {log}", markup=False, soft_wrap=True)
    path = os.path.relpath(folder)
    sweep = shell_word(path)
    places = {"sweep": path, "curves": f"tensorboard --logdir {sweep}"}
    if len(jobs) > 1:
        places["compare"] = f"polyp compare {sweep}"
    if failures:
        places["try again"] = f"{train_command()} {override_word('resume', path)}"
    terminal.print_places(places)


def write_results(folder: Path, results: Sequence[Result]) -> None:
    """Write results.csv: a row for each job, or for the folds of each configuration, unrounded.

    Raises:
        WriteError: it cannot be written.
    """
    files.write_text(folder / RESULTS_FILE, _build_table(results).to_csv())
