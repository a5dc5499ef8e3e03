"""What a run can be continued from: checkpoint files that are whole and hold no code, and when they are written."""

import logging
import os
import pickle
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from zipfile import BadZipFile, ZipFile

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.serialization import get_unsafe_globals_in_checkpoint

from polyp import runs
from polyp.errors import InputError, describe_error
from polyp.files import DamagedError, WriteError, atomic_write

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that a run goes on from.

    Attributes:
        file: where it is.
        content: what Lightning put into it.
        max_epochs: of the run so far.
    """

    file: Path
    content: dict[str, Any]
    max_epochs: int | None

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return self.content["global_step"]

    @property
    def epochs(self) -> int:
        """Whole epochs done."""
        return self.content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def load(file: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        DamagedError: it is cut short or altered.
        InputError: it holds code: objects that are more than tensors, numbers, texts, lists and dicts.
    """
    try:
        with ZipFile(file) as members:
            if damaged := members.testzip():  # torch does not look at the checksums
                raise ValueError(f"the checksum of {damaged} is wrong")
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, BadZipFile) as error:
        raise DamagedError(f"{file} is damaged ({describe_error(error)})") from error
    except pickle.UnpicklingError as error:
        try:
            objects = get_unsafe_globals_in_checkpoint(file)
        except Exception:  # whatever reading damaged bytes raises
            objects = []
        if not objects:
            raise DamagedError(f"{file} is damaged ({describe_error(error)})") from error
        raise InputError(
            f"{file} holds code ({', '.join(objects[:3])}), which would run when it is opened: refused. Take only "
            "checkpoints that polyp wrote, or save the others' weights as .safetensors for model.encoder_weights"
        ) from error


def to_continue(folder: Path) -> Saved | None:
    """What a run goes on from: last.ckpt or, if that is damaged, the one before it.

    Returns:
        None if there is neither: the run has not come to the end of its first epoch.

    Raises:
        InputError: both are damaged, or one holds code.
    """
    damaged = []
    for file in (runs.last_checkpoint(folder), runs.previous_checkpoint(folder)):
        if file.is_file():
            try:
                found = Saved(file, load(file), runs.read_config(folder)["trainer"]["max_epochs"])
            except DamagedError as error:
                damaged.append(str(error))
                continue
            if "epoch_so_far" not in found.content:
                raise InputError(f"{file} was written by polyp 0.1, from which nothing can go on: start a new run")
            if damaged:
                log.warning("%s: continuing from the one before it, after epoch %d", damaged[0], found.epochs)
            return found
    if damaged:
        raise InputError(f"{' and '.join(damaged)}: delete {folder / runs.CHECKPOINTS} to train from the beginning")
    return None


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then puts it there: whoever finds it finds it whole.

    Of last.ckpt the one before is kept as previous.ckpt.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it, flushed to the disk.

        Raises:
            WriteError: the disk is full or not writable; what was there before stays.
        """
        file = Path(path)
        try:
            with atomic_write(file) as temporary:
                try:
                    with temporary.open("wb") as stream:
                        torch.save(checkpoint, stream)
                except RuntimeError as error:  # torch's, when a stream fails
                    raise OSError(describe_error(error.__context__ or error)) from error
                if file.name == runs.LAST and file.exists():
                    os.replace(file, runs.previous_checkpoint(file.parents[1]))
        except WriteError as error:
            raise WriteError(
                f"{error}: free some space, then continue with {runs.resume_hint(file.parents[1])}"
            ) from error


class Checkpoint(ModelCheckpoint):
    """One file that is written anew each time there is something better or later to keep."""

    def __init__(self, path: Path, **options: Any) -> None:
        # At the very end of an epoch, which comes after validation: a run that is resumed begins with a whole epoch.
        options |= {"save_on_train_epoch_end": True, "enable_version_counter": False}
        super().__init__(dirpath=path.parent, filename=path.stem, **options)
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, unless the epoch was cut short (max_steps) before there was a number to go by."""
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The best score, and no path: a run's folder may be moved before it is resumed."""
        return {"best_model_score": self.best_model_score, "current_score": self.current_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the score of the file that is there."""
        self.best_model_score, self.current_score = state_dict["best_model_score"], state_dict["current_score"]
        if self.best_model_score is not None:
            path = self.best_model_path = self.kth_best_model_path = str(self.path)
            self.kth_value, self.best_k_models = self.best_model_score, {path: self.best_model_score}


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt after each epoch, and at once when the user (Ctrl-C) or the machine (SIGTERM) stops the run.

    At once means after the step that is being taken; during validation, at the end of the epoch. The process then exits
    with 128 + the signal's number. Nothing is saved when training fails: a NaN must not take the place of good weights.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(runs.last_checkpoint(folder))
        self.folder = folder
        self.stop: signal.Signals | None = None
        self.seconds_before = 0.0
        self.started = time.time()

    @property
    def seconds(self) -> float:
        """How long the run has taken, without the time between its parts and without what was lost."""
        return self.seconds_before + time.time() - self.started

    def state_dict(self) -> dict[str, Any]:
        """The time so far."""
        return super().state_dict() | {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        super().load_state_dict(state_dict)
        self.seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen from here on: Lightning has set a handler that would leave in the middle of an epoch's end."""
        if threading.current_thread() is threading.main_thread():  # the only one that may
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)  # Lightning puts the former handlers back at the end

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked a second time: without saving
        self.stop = signal.Signals(number)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and leave if asked to; not between two batches that make one step, nor where the epoch ends anyway."""
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if stepped and not trainer.is_last_batch and self._asked(trainer):
            self._save_checkpoint(trainer, str(self.path))
            self._leave(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and leave if asked to."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._asked(trainer):
            self._leave(trainer)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.flush()  # first: a curve must not end before what it is continued from
        super()._save_checkpoint(trainer, filepath)

    def _asked(self, trainer: pl.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.stop is not None, all=False)

    def _leave(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            where = f"Stopped in epoch {trainer.current_epoch + 1} and saved"
            print(f"\n{where}. To continue: python train.py {runs.resume_hint(self.folder)}", flush=True)
        raise SystemExit(128 + (self.stop or signal.SIGTERM))


class Patience(EarlyStopping):
    """Early stopping whose patience may be given anew, and which stays stopped when the run is resumed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up everything but the patience."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train no further if the patience had been used up."""
        trainer.should_stop = self.wait_count >= self.patience
