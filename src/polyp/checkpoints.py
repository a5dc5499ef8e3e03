"""What a run can be continued from: checkpoint files that are whole and hold no code, and when they are written."""

import logging
import os
import pickle
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
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
from polyp.processes import STOPS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that a run goes on from.

    Attributes:
        file: where it is.
        content: what Lightning put into it.
        max_epochs: of the run so far.
        copy_of_best: the file to make best.ckpt of, if that is damaged or gone.
    """

    file: Path
    content: dict[str, Any]
    max_epochs: int | None
    copy_of_best: Path | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return self.content["global_step"]

    @property
    def epochs(self) -> int:
        """Whole epochs done."""
        return self.content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]

    @property
    def data_fingerprint(self) -> str | None:
        """Of the data that the run was trained on; older checkpoints do not have it."""
        return self.content.get("data_fingerprint")

    def restore_best(self, folder: Path) -> None:
        """Make best.ckpt anew where that is possible and needed."""
        if self.copy_of_best is not None:
            best = runs.best_checkpoint(folder)
            log.warning("%s was damaged or gone: it is made anew from %s", best, self.copy_of_best.name)
            with atomic_write(best) as temporary:
                shutil.copyfile(self.copy_of_best, temporary)


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


def to_continue(folder: Path, max_epochs: int | None) -> Saved | None:
    """What a run goes on from: last.ckpt or, if that is damaged, the one before it.

    Args:
        folder: the run's.
        max_epochs: that it is to be trained for.

    Returns:
        None if there is neither: the run has not come to the end of its first epoch.

    Raises:
        InputError: both are damaged, or one holds code; or best.ckpt is damaged, and neither is a copy of it.
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
            return _with_best(found, folder, max_epochs)
    if damaged:
        raise InputError(f"{' and '.join(damaged)}: delete {folder / runs.CHECKPOINTS} to train from the beginning")
    return None


def _with_best(last: Saved, folder: Path, max_epochs: int | None) -> Saved:
    """Look at best.ckpt before any epoch is trained: later epochs need not be better than a best one that is lost."""
    best = runs.best_checkpoint(folder)
    states = last.content["callbacks"].items()
    state: dict[str, Any] = next((state for key, state in states if key.startswith(f"{Checkpoint.__name__}{{")), {})
    if state.get("best_model_score") is None:  # no epoch was validated
        return last
    try:
        if best.is_file():
            load(best)
            return last
        reason = f"{best} is gone"
    except DamagedError as error:
        reason = str(error)
    if state.get("step") == last.steps:
        return replace(last, copy_of_best=last.file)
    with suppress(DamagedError, OSError):
        if load(previous := runs.previous_checkpoint(folder))["global_step"] == state.get("step"):
            return replace(last, copy_of_best=previous)
    more = "" if max_epochs is None or last.epochs < max_epochs else ", and give trainer.max_epochs=MORE"
    if best.is_file() or more:
        raise InputError(
            f"{reason}, the best epoch so far is lost: to train on and take the best of the remaining epochs, delete "
            f"it{more}; or start a new run"
        )
    log.warning("%s: the best of the remaining epochs is taken", reason)
    return last


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
            raise WriteError(f"{error}: {runs.way_out(file.parents[1])}") from error


class Checkpoint(ModelCheckpoint):
    """One file that is written anew each time there is something better or later to keep."""

    def __init__(self, path: Path, **options: Any) -> None:
        # At the very end of an epoch, which comes after validation: a run that is resumed begins with a whole epoch.
        options |= {"save_on_train_epoch_end": True, "enable_version_counter": False}
        super().__init__(dirpath=path.parent, filename=path.stem, **options)
        self.path = path
        self.step: int | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, unless the epoch was cut short (max_steps) before there was a number to go by."""
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.step = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """The best score and its step, and no path: a run's folder may be moved before it is resumed."""
        return {"best_model_score": self.best_model_score, "current_score": self.current_score, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the score of the file that is there; of one that is gone nothing is taken up."""
        if not self.path.is_file():
            return
        self.best_model_score, self.current_score = state_dict["best_model_score"], state_dict["current_score"]
        self.step = state_dict.get("step")
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
        self.handlers: dict[signal.Signals, Any] = {}
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

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the fingerprint of the data, which may be moved before the run is resumed."""
        checkpoint["data_fingerprint"] = trainer.datamodule.inspection.fingerprint  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen from here on, until training ends."""
        if threading.current_thread() is threading.main_thread():  # the only one that may
            self.handlers = {number: signal.signal(number, self._on_signal) for number in STOPS}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave if asked to since the last epoch's end."""
        self._restore_handlers()
        if self._asked(trainer):
            self._leave(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Listen no more."""
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

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
            epoch = min(trainer.current_epoch + 1, trainer.max_epochs or trainer.current_epoch + 1)
            where = f"Stopped in epoch {epoch} and saved"
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
