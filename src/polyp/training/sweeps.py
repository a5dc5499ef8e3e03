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
from polyp.runs.configuration import check_names, explain_hydra_error, resolve_config
from polyp.runs.folder import RESULTS_FILE, SWEEP_FILE, RunFolder, lock_folder
from polyp.runs.overrides import find_objection, parse_override, task_overrides
from polyp.runs.sweep_folder import JOBS_FILE, is_sweep, read_command
from polyp.training import child_processes
from polyp.training.job_labels import make_label, select_varied

log = logging.getLogger(__name__)

REPEATABLE = re.compile(
    r"hydra/sweeper"
    r"|hydra\.sweeper\.(path|max_batch_size|n_trials|n_jobs|seed|objectives|prune_after_(trials|epochs))"
    r"|hydra\.launcher\.(n_jobs|partition|account|qos|gpus_per_node|gres|cpus_per_task|mem_gb|timeout_min"
    r"|signal_delay_s|max_num_timeout|array_parallelism|ray\.remote\.num_(cpus|gpus))"
)
"""Hydra's settings that `resume=SWEEP` repeats: none of them is a function or a shell command to run."""


def check_extra(name: str, target: str, module: str | None = None) -> str:
    """The class of a Hydra plugin that needs one of polyp's extras.

    Args:
        name: the extra's.
        target: the class.
        module: a module of the extra; None for the module of the class.

    Raises:
        SystemExit: the extra is not installed, with the command that installs it.
    """
    try:
        spec = importlib.util.find_spec(module or target.rpartition(".")[0])
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        sys.exit(f"{name} is not installed: {install_command(name)}")
    return target


# Here, and not in train.py: the processes that a launcher starts import this module, but not that script.
OmegaConf.register_new_resolver("job_label", make_label, replace=True)
OmegaConf.register_new_resolver("extra", check_extra, replace=True)


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
        if value and (is_sweep(folder) or (folder / JOBS_FILE).is_file()):
            words = [argument for argument in argv[1:] if argument != word]
            try:
                command = [] if {"-m", "--multirun"} & set(words) else _repeat_command(folder, words)
            except InputError as error:
                sys.exit(f"{error}")
            directory = override_text("hydra.sweep.dir", str(folder))
            return [argv[0], "-m", *command, *words, f"resume={resume.AUTO}", directory]
    return list(argv)


def _repeat_command(folder: Path, words: Sequence[str]) -> list[str]:
    """The overrides of a sweep's command, without those whose keys the `words` of a new command set."""
    task, hydra = read_command(folder)
    omit = {"resume", "hydra.mode", "hydra.run.dir", "hydra.sweep.dir"}
    omit |= {word.partition("=")[0] for word in words}
    command = []
    for override in [*task, *hydra]:
        key = override.partition("=")[0]
        if key in omit:
            continue
        if not override.isprintable():
            objection: str | None = "is more than one line"
        elif not REPEATABLE.fullmatch(key):
            objection = find_objection(override)
        elif "{" in override:  # {_target_: FUNCTION} would call it
            objection = "is more than a value"
        else:  # checked like a setting of the task
            objection = find_objection(override.replace("hydra", "setting", 1))
        if objection:
            raise InputError(
                f"{folder / SWEEP_FILE}: {printable(override)} {objection} and is not repeated: if you want "
                f"it, add {printable(key)}=VALUE to the command"
            )
        command.append(override)
    return command


@contextmanager
def _exit_on_error(message: str = "") -> Iterator[None]:
    """Exit with 1 if anything is raised: Hydra turns exceptions of callbacks into warnings."""
    try:
        yield
    except InputError as error:
        sys.exit(f"{error}\n{message}".strip())
    except Exception:
        traceback.print_exc()
        sys.exit(message or 1)


class Sweep(Callback):
    """Hydra's callback: checks all jobs of a sweep and locks its folder before the first job, and prints the
    table after the last one.
    """

    def __init__(self) -> None:
        self.lock = ExitStack()

    def __getstate__(self) -> dict[str, str]:
        """The working folder of the sweep, for the process of a job, which makes the job's folder later."""
        return {"folder": os.getcwd()}

    def __setstate__(self, state: dict[str, str]) -> None:
        """Change to it: the processes of a cluster start in the folder in which the cluster was started."""
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
            kind = "trial" if _is_search(config) else "job"
            varied = select_varied(config.hydra.overrides.task, folder)
            sweep_results.print_job(folder, kind, number, total, varied)

    @_exit_on_error()
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table, list the jobs that failed, and exit with 1 if there are any."""
        if config.trainer.get("fast_dev_run"):  # Lightning's trial of one batch has no results
            return
        from polyp.training import sweep_results

        with self.lock:
            folder = Path(config.hydra.sweep.dir)
            results, failures = sweep_results.read_results(folder)
            sweep_results.print_results(results, failures, folder)
            if failures:
                sys.exit(1)
            if results:
                sweep_results.write_results(folder, results)


def _is_search(config: DictConfig) -> bool:
    return config.hydra.sweeper._target_.endswith(OptunaSweeper.__name__)


def _check_jobs(config: DictConfig, jobs: Sequence[tuple[list[str], str]]) -> None:
    """Compose the configurations of all jobs, and build those that differ in more than the seed."""
    from polyp.runs.early_checks import check_names_and_paths  # imports OpenCV

    if config.get("resume") not in (None, resume.AUTO):
        raise InputError(f"resume={config.resume} is no sweep's folder: give that, or resume=auto")
    common = set.intersection(*(set(job) for job, _ in jobs)) if len(jobs) > 1 else set()

    def make_error(number: int, reason: str) -> InputError:
        job, origin = jobs[number]
        overrides = " ".join(override for override in job if override not in common)
        return InputError(f"job {number}, {origin} ({overrides}), cannot work: {reason}")

    sources = config.hydra.runtime.config_sources
    conf = next(Path(source.path) for source in sources if source.provider == "main")
    configs: dict[int, dict[str, Any]] = {}
    for number, (job, _) in enumerate(jobs):
        try:
            cfg = compose(config.hydra.job.config_name, overrides=job)
            if cfg.trainer.devices not in (1, "1"):
                raise InputError(f"trainer.devices={cfg.trainer.devices}: a job of a sweep has one device")
            check_names(cfg)
            task = resolve_config(cfg)
            check_names_and_paths(task)
        except HydraException as error:  # InputError is one
            reason = f"{error}" if isinstance(error, InputError) else explain_hydra_error(error, job, conf)
            raise make_error(number, reason) from error
        if all(task | {"seed": similar["seed"]} != similar for similar in configs.values()):
            configs[number] = task
    with terminal.status(f"checking {len(jobs)} jobs"):
        outcome = child_processes.call(_find_error, configs, name="check of the jobs")
    if outcome.value:
        raise make_error(*outcome.value)
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
    """Write jobs.json, unless the folder holds other runs or a sweep that the command does not resume."""
    file = folder / JOBS_FILE
    advice = "give another folder with hydra.sweep.dir=FOLDER"
    if file.exists() or (folder / SWEEP_FILE).exists():
        if config.get("resume") is None:
            command = override_word("resume", folder)
            raise InputError(f"{folder} holds a sweep already: continue it with {command}, or {advice}")
        for number, old_job in enumerate(_read_jobs(folder, list(config.hydra.overrides.task))):
            if (job := jobs[number] if number < len(jobs) else []) != old_job:
                raise InputError(
                    f"{folder} was started with other jobs: number {number} was "
                    f"{' '.join(old_job) or 'the default'} and is {' '.join(job) or 'not there'} now; "
                    f"give the original command and CSV, or {advice}"
                )
        (folder / RESULTS_FILE).unlink(missing_ok=True)
    elif any(folder.glob("*/config.yaml")) or RunFolder(folder).is_run:
        raise InputError(f"{folder} holds runs of another experiment: {advice}")
    files.write_json(file, jobs, indent=1)


def _read_jobs(folder: Path, command: list[str]) -> list[list[str]]:
    """The jobs that a sweep was started with; empty if jobs.json is damaged and the command is the same."""
    try:
        jobs = files.read_json(folder / JOBS_FILE)
        if not isinstance(jobs, list) or not all(isinstance(job, list) for job in jobs):
            raise files.DamagedError(f"{folder / JOBS_FILE} is damaged (it holds no jobs)")
        return [[str(override) for override in job] for job in jobs]
    except files.DamagedError as error:
        if task_overrides(read_command(folder)[0]) != task_overrides(command):
            raise InputError(f"{error}: give the original command, in {folder / SWEEP_FILE}") from error
        log.warning("%s: it is written anew, since the command is the original one", error)
        return []
