"""Lightning's Trainer, with the callbacks and the logger that make a run's folder."""

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
from polyp.training import launch
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
from polyp.training.search import pruning_callbacks

FIXED_ARGUMENTS = (
    "callbacks",
    "logger",
    "default_root_dir",
    "enable_model_summary",
    "plugins",
    "use_distributed_sampler",
)
"""Arguments of the Trainer that are made here."""

LIMITS = {
    "limit_train_batches": "nothing to train on",
    "limit_val_batches": "no number to choose the best checkpoint by",
    "limit_test_batches": "no number for the result",
}
"""Arguments of the Trainer that must not be 0, and why."""

MONITORS = {f"val/{name}": name for name in ("dice", "iou", "precision", "recall", "pooled_dice")}
"""What can decide which checkpoint is the best: the validation numbers of which more is better."""


def build_trainer(folder: RunFolder, config: Mapping[str, Any], steps_done: int = 0) -> pl.Trainer:
    """A Trainer that writes what a run's folder holds.

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
        check_trainer(settings)
    with collect(problems):
        pick("monitor", monitor, MONITORS)
    if not (patience is None or (type(patience) is int and patience > 0)):
        problems.append(
            f"patience={patience} must be a number of epochs, at least 1, or null to train to the end"
        )
    with collect(problems):
        logger = RunLogger(folder, config, steps_done)
    with collect(problems):
        own = import_callbacks(config.get("callbacks"))
    raise_together(problems)
    silence_lightning()
    callbacks: list[pl.Callback] = [  # the first checkpoint callback is the one that Lightning calls its own
        StepSeed(config["seed"]),
        BatchSize(),
        LearningRateMonitor("step"),
        EpochLine(),
        ValidationPictures(),
        Checkpoint(folder.best_checkpoint, monitor=monitor, mode="max"),
        LastCheckpoint(folder),
        *pruning_callbacks(folder, monitor),
        *own,
    ]
    if ema_decay is not None:
        callbacks.append(WeightAverage(ema_decay))
    if patience is not None:
        callbacks.append(Patience(monitor, mode="max", patience=patience))
    return _trainer(folder, settings, callbacks, logger, launch.cluster_environment())


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Check the arguments of Lightning's Trainer as far as they can be checked without data.

    Raises:
        InputError: one is unknown or has another type, or the run could not choose its best checkpoint or be
            tested.
    """
    auto = {"precision": None} if settings.get("precision") == "auto" else {}  # which is ours
    check_keys("trainer", {**settings, **auto}, pl.Trainer, exclude=FIXED_ARGUMENTS)
    problems = [
        f"trainer.{key}=0 leaves {what}: give another value"
        for key, what in LIMITS.items()
        if settings.get(key) == 0
    ]
    with collect(problems):
        launch.check_settings(settings)
    epochs, every = settings.get("max_epochs"), settings.get("check_val_every_n_epoch", 1)
    if epochs is not None and epochs < 1:
        problems.append(f"trainer.max_epochs={epochs} trains nothing: give at least 1")
    elif epochs is not None and every is not None and every > epochs:
        problems.append(
            f"trainer.check_val_every_n_epoch={every} is more than trainer.max_epochs={epochs}: lower it"
        )
    raise_together(problems)


def build_tester(folder: RunFolder, settings: dict[str, Any], test_device: torch.device) -> pl.Trainer:
    """A Trainer that leaves in `folder` what the test leaves there, each image scored once: it has a single
    device.

    Args:
        folder: the run's.
        settings: as above.
        test_device: the device to test on.
    """
    alone = {
        "devices": 1 if test_device.index is None else [test_device.index],
        "num_nodes": 1,
        "strategy": "auto",
    }
    return _trainer(
        folder,
        settings | alone | {"enable_checkpointing": False, "precision": "32-true"},
        [TestRecord(folder)],
        False,
        LightningEnvironment(),
    )


def _trainer(
    folder: RunFolder,
    settings: dict[str, Any],
    callbacks: list[pl.Callback],
    logger: Any,
    environment: ClusterEnvironment,
) -> pl.Trainer:
    # Only for somebody who watches: in a file, or from many jobs at once, a progress bar is noise.
    if bar := sys.stderr.isatty() and settings.get("enable_progress_bar", True):
        callbacks.append(ProgressBar())
    accelerator = settings.get("accelerator")
    resolved = {
        "precision": device.precision(settings.get("precision"), accelerator),
        "sync_batchnorm": settings.get("sync_batchnorm", False)
        and device.cuda(accelerator),  # torch has it for these only
        "enable_progress_bar": bar,
    }
    try:
        trainer = pl.Trainer(
            **settings | resolved,
            default_root_dir=folder.path,
            logger=logger,
            callbacks=callbacks,
            plugins=[
                CheckpointFiles(folder),
                environment,
            ],  # else Lightning takes any job of Slurm for srun's
            use_distributed_sampler=False,  # EpochSampler shares the images out
            enable_model_summary=False,
        )
    # how Lightning refuses a value
    except (ValueError, ModuleNotFoundError, MisconfigurationException) as error:
        raise InputError(f"trainer: {describe_error(error)}") from error
    # Lightning's handlers would end a test as if it were complete, and training in the middle of an epoch's
    # end: ours are `processes.exit_on_signals` and `LastCheckpoint`.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def silence_lightning() -> None:
    """Suppress Lightning's messages about itself; those about the user's run stay."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A frozen encoder is meant to be.
    warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training.*")
    # The cache makes validation cheap and testing is short: processes for them would cost more than they
    # bring.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings(
        "ignore", message=".*The number of training batches.*is smaller than the logging interval.*"
    )
    # Said wherever Slurm is installed: https://github.com/Lightning-AI/pytorch-lightning/issues/20776
    warnings.filterwarnings(
        "ignore", message=".*`srun` command is available on your system but is not used.*"
    )
    # torchmetrics has done so
    warnings.filterwarnings("ignore", message=".*It is recommended to use .*sync_dist=True")
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
