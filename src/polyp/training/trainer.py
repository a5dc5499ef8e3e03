"""Lightning's Trainer, with the callbacks and the logger that write a run's folder."""

import logging
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from polyp.errors import InputError, describe_error, pick
from polyp.model import device
from polyp.runs.folder import RunFolder
from polyp.settings import check_keys, collect, raise_together
from polyp.training import distributed
from polyp.training.callbacks import (
    BatchSize,
    EpochLine,
    ProgressBar,
    StepSeed,
    WeightAverage,
    import_callbacks,
)
from polyp.training.checkpoints import Checkpoint, CheckpointFiles, LastCheckpoint, Patience
from polyp.training.loggers import RunLogger
from polyp.training.pictures import TestRecord, ValidationPictures
from polyp.training.pruning import pruning_callbacks

FIXED_ARGUMENTS = (
    *("callbacks", "logger", "default_root_dir"),
    *("enable_model_summary", "plugins", "use_distributed_sampler"),
)
"""Arguments of the Trainer that are no settings."""

LIMITS = {
    "limit_train_batches": "nothing to train on",
    "limit_val_batches": "no number to choose the best checkpoint by",
    "limit_test_batches": "no number for the result",
}
"""Arguments of the Trainer that must not be 0, and why."""

SILENT_WARNINGS = (
    # a frozen encoder is in eval mode
    r".*module\(s\) in eval mode at the start of training.*",
    # the cache makes validation cheap and testing is short: worker processes would take longer to start
    ".*does not have many workers.*",
    ".*The number of training batches.*is smaller than the logging interval.*",
    # wherever Slurm is installed: https://github.com/Lightning-AI/pytorch-lightning/issues/20776
    ".*`srun` command is available on your system but is not used.*",
    # torchmetrics synchronises
    ".*It is recommended to use .*sync_dist=True",
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    ".*LeafSpec.* is deprecated",
    ".*Checkpoint directory .* exists and is not empty.*",
)
"""Warnings of Lightning and torch that do not apply."""

MONITORS = {f"val/{name}": name for name in ("dice", "iou", "precision", "recall", "pooled_dice")}
"""The validation numbers that can choose the best checkpoint: those of which more is better."""


def build_trainer(folder: RunFolder, config: Mapping[str, Any], steps_done: int = 0) -> pl.Trainer:
    """A Trainer that writes a run's folder.

    Args:
        folder: the run's.
        config: the run's: `trainer` has the arguments of Lightning's Trainer; `monitor`, `patience`, `seed`,
            `optim.ema_decay` and `callbacks` make the callbacks, `logger` is a name in `loggers.WRITERS`.
        steps_done: optimiser steps of the checkpoint that training continues from; later points of the
            curves are forgotten.

    Raises:
        InputError: an unknown or impossible argument.
    """
    settings, monitor, patience = config["trainer"], config["monitor"], config["patience"]
    ema_decay = config["optim"].get("ema_decay")
    problems: list[str] = []
    with collect(problems):
        _check_settings(settings)
    with collect(problems):
        pick("monitor", monitor, MONITORS)
    if not (patience is None or (type(patience) is int and patience > 0)):
        problems.append(
            f"patience={patience} must be a number of epochs, at least 1, or null to train to the end"
        )
    with collect(problems):
        logger = RunLogger(folder, config, steps_done)
    with collect(problems):
        user_callbacks = import_callbacks(config.get("callbacks"))
    raise_together(problems)
    callbacks: list[pl.Callback] = [  # the first checkpoint callback is the one that Lightning calls its own
        StepSeed(config["seed"]),
        BatchSize(),
        LearningRateMonitor("step"),
        EpochLine(),
        ValidationPictures(),
        Checkpoint(folder.best_checkpoint, monitor=monitor, mode="max"),
        LastCheckpoint(folder),
        *pruning_callbacks(folder, monitor),
        *user_callbacks,
    ]
    if ema_decay is not None:
        callbacks.append(WeightAverage(ema_decay))
    if patience is not None:
        callbacks.append(Patience(monitor, mode="max", patience=patience))
    return make_trainer(folder, settings, callbacks, logger, distributed.cluster_environment())


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Check the arguments of Lightning's Trainer, and that there are steps to train, validate and test."""
    auto = {"precision": None} if settings.get("precision") == "auto" else {}  # Lightning has no auto
    check_keys("trainer", {**settings, **auto}, pl.Trainer, exclude=FIXED_ARGUMENTS)
    problems = [
        f"trainer.{key}=0 leaves {consequence}: give another value"
        for key, consequence in LIMITS.items()
        if settings.get(key) == 0
    ]
    with collect(problems):
        distributed.check_settings(settings)
    epochs, interval = settings.get("max_epochs"), settings.get("check_val_every_n_epoch", 1)
    if epochs is not None and epochs < 1:
        problems.append(f"trainer.max_epochs={epochs} trains nothing: give at least 1")
    elif epochs is not None and interval is not None and interval > epochs:
        problems.append(
            f"trainer.check_val_every_n_epoch={interval} is more than trainer.max_epochs={epochs}: lower it"
        )
    raise_together(problems)


def build_tester(folder: RunFolder, settings: dict[str, Any], test_device: torch.device) -> pl.Trainer:
    """A Trainer that tests on one device, so that each image is scored once, and writes to the folder.

    Args:
        folder: the run's.
        settings: `trainer` of the configuration.
        test_device: the device.
    """
    devices = 1 if test_device.index is None else [test_device.index]
    single = {"devices": devices, "num_nodes": 1, "strategy": "auto"}
    options = settings | single | {"enable_checkpointing": False, "precision": "32-true"}
    return make_trainer(folder, options, [TestRecord(folder)])


def make_trainer(
    folder: RunFolder,
    settings: Mapping[str, Any],
    callbacks: list[pl.Callback],
    logger: Any = False,
    environment: ClusterEnvironment | None = None,
) -> pl.Trainer:
    """Lightning's Trainer with polyp's way to write checkpoints, to show progress and to stop on signals.

    Args:
        folder: takes the Trainer's files.
        settings: arguments of the Trainer; the precision may be auto.
        callbacks, logger: of the Trainer.
        environment: describes the processes of the run; None for a single one.

    Raises:
        InputError: Lightning refuses a value.
    """
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in SILENT_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # Only in a terminal: in a file, or from many jobs at once, a progress bar is noise.
    if bar := sys.stderr.isatty() and settings.get("enable_progress_bar", True):
        callbacks.append(ProgressBar())
    accelerator = settings.get("accelerator")
    has_sync = device.cuda(accelerator)  # torch has sync_batchnorm for NVIDIA GPUs only
    options = {
        "precision": device.precision(settings.get("precision"), accelerator),
        "sync_batchnorm": has_sync and settings.get("sync_batchnorm", False),
        "enable_progress_bar": bar,
    }
    try:
        trainer = pl.Trainer(
            **{**settings, **options},
            default_root_dir=folder.path,
            logger=logger,
            callbacks=callbacks,
            # without an environment Lightning takes any job of Slurm for srun's
            plugins=[CheckpointFiles(folder), environment or LightningEnvironment()],
            use_distributed_sampler=False,  # EpochSampler shares the images out
            enable_model_summary=False,
        )
    except (ValueError, ModuleNotFoundError, MisconfigurationException) as error:
        raise InputError(f"trainer: {describe_error(error)}") from error
    # Lightning's handlers would end a test as if it were complete, and training in the middle of an epoch's
    # end. polyp's handlers are in `exit_on_signals` and `LastCheckpoint`.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer
