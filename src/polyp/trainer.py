"""Lightning's Trainer, with the callbacks and the logger that make a run's folder."""

import inspect
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, TQDMProgressBar, WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import get_ema_multi_avg_fn

from polyp import runs
from polyp.callbacks import EpochLine, StepSeed, TestRecord, ValidationPictures
from polyp.checkpoints import Checkpoint, CheckpointFiles, LastCheckpoint, Patience
from polyp.errors import InputError, nearest, pick

OURS = {"callbacks", "logger", "default_root_dir", "enable_model_summary", "plugins"}
"""Arguments of the Trainer that are made here."""

MONITORS = {f"val/{name}": name for name in ("dice", "iou", "precision", "recall", "pooled_dice")}
"""What can decide which checkpoint is the best: the validation numbers of which more is better."""


class RunLogger(TensorBoardLogger):
    """TensorBoard's events in the run's folder and nothing else: the hyperparameters are in config.yaml."""

    def save(self) -> None:
        """Write no hparams.yaml."""


def build_trainer(
    folder: Path,
    seed: int,
    monitor: str,
    patience: int | None,
    ema_decay: float | None,
    settings: dict[str, Any],
    steps_done: int = 0,
) -> pl.Trainer:
    """A Trainer that leaves in `folder` what a run's folder holds.

    Args:
        folder: the run's.
        seed: of what is random inside the network.
        monitor: the logged number that decides which checkpoint is the best; more is better.
        patience: epochs without a better number after which training stops; None trains to the end.
        ema_decay: of the running average of the weights that is validated and kept; None keeps the weights as they are.
        settings: the arguments of Lightning's Trainer; precision may be "auto".
        steps_done: optimiser steps of the checkpoint that training goes on from; TensorBoard forgets what came later.

    Raises:
        InputError: an unknown or impossible argument.
    """
    known = set(inspect.signature(pl.Trainer).parameters) - OURS
    for key in settings:
        if key not in known:
            raise InputError(f"trainer.{key} is no argument of Lightning's Trainer: {nearest(key, known)}")
    pick("monitor", monitor, MONITORS)
    if settings.get("limit_val_batches") == 0:
        raise InputError("trainer.limit_val_batches=0 leaves no number to choose the best checkpoint by")
    _quieten()
    callbacks: list[pl.Callback] = [  # the first checkpoint callback is the one that Lightning calls its own
        StepSeed(seed),
        LearningRateMonitor("step"),
        EpochLine(),
        ValidationPictures(),
        TestRecord(folder),
        Checkpoint(runs.best_checkpoint(folder), monitor=monitor, mode="max"),
        LastCheckpoint(folder),
    ]
    if ema_decay is not None:
        # Lightning's EMAWeightAveraging goes through the weights one by one, which takes twice as long.
        callbacks.append(WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(ema_decay)))
    if patience is not None:
        callbacks.append(Patience(monitor, mode="max", patience=patience))
    # Only for somebody who watches: in a file, or from many jobs at once, a progress bar is noise.
    if bar := sys.stderr.isatty() and settings.get("enable_progress_bar", True):
        callbacks.append(TQDMProgressBar(leave=False))
    precision = _precision(settings.get("precision"), settings.get("accelerator"))
    try:
        return pl.Trainer(
            **settings | {"precision": precision, "enable_progress_bar": bar},
            default_root_dir=folder,
            logger=RunLogger(folder, name="", version="", default_hp_metric=False, purge_step=steps_done),
            callbacks=callbacks,
            plugins=[CheckpointFiles(), *_environment()],
            enable_model_summary=False,
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:  # what Lightning raises
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error


def _precision(wanted: Any, accelerator: Any) -> Any:
    """bf16 where the hardware multiplies it faster than float32: CPUs with AMX or AVX-512-BF16, GPUs from Ampere on."""
    if wanted != "auto":
        return wanted
    if accelerator != "cpu" and torch.cuda.is_available():
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator != "cpu" and torch.backends.mps.is_available():
        gains = False
    else:
        capabilities = torch.cpu.get_capabilities()
        gains = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bf16-mixed" if gains else "32-true"


def _environment() -> list[ClusterEnvironment]:
    """On Slurm a job of one task is a process like any other, and Lightning's own requeueing does not meddle."""
    if not SLURMEnvironment.detect() or TorchElasticEnvironment.detect():
        return []  # Lightning's choice
    return [LightningEnvironment() if os.environ["SLURM_NTASKS"] == "1" else SLURMEnvironment(auto_requeue=False)]


def _quieten() -> None:
    """Leave out what Lightning says about itself; what it says about the user's run stays."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    # The cache makes validation cheap and testing is short: processes for them would cost more than they bring.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings(
        "ignore", message=".*The number of training batches.*is smaller than the logging interval.*"
    )
    # Said wherever Slurm is installed: https://github.com/Lightning-AI/pytorch-lightning/issues/20776
    warnings.filterwarnings("ignore", message=".*`srun` command is available on your system but is not used.*")
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
