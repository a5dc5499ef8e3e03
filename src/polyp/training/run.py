"""An opened run: its locked folder, its configuration, and the checkpoint that it continues from."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from polyp import files, terminal
from polyp.errors import InputError
from polyp.runs import resume
from polyp.runs.configuration import check_composition, check_names, resolve_config
from polyp.runs.folder import RunFolder, lock_folder
from polyp.runs.overrides import check_overrides
from polyp.training import distributed, sweeps
from polyp.training.signals import exit_on_signals

if TYPE_CHECKING:
    from polyp.runs.checkpoints import ResumePoint

log = logging.getLogger("polyp")


@dataclass
class Run:
    """A run that this process trains.

    Attributes:
        folder: its folder.
        config: its configuration, as plain containers.
        resume_point: the checkpoint that it continues from; None for a new run.
        is_finished: whether nothing is left to do.
        is_worker: whether another process leads the run, and this one only trains.
    """

    folder: RunFolder
    config: dict[str, Any]
    resume_point: "ResumePoint | None" = None
    is_finished: bool = False
    is_worker: bool = False
    _log_buffer: ExitStack = field(default_factory=ExitStack)

    @property
    def ends_after_training(self) -> bool:
        """Whether there is no test: in a worker, and in Lightning's fast_dev_run, which saves nothing."""
        return self.is_worker or bool(self.config["trainer"].get("fast_dev_run"))

    @property
    def best_value(self) -> float:
        """The validation number of the best checkpoint, of a finished run."""
        return self.folder.read_metrics()["best"]["value"]

    def begin(self, subsets: Mapping[str, Sequence[str]]) -> None:
        """Write config.yaml and split.json, the first change in the folder; now the run can be resumed."""
        if self.is_worker:
            return
        self.folder.write_config(self.config, subsets)
        self._log_buffer.close()
        if self.resume_point is not None:
            self.resume_point.restore_best(self.folder)
        distributed.announce_run(os.path.relpath(self.folder.path))


def prepare_command_line(conf: Path) -> None:
    """Check the overrides of sys.argv, and replace `resume=SWEEP_FOLDER` by the command of that sweep.

    A process of torchrun or srun that does not lead waits for the run.

    Raises:
        SystemExit: an override cannot be understood, or the sweep's command is not known; with the reason in
            one line.
    """
    distributed.join_run()
    sys.argv = sweeps.expand_resume(sys.argv)
    check_overrides(sys.argv)
    check_composition(sys.argv, conf)


@contextmanager
def open_run(cfg: DictConfig) -> Iterator[Run]:
    """Open the run of a command: new, or one to continue. Its folder is locked until the end of the block.

    Bad input ends the process with one line. In a sweep it is logged, the block ends, and the other jobs
    go on.
    """
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    folder = RunFolder(hydra.runtime.output_dir if cfg.resume in (None, resume.AUTO) else cfg.resume)
    try:
        with ExitStack() as stack:
            if distributed.is_worker():
                yield stack.enter_context(_open_worker(folder))
                return
            stack.enter_context(exit_on_signals(folder))
            stack.enter_context(files.catch_disk_errors(folder.disk_advice))
            if not in_sweep:
                if (launcher := hydra.runtime.choices["launcher"]) != "local":
                    raise InputError(f"launcher={launcher} is for the jobs of a sweep: add -m")
                check_names(cfg)
            yield _open(cfg, folder, stack)
    except InputError as error:
        if not in_sweep:
            resume.discard(folder.path)
            sys.exit(f"{error}")
        log.error("%s", error)
    except SystemExit:  # stopped by a signal
        if not in_sweep:
            resume.discard(folder.path)
        raise
    except Exception:
        if not in_sweep:
            raise
        log.exception("the job failed")


@contextmanager
def _buffer_log() -> Iterator[None]:
    """Write to train.log at the end of the block, and not at all if an exception ends it."""
    root = logging.getLogger()
    file_handlers = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]
    buffers = [MemoryHandler(sys.maxsize, sys.maxsize, handler) for handler in file_handlers]
    root.handlers = [*(handler for handler in root.handlers if handler not in file_handlers), *buffers]
    try:
        yield
        for buffer in buffers:
            buffer.flush()
    finally:
        root.handlers = [*(handler for handler in root.handlers if handler not in buffers), *file_handlers]


def _open(cfg: DictConfig, folder: RunFolder, stack: ExitStack) -> Run:
    config = resume.choose_config(resolve_config(cfg), folder, HydraConfig.get().overrides.task)
    if cfg.resume == resume.AUTO and folder.is_finished:
        log.info("%s is finished: test Dice %.3f", folder, folder.read_metrics()["test"]["dice"])
        return Run(folder, config, is_finished=True)
    if not folder.is_run:
        from polyp.runs.early_checks import check_names_and_paths  # imports OpenCV

        check_names_and_paths(config)
    stack.enter_context(lock_folder(folder.path, "a run"))
    log_buffer = ExitStack()
    log_buffer.enter_context(_buffer_log())
    stack.push(log_buffer)  # a command that is refused leaves train.log as it was
    with terminal.loading():
        from polyp.runs.checkpoints import find_resume_point  # imports torch

    point = find_resume_point(folder, config["trainer"]["max_epochs"])
    return Run(folder, config, point, _log_buffer=log_buffer)


@contextmanager
def _open_worker(folder: RunFolder) -> Iterator[Run]:
    with distributed.follow_leader(folder):
        from polyp.runs.checkpoints import find_resume_point  # imports torch

        config = folder.read_config()
        point = find_resume_point(folder, config["trainer"]["max_epochs"])
        yield Run(folder, config, point, is_worker=True)
