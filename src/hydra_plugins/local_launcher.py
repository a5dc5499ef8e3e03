"""The jobs of a sweep on this machine, each in a child process.

Hydra imports this module at every start: heavy imports are inside the functions.
"""

import importlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)


class LocalLauncher(Launcher):
    """Runs jobs side by side. A job that aborts, or is killed, has that in its log; the others go on.

    The task function must be importable by its name, as those that `hydra.main` decorates are.

    Args:
        n_jobs: how many jobs run at once. Each has its share of the cores, unless OMP_NUM_THREADS is set.
    """

    def __init__(self, n_jobs: int = 1) -> None:
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what a job needs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs.

        Args:
            job_overrides: of each job.
            initial_job_idx: the number of the first.

        Returns:
            What each job's task function returned; None for a job that died.

        Raises:
            InputError: `n_jobs` is not a positive number.
            SystemExit: Ctrl-C or SIGTERM came: the running jobs have saved and ended, the next ones are not
                started.
        """
        from polyp.errors import InputError
        from polyp.runs.folder import RunFolder
        from polyp.training import child_processes

        if type(self.n_jobs) is not int or self.n_jobs < 1:
            raise InputError(f"hydra.launcher.n_jobs={self.n_jobs} must be a whole number, at least 1")
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        returns = [JobReturn(overrides=list(job), status=JobStatus.COMPLETED) for job in job_overrides]
        configs: list[DictConfig] = []
        callbacks, task = self.hydra_context.callbacks, self.task_function

        def make_calls() -> Iterator[child_processes.Call]:
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
                with open_dict(config):
                    config.hydra.job.id = config.hydra.job.num = number
                configs.append(config)
                arguments = callbacks, config, task.__module__, task.__qualname__, self.n_jobs
                yield f"job {number}", _run_job, arguments

        for index, outcome in child_processes.call_each(make_calls(), self.n_jobs):
            returns[index].return_value = outcome.value
            if outcome.code:
                log.error("job %d: %s", initial_job_idx + index, outcome)
                sweep = configs[index].hydra.sweep
                file = RunFolder(Path(sweep.dir, sweep.subdir)).log_file
                with suppress(OSError):  # a full disk is reported by other writes
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with file.open("a") as lines:
                        lines.write(f"{outcome}\n")
        return returns


class _JobStream(io.TextIOBase):
    """Text of a job that runs beside other jobs: whole lines that begin with the job's name."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream, self.name, self.line = stream, name, ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        self.stream.write("".join(f"{self.name} | {line}\n" for line in lines if line))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


def _run_job(callbacks: Any, config: DictConfig, module: str, task: str, n_jobs: int) -> Any:
    if n_jobs > 1:
        name = f"job {config.hydra.job.num}"
        sys.stdout, sys.stderr = _JobStream(sys.stdout, name), _JobStream(sys.stderr, name)
        if "OMP_NUM_THREADS" not in os.environ:
            import torch

            torch.set_num_threads(max(torch.get_num_threads() // n_jobs, 1))
    setup_globals()
    loader: Any = None  # the configuration is composed
    job = run_job(
        # The script is __main__ here too, by multiprocessing. Decorated, the function takes a configuration.
        task_function=getattr(importlib.import_module(module), task),
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=HydraContext(config_loader=loader, callbacks=callbacks),
    )
    return job.return_value
