"""Sweeps: many jobs from one command, checked before the first starts, and a table at the end."""

import importlib.util
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydra_plugins.csv_sweeper import CsvSweeper
from hydra_plugins.optuna_sweeper import OptunaSweeper
from polyp import files, terminal
from polyp.errors import InputError, install_command, override_text, override_word, printable
from polyp.runs import resume
from polyp.runs.configuration import (
    check_names,
    explain_hydra_error,
    parse_override,
    resolve_config,
    task_overrides,
)
from polyp.runs.folder import RESULTS_FILE, SWEEP_FILE, RunFolder, lock_folder
from polyp.training import isolation
from polyp.training.overrides import find_objection, parse_overrides

log = logging.getLogger(__name__)

LABEL_LENGTH = 90

JOBS_FILE = "jobs.json"
"""The jobs of a sweep, by number, each a list of overrides."""

REPEATED = (
    "hydra/sweeper",
    *(
        f"hydra.sweeper.{key}"
        for key in ("path", "max_batch_size", "n_trials", "n_jobs", "seed", "objectives")
    ),
    *("hydra.sweeper.prune_after_trials", "hydra.sweeper.prune_after_epochs"),
    *(f"hydra.launcher.{key}" for key in ("n_jobs", "partition", "account", "qos", "gpus_per_node", "gres")),
    *(f"hydra.launcher.{key}" for key in ("cpus_per_task", "mem_gb", "timeout_min", "signal_delay_s")),
    *(f"hydra.launcher.{key}" for key in ("max_num_timeout", "array_parallelism")),
    *("hydra.launcher.ray.remote.num_cpus", "hydra.launcher.ray.remote.num_gpus"),
)
"""Hydra's settings that `resume=SWEEP` repeats: none of them is a function or a shell command to run."""


# ---- resolvers, for conf/


def job_label(overrides: Sequence[str], sweep_folder: str) -> str:
    """What distinguishes a job from the others of its sweep, as part of a folder's name: `encoder-resnet34`.

    Args:
        overrides: the job's overrides, KEY=VALUE.
        sweep_folder: where Hydra has written multirun.yaml, the sweep's command.
    """
    parts = []
    for key, value in varied_overrides(overrides, Path(sweep_folder)).items():
        value = Path(value).stem if "/" in value else value
        value = re.sub(r"[^\w.+-]+", "-", shorten_numbers(value)).strip("-")
        parts.append(f"{key.lstrip('+').rpartition('.')[2]}-{value}")
    return "_".join(parts)[:LABEL_LENGTH] or "job"


def shorten_numbers(value: str) -> str:
    """A value in which numbers of many digits, which a search has drawn, are rounded."""
    return re.sub(r"\d+\.\d{5,}(e-\d+)?", lambda number: f"{float(number[0]):.3g}", value)


def varied_overrides(overrides: Sequence[str], sweep_folder: Path) -> dict[str, str]:
    """The values of a job's overrides that are not in the sweep's command as they are, by key.

    Raises:
        DamagedError: multirun.yaml, which has the command, is damaged.
    """
    command = resume.read_sweep(sweep_folder)[0] if (sweep_folder / SWEEP_FILE).is_file() else []
    # Compared as parsed, since Hydra gives a job 0.001 where 1e-3 was typed.
    shared = {
        key: override.get_value_element_as_str()
        for key, override in parse_overrides(command).items()
        if not override.is_sweep_override()
    }
    values = {}
    for key, override in parse_overrides(overrides).items():
        if key not in shared or shared[key] != override.get_value_element_as_str():
            value = override.value()
            values[key] = value if isinstance(value, str) else (override.input_line or "").partition("=")[2]
    return values


def extra(name: str, target: str, module: str | None = None) -> str:
    """The class of a Hydra plugin that comes with one of our extras; leaves with the line that installs it.

    Args:
        name: the extra's.
        target: the class.
        module: what the extra brings, where that is not the target's own module.
    """
    try:
        spec = importlib.util.find_spec(module or target.rpartition(".")[0])
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        sys.exit(f"{name} is not installed: {install_command(name)}")
    return target


# Here, and not in train.py: the processes that a launcher starts import this module, but not that script.
OmegaConf.register_new_resolver("job_label", job_label, replace=True)
OmegaConf.register_new_resolver("extra", extra, replace=True)


# ---- resuming


def expand_resume(argv: Sequence[str]) -> list[str]:
    """The command line, with `resume=SWEEP_FOLDER` replaced by the command that the sweep was started with.

    Raises:
        SystemExit: that command is not known, or has an override that is not repeated, with the reason in one
            line.
    """
    for word in argv[1:]:
        override = parse_override(word) if word.startswith("resume=") else None
        value = override.value() if override else None
        folder = Path(str(value))
        if value and any((folder / name).is_file() for name in (SWEEP_FILE, JOBS_FILE)):
            directory = override_text("hydra.sweep.dir", str(folder))
            added = [other for other in argv[1:] if other != word]
            try:
                command = [] if {"-m", "--multirun"} & set(added) else _read_command(folder, added)
            except InputError as error:
                sys.exit(f"{error}")
            return [argv[0], "-m", *command, *added, f"resume={resume.AUTO}", directory]
    return list(argv)


def _read_command(folder: Path, added: Sequence[str]) -> list[str]:
    """The overrides of a sweep's command, without those whose keys are in `added`.

    Raises:
        InputError: multirun.yaml is damaged, or has an override that is not repeated.
    """
    task, own = resume.read_sweep(folder)
    replaced = {"resume", "hydra.mode", "hydra.run.dir", "hydra.sweep.dir"}
    replaced |= {word.partition("=")[0] for word in added}
    command = []
    for override in [*task, *own]:
        key = override.partition("=")[0]
        if key in replaced:
            continue
        setting = override.replace("hydra", "setting", 1) if key in REPEATED else override
        objection = find_objection(setting) if setting.isprintable() else "is more than one line"
        if setting != override and "{" in override:  # {_target_: FUNCTION} would call it
            objection = "is more than a value"
        if objection:
            raise InputError(
                f"{folder / SWEEP_FILE}: {printable(override)} {objection} and is not repeated: if you want "
                f"it, add {printable(key)}=VALUE to the command"
            )
        command.append(override)
    return command


# ---- what happens around a sweep


@contextmanager
def _exit_on_error(last_words: str = "") -> Iterator[None]:
    """Exit with 1 if anything is raised: Hydra turns exceptions of callbacks into warnings."""
    try:
        yield
    except InputError as error:
        sys.exit(f"{error}\n{last_words}".strip())
    except Exception:
        traceback.print_exc()
        sys.exit(last_words or 1)


class Sweep(Callback):
    """Before the first job every job is composed and built, and the folder is locked; the table ends it."""

    def __init__(self) -> None:
        self.lock = ExitStack()

    def __getstate__(self) -> dict[str, str]:
        """What travels to another process, before it makes a job's folder: where the sweep was started."""
        return {"folder": os.getcwd()}

    def __setstate__(self, state: dict[str, str]) -> None:
        """Go there: the processes of a cluster start where the cluster did."""
        os.chdir(state["folder"])
        self.lock = ExitStack()

    @_exit_on_error()
    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with one line if Hydra cannot write to the run's folder, before train.py is called."""
        files.check_writable(Path(config.hydra.run.dir))

    @_exit_on_error("No job was started.")
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with one line if a job cannot work or the folder is another sweep's."""
        for part in ("sweeper", "launcher"):
            OmegaConf.select(config, f"hydra.{part}._target_")  # exits at once if its extra is missing
        jobs = (OptunaSweeper if _is_search(config) else CsvSweeper).jobs(config)
        _check_jobs(config, jobs)
        folder = Path(config.hydra.sweep.dir)
        files.check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.lock.enter_context(lock_folder(folder, "a sweep"))
        _record_jobs(folder, [task_overrides(job) for job, _ in jobs], config)
        # Each job composes its own configuration, from these: the folder must be the same for all.
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.hydra.append(override_text("hydra.sweep.dir", str(folder)))

    @_exit_on_error()
    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print which job of a sweep begins, in the job's own process."""
        if config.hydra.mode == RunMode.MULTIRUN:
            from polyp.training import sweep_results

            folder, number = Path(config.hydra.sweep.dir), config.hydra.job.num
            jobs = files.read_json(folder / JOBS_FILE)
            total = config.hydra.sweeper.n_trials if _is_search(config) else len(jobs)
            title = f"{'trial' if _is_search(config) else 'job'} {number}"
            varied = varied_overrides(config.hydra.overrides.task, folder)
            sweep_results.print_job(folder, title, number, total, varied)

    @_exit_on_error()
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table, list the jobs that failed, and exit with 1 if there are any."""
        if config.trainer.get("fast_dev_run"):  # Lightning's trial of one batch has no results
            return
        from polyp.training import sweep_results

        with self.lock:
            folder = Path(config.hydra.sweep.dir)
            done, failed = sweep_results.read_results(folder)
            sweep_results.print_results(done, failed, folder)
            if failed:
                sys.exit(1)
            if done:
                sweep_results.write_results(folder, done)


def _is_search(config: DictConfig) -> bool:
    return config.hydra.sweeper._target_.endswith(OptunaSweeper.__name__)


def _check_jobs(config: DictConfig, jobs: Sequence[tuple[list[str], str]]) -> None:
    if config.get("resume") not in (None, resume.AUTO):
        raise InputError(f"resume={config.resume} is no sweep's folder: give that, or resume=auto")
    shared = set.intersection(*(set(job) for job, _ in jobs)) if len(jobs) > 1 else set()

    def job_error(number: int, reason: str) -> InputError:
        job, origin = jobs[number]
        own = " ".join(override for override in job if override not in shared)
        return InputError(f"job {number}, {origin} ({own}), cannot work: {reason}")

    conf = next(
        Path(source.path) for source in config.hydra.runtime.config_sources if source.provider == "main"
    )
    distinct: dict[int, dict[str, Any]] = {}  # configurations that differ in more than the seed
    for number, (job, _) in enumerate(jobs):
        try:
            cfg = compose(config.hydra.job.config_name, overrides=job)
            if cfg.trainer.devices not in (1, "1"):
                raise InputError(f"trainer.devices={cfg.trainer.devices}: a job of a sweep has one device")
            check_names(cfg)
            task = resolve_config(cfg)
        except HydraException as error:  # ours, too
            reason = f"{error}" if isinstance(error, InputError) else explain_hydra_error(error, job, conf)
            raise job_error(number, reason) from error
        if all(task | {"seed": other["seed"]} != other for other in distinct.values()):
            distinct[number] = task
    with terminal.status(f"checking {len(jobs)} jobs"):
        outcome = isolation.call(_find_error, distinct, name="check of the jobs")
    if outcome.value:
        raise job_error(*outcome.value)
    if outcome.code:
        raise InputError(f"the check of the jobs was {outcome}")


def _find_error(configs: dict[int, dict[str, Any]]) -> tuple[int, str] | None:
    """The first job that cannot be built, and why."""
    from polyp.training.build import build  # imports torch
    from polyp.training.run import Run

    for number, config in configs.items():
        try:
            build(Run(RunFolder(Path()), config))
        except InputError as error:
            return number, str(error)
    return None


def _record_jobs(folder: Path, jobs: list[list[str]], config: DictConfig) -> None:
    """Write jobs.json.

    Raises:
        InputError: the folder holds something else than this sweep, or this sweep is not to be continued.
    """
    file = folder / JOBS_FILE
    elsewhere = "give another folder with hydra.sweep.dir=FOLDER"
    if file.exists() or (folder / SWEEP_FILE).exists():
        if config.get("resume") is None:
            raise InputError(
                f"{folder} holds a sweep already: continue it with {override_word('resume', folder)}, or "
                f"{elsewhere}"
            )
        for number, before in enumerate(_read_jobs(folder, list(config.hydra.overrides.task))):
            if (now := jobs[number] if number < len(jobs) else []) != before:
                raise InputError(
                    f"{folder} was started with other jobs: number {number} was "
                    f"{' '.join(before) or 'the default'} and is {' '.join(now) or 'not there'} now; "
                    f"give the original command and CSV, or {elsewhere}"
                )
        (folder / RESULTS_FILE).unlink(missing_ok=True)
    elif any(folder.glob("*/config.yaml")) or RunFolder(folder).is_run:
        raise InputError(f"{folder} holds runs of another experiment: {elsewhere}")
    files.write_json(file, jobs, indent=1)


def _read_jobs(folder: Path, command: list[str]) -> list[list[str]]:
    """The jobs that a sweep was started with; none if jobs.json is damaged and the command is still the same.

    Raises:
        InputError: jobs.json is damaged, and it is not known whether the jobs are the same.
    """
    try:
        jobs = files.read_json(folder / JOBS_FILE)
        if not isinstance(jobs, list) or not all(isinstance(job, list) for job in jobs):
            raise files.DamagedError(f"{folder / JOBS_FILE} is damaged (it holds no jobs)")
        return [[str(override) for override in job] for job in jobs]
    except files.DamagedError as error:
        if task_overrides(resume.read_sweep(folder)[0]) != task_overrides(command):
            raise InputError(f"{error}: give the original command, in {folder / SWEEP_FILE}") from error
        log.warning("%s: it is written anew, since the command is the original one", error)
        return []
