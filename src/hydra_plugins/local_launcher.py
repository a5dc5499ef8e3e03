"""The jobs of a sweep one after another on this machine, each in a process of its own.

Hydra imports this at every start, so that what is heavy comes late.
"""

import importlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)


class LocalLauncher(Launcher):
    """Runs the jobs one after another. A job that aborts, or is killed, says so in its log; the others go on.

    The task function must be importable by its name, as those that `hydra.main` decorates are.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what a job needs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs.

        Args:
            job_overrides: of each job.
            initial_job_idx: the number of the first.

        Returns:
            What each job's task function returned; None for a job that died.

        Raises:
            SystemExit: Ctrl-C or SIGTERM came: the running job has saved and ended, the next ones are not started.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        log.info("Launching %d jobs, one after another", len(job_overrides))
        return [self._run(number, overrides) for number, overrides in enumerate(job_overrides, initial_job_idx)]

    def _run(self, number: int, overrides: Sequence[str]) -> JobReturn:
        from polyp import isolation, runs

        log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        task: Any = self.task_function
        arguments = (self.hydra_context.callbacks, config, task.__module__, task.__qualname__)
        outcome = isolation.call(_job, *arguments, name=f"job {number}")
        if outcome.code:
            log.error("job %d: %s", number, outcome)
            file = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir, runs.LOG)
            with suppress(OSError):  # a full disk has been reported, or is by what is written next
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("a") as lines:
                    lines.write(f"{outcome}\n")
        done = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
        done.return_value = outcome.value
        return done


def _job(callbacks: Any, config: DictConfig, module: str, task: str) -> Any:
    setup_globals()
    loader: Any = None  # the configuration is composed
    # The script is __main__ here too (multiprocessing sees to that). Decorated, the function takes a configuration.
    function = getattr(importlib.import_module(module), task)
    job = run_job(
        task_function=function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=HydraContext(config_loader=loader, callbacks=callbacks),
    )
    return job.return_value
