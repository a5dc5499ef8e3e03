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
from polyp.runs import resume
from polyp.runs.configuration import task_overrides
from polyp.runs.folder import RESULTS_FILE, RunFolder
from polyp.terminal import format_seconds
from polyp.training.sweeps import JOBS_FILE, shorten_numbers, varied_overrides


@dataclass(frozen=True)
class Job:
    """A finished job of a sweep.

    Attributes:
        number: its own, from 0.
        overrides: those that differ from the other jobs', by key; not the fold of a cross-validation.
        metrics: the content of its metrics.json.
        validation: equal for jobs whose validation numbers can be compared, but for the fold: the images and
            the monitored number.
        dice: of a fold of a cross-validation the test Dice by stem; else empty.
    """

    number: int
    overrides: Mapping[str, str]
    metrics: Mapping[str, Any]
    validation: Hashable
    dice: Mapping[str, float]

    def is_fold_beside(self, others: "Sequence[Job]") -> bool:
        """Whether it differs from other jobs in its fold alone, and its test images are none of theirs."""
        return bool(self.dice) and all(
            (other.overrides, other.validation) == (self.overrides, self.validation)
            and self.dice.keys().isdisjoint(other.dice)
            for other in others
        )


Result = list[Job]
"""The jobs of one configuration: one for each fold of a cross-validation, else a single one."""


def read_results(folder: Path) -> tuple[list[Result], dict[Path, str]]:
    """The results of a sweep, best validation first, and why the other jobs failed, by folder.

    Those that were not validated on the same images by the same number keep the order of the jobs.
    """
    done: list[Result] = []
    failed = {}
    for number, path in resume.job_folders(folder).items():
        run = RunFolder(path)
        if not run.metrics_file.exists():
            failed[path] = (run.read_log() or ["it wrote no log"])[-1]
            continue
        try:
            overrides = files.read_yaml(path / ".hydra" / "overrides.yaml")
            varied = varied_overrides(task_overrides([str(override) for override in overrides]), folder)
            metrics, config = run.read_metrics(), run.read_config()
            folds = metrics["data"].get("folds")
            dice = run.read_scores()["dice"].to_dict() if folds else {}
        except InputError as error:
            failed[path] = str(error)
            continue
        if folds:
            varied.pop("data.fold", None)
        split = folds or metrics["data"]["split"]
        seed = config["data"]["split_seed"] if folds or split == "random" else None
        part = config["trainer"].get("limit_val_batches")
        validation = metrics["best"]["monitor"], metrics["data"]["fingerprint"], split, seed, part
        job = Job(number, varied, metrics, validation, dice)
        if beside := [result for result in done if job.is_fold_beside(result)]:
            beside[0].append(job)
        else:
            done.append([job])
    if _are_comparable(done):
        done.sort(key=lambda result: -_best(result))
    return done, failed


def _are_comparable(results: Sequence[Result]) -> bool:
    return len({(result[0].validation, _folds(result)) for result in results}) <= 1


def _folds(result: Result) -> frozenset[int | None]:
    return frozenset(job.metrics["data"].get("fold") for job in result)


def _best(result: Result) -> float:
    return fmean(job.metrics["best"]["value"] for job in result)


def _build_table(done: Sequence[Result]) -> Table:
    """A row for each result: the overrides that differ, the monitored number, the test's, and the time.

    Of several folds these are means, but test/dice is over the images of all folds.
    """
    keys = list(dict.fromkeys(key for result in done for key in result[0].overrides))
    monitors = list(dict.fromkeys(result[0].metrics["best"]["monitor"] for result in done))
    rows = [{**dict.fromkeys(["job", *keys, *monitors]), **_build_row(result)} for result in done]
    scores = [Column(name, format=".3f") for name in monitors if name != "test/dice"]
    dice, more = "test/dice (95 %)", list[Column]()
    if any(result[0].dice for result in done):
        dice, scores = "out-of-fold Dice (95 %)", [Column("folds"), *scores]
        more = [Column("n"), Column("over_folds", "over folds", partial(format_mean, name="over_folds"))]
    scores.append(Column("test/dice", dice, partial(format_mean, name="test/dice", short=True)))
    overrides = [
        Column(key, key.rpartition(".")[2], partial(_format_override, key=key), "right", optional=True)
        for key in keys
    ]
    return Table(
        rows, [Column("job"), *overrides, *scores, *more, Column("minutes", format=".1f", optional=True)]
    )


def _format_override(row: Mapping[str, Any], key: str) -> str:
    return shorten_numbers(row[key] or "")


def _build_row(result: Result) -> dict[str, Any]:
    tests = [job.metrics["test"] for job in result]
    row: dict[str, Any] = {"job": _list_numbers(result) if len(result) > 1 else result[0].number}
    row |= {**result[0].overrides, result[0].metrics["best"]["monitor"]: _best(result)}
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


def _list_numbers(result: Result) -> str:
    return " ".join(str(job.number) for job in result)


def print_job(folder: Path, title: str, number: int, total: int, varied: Mapping[str, str]) -> None:
    """Print which job of a sweep begins, how far the sweep is, and what has validated best so far.

    Args:
        folder: the sweep's.
        title: names the job.
        number: the job's, from 0.
        total: the number of jobs.
        varied: what is special about the job, see `varied_overrides`.
    """
    settings = [f"{key.rpartition('.')[2]} {shorten_numbers(value)}" for key, value in varied.items()]
    console = terminal.console()
    console.print(
        f"\n[bold]{title}[/] ({number + 1} of {total}): {escape(', '.join(settings)) or 'the default'}"
    )
    began = (folder / JOBS_FILE).stat().st_mtime  # written when a sweep is started or continued
    metrics = [RunFolder(job).metrics_file for job in resume.job_folders(folder).values()]
    parts, elapsed = list[str](), time.time() - began
    if finished := sum(file.exists() and file.stat().st_mtime > began for file in metrics):
        left = format_seconds(elapsed / finished * (total - number))
        parts.append(f"{format_seconds(elapsed)} elapsed, about {left} left")
    done, _ = read_results(folder)
    if done and _are_comparable(done):
        monitor = done[0][0].metrics["best"]["monitor"]
        parts.append(f"best so far: job {_list_numbers(done[0])} with {monitor} {_best(done[0]):.3f}")
    if parts:
        console.print("; ".join(parts))


def print_results(done: Sequence[Result], failed: Mapping[Path, str], folder: Path) -> None:
    """Print the table of a sweep, and the jobs that failed, each with its last message and its log.

    Args:
        done, failed: see `read_results`.
        folder: the sweep's.
    """
    console = terminal.console()
    jobs = [job for result in done for job in result]
    if done:
        console.print()
        _build_table(done).print()
        if not _are_comparable(done):
            console.print(
                "These jobs were validated on different images or by different numbers, which cannot be "
                "compared: they are listed in their order, not by their validation"
            )
    for result in done:
        count = result[0].metrics["data"].get("folds", 0)
        if missing := sorted(set(range(count)) - _folds(result)):
            console.print(
                f"[bold yellow]missing[/] fold {', '.join(map(str, missing))} of {count} beside job "
                f"{_list_numbers(result)}: the numbers are of the other folds alone"
            )
    for pruned in (job for job in jobs if job.metrics.get("pruned")):
        epochs = pruned.metrics["epochs"]
        console.print(f"pruned job {pruned.number} after {epochs} epochs: it validated below the median")
    for job, reason in failed.items():
        log = os.path.relpath(RunFolder(job).log_file)
        console.print(f"[bold red]failed[/] job {escape(job.name)}: {escape(reason)}")
        console.print(f"       {log}", markup=False, soft_wrap=True)
    path = os.path.relpath(folder)
    sweep = shell_word(path)
    places = {"sweep": path, "curves": f"tensorboard --logdir {sweep}"}
    if len(jobs) > 1:
        places["compare"] = f"polyp compare {sweep}"
    if failed:
        places["try again"] = f"{train_command()} {override_word('resume', path)}"
    terminal.print_places(places)


def write_results(folder: Path, done: Sequence[Result]) -> None:
    """Write results.csv: a row for each job, or for the folds of each configuration, unrounded.

    Raises:
        WriteError: it cannot be written.
    """
    files.write_text(folder / RESULTS_FILE, _build_table(done).to_csv())
