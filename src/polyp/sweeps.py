"""Many jobs from one command: what they are, the check of all before the first starts, and the table at the end."""

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydra_plugins.csv_sweeper import CsvSweeper
from hydra_plugins.optuna_search import Search
from polyp import files, resume, runs, tables
from polyp.errors import InputError

LABEL_LENGTH = 90
JOBS = "jobs.json"
"""The jobs of a sweep, by number, each a list of overrides."""


# ---- asked for by conf/


def job_label(overrides: Sequence[str], sweep_folder: str) -> str:
    """What sets a job apart from the others of its sweep, as part of a folder's name: `encoder-resnet34`.

    Args:
        overrides: the job's overrides, KEY=VALUE.
        sweep_folder: where Hydra has written multirun.yaml, the sweep as it was given.
    """
    parts = []
    for override in varying(overrides, Path(sweep_folder)):
        key, _, value = override.partition("=")
        value = re.sub(r"\d+\.\d{5,}(e-\d+)?", lambda number: f"{float(number[0]):.3g}", value)  # drawn numbers
        value = re.sub(r"[^\w.+-]+", "-", Path(value).stem if "/" in value else value).strip("-")
        parts.append(f"{key.lstrip('+').rpartition('.')[2]}-{value}")
    return "_".join(parts)[:LABEL_LENGTH] or "job"


def varying(overrides: Sequence[str], sweep_folder: Path) -> list[str]:
    """The overrides of a job that do not stand in the sweep's command as they are."""
    given = sweep_folder / runs.SWEEP
    shared = _values(files.read_yaml(given)["hydra"]["overrides"]["task"]) if given.is_file() else {}
    return [override for override in overrides if not _values([override]).items() <= shared.items()]


def _values(overrides: Sequence[str]) -> dict[str, str]:
    # Parsed, since Hydra gives a job 0.001 where 1e-3 was typed. Of a key that is given twice, the last counts.
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    given = {override.get_key_element(): override for override in parsed}
    return {key: one.get_value_element_as_str() for key, one in given.items() if not one.is_sweep_override()}


def extra(name: str, target: str, module: str | None = None) -> str:
    """The class of a Hydra plugin that comes with one of our extras; leaves with the line that installs it.

    Args:
        name: the extra's.
        target: the class.
        module: what the extra brings, where that is not the target's own module.
    """
    try:
        found = importlib.util.find_spec(module or target.rpartition(".")[0])
    except ModuleNotFoundError:
        found = None
    if found is None:
        sys.exit(f"{name} is not installed: pip install -e '.[{name}]'")
    return target


# Here, and not in train.py: the processes that a launcher starts import this module, but not that script.
OmegaConf.register_new_resolver("job_label", job_label, replace=True)
OmegaConf.register_new_resolver("extra", extra, replace=True)


# ---- what a command means


def repeated(argv: Sequence[str]) -> list[str]:
    """The command line, with `resume=SWEEP_FOLDER` written out as the command that the sweep was started with."""
    for word in argv[1:]:
        key, _, value = word.partition("=")
        folder = Path(value.strip("'\""))
        if key == "resume" and (folder / runs.SWEEP).is_file():
            added = [other for other in argv[1:] if other != word]
            given = files.read_yaml(folder / runs.SWEEP)["hydra"]["overrides"]
            again = [] if {"-m", "--multirun"} & set(added) else [*given["task"], *given["hydra"]]
            kept = [other for other in again if not other.startswith(("resume=", "hydra.sweep.dir="))]
            return [argv[0], "-m", *kept, *added, f"resume={resume.AUTO}", f"hydra.sweep.dir='{folder}'"]
    return list(argv)


class Sweep(Callback):
    """Before the first job: every job is composed and built, and the folder is ours. After the last: the table."""

    def __init__(self) -> None:
        self.held = ExitStack()

    def __getstate__(self) -> dict[str, str]:
        """What travels to another process, before it makes a job's folder: where the sweep was started."""
        return {"folder": os.getcwd()}

    def __setstate__(self, state: dict[str, str]) -> None:
        """Go there: the processes of a cluster start where the cluster did."""
        os.chdir(state["folder"])
        self.held = ExitStack()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Leave with one line if a job cannot work or the folder is another sweep's."""
        for part in ("sweeper", "launcher"):
            OmegaConf.select(config, f"hydra.{part}._target_")  # leaves at once if its extra is missing
        # Hydra turns exceptions of callbacks into warnings, but not SystemExit.
        try:
            sweeper = Search if config.hydra.sweeper._target_.endswith(Search.__name__) else CsvSweeper
            jobs = sweeper.jobs(config)
            _check(config, jobs)
            folder = Path(config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.held.enter_context(runs.claimed(folder, "a sweep"))
            _record(folder, [resume.command(job) for job, _ in jobs], continues=config.get("resume") is not None)
        except InputError as error:
            sys.exit(f"{error}\nNo job was started.")
        # Each job composes its own configuration, from these: the folder must be the same for all.
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table, list the jobs that failed, and leave with 1 if there are any."""
        if config.trainer.get("fast_dev_run"):  # Lightning's trial of one batch has no results
            return
        folder = Path(config.hydra.sweep.dir)
        done, failed = results(folder)
        from polyp.summary import sweep_table

        sweep_table(done, failed, folder)
        self.held.close()
        if failed:
            sys.exit(1)
        if done:
            _write_results(folder, done)


def results(folder: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """What came out of a sweep: a row for each finished job, best validation first, and the folders of the others."""
    done, failed = [], []
    for job in sorted(folder.glob("[0-9]*_*/"), key=lambda job: int(job.name.partition("_")[0])):
        if not runs.finished(job):
            failed.append(job)
            continue
        metrics = runs.read_metrics(job)
        given = resume.command([str(override) for override in files.read_yaml(job / ".hydra" / "overrides.yaml")])
        row = {"job": int(job.name.partition("_")[0]), "overrides": " ".join(varying(given, folder))}
        row[metrics["best"]["monitor"]] = metrics["best"]["value"]
        row |= {"test/dice": metrics["test"]["dice"], "test/iou": metrics["test"]["iou"]}
        done.append(row | {"minutes": metrics["seconds"] / 60})
    return sorted(done, key=lambda row: -list(row.values())[2]), failed


def _write_results(folder: Path, done: Sequence[dict[str, Any]]) -> None:
    files.write_text(folder / runs.RESULTS, tables.to_csv(done, list(done[0])))


def _check(config: DictConfig, jobs: Sequence[tuple[list[str], str]]) -> None:
    from polyp.experiment import build  # imports torch

    if config.get("resume") not in (None, resume.AUTO):
        raise InputError(f"resume={config.resume} is no sweep's folder: give that, or resume=auto")
    seen: set[str] = set()
    shared = set.intersection(*(set(job) for job, _ in jobs)) if len(jobs) > 1 else set()
    for number, (job, origin) in enumerate(jobs):
        try:
            cfg = compose(config.hydra.job.config_name, overrides=job)
            if cfg.trainer.devices not in (1, "1"):
                raise InputError(f"trainer.devices={cfg.trainer.devices}: a job of a sweep has one device")
            alike = OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "seed"]))
            if alike not in seen:
                build(resume.resolved(cfg), Path())
            seen.add(alike)
        except HydraException as error:  # ours, and what Hydra says of a key or a choice that is not there
            said = str(error).partition("\n")[0]
            own = " ".join(override for override in job if override not in shared)
            raise InputError(f"job {number}, {origin} ({own}), cannot work: {said}") from error


def _record(folder: Path, jobs: list[list[str]], continues: bool) -> None:
    file = folder / JOBS
    elsewhere = "give another folder with hydra.sweep.dir=FOLDER"
    if file.exists():
        if not continues:
            raise InputError(f"{folder} holds a sweep already: continue it with resume={folder}, or {elsewhere}")
        for number, before in enumerate(files.read_json(file)):
            if (now := jobs[number] if number < len(jobs) else []) != before:
                raise InputError(
                    f"{folder} was started with other jobs: number {number} was {' '.join(before) or 'the default'} "
                    f"and is {' '.join(now) or 'not there'} now; give the original command and CSV, or {elsewhere}"
                )
        (folder / runs.RESULTS).unlink(missing_ok=True)
    elif any(folder.glob(f"*/{runs.CONFIG}")) or (folder / runs.CONFIG).exists():
        raise InputError(f"{folder} holds runs of another experiment: {elsewhere}")
    files.write_json(file, jobs, indent=1)
