"""Writing checkpoints: whole files only, after each epoch and when a signal stops the run."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from polyp.errors import describe_error, train_command
from polyp.files import WriteError, atomic_write
from polyp.runs.folder import RunFolder
from polyp.training.loggers import RunLogger
from polyp.training.processes import STOP_SIGNALS


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints atomically, keeps the last.ckpt before as previous.ckpt, and loads no code."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

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
                if file.name == self.folder.last_checkpoint.name and file.exists():
                    os.replace(file, self.folder.previous_checkpoint)
        except WriteError as error:
            raise WriteError(f"{error}: {self.folder.disk_advice}") from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> Any:
        """Load a file of plain values and tensors."""
        return super().load_checkpoint(path, map_location, weights_only=True)


class Checkpoint(ModelCheckpoint):
    """One file that is written anew each time there is something better or later to keep."""

    def __init__(self, path: Path, **options: Any) -> None:
        # At the very end of an epoch, which comes after validation: a run that is resumed begins with a whole
        # epoch.
        options |= {"save_on_train_epoch_end": True, "enable_version_counter": False}
        # as Lightning has it, which else would take the file that it replaces for another
        self.path = path.resolve()
        super().__init__(dirpath=self.path.parent, filename=path.stem, **options)
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
        return {
            "best_model_score": self.best_model_score,
            "current_score": self.current_score,
            "step": self.step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the score of the file that is there; of one that is gone nothing is taken up."""
        if not self.path.is_file():
            return
        self.best_model_score, self.current_score = (
            state_dict["best_model_score"],
            state_dict["current_score"],
        )
        self.step = state_dict.get("step")
        if self.best_model_score is not None:
            path = self.best_model_path = self.kth_best_model_path = str(self.path)
            self.kth_value, self.best_k_models = self.best_model_score, {path: self.best_model_score}


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt after each epoch, and at once when the user (Ctrl-C) or the machine (SIGTERM) stops the
    run.

    At once means after the step that is being taken; during validation, at the end of the epoch. The process
    then exits with 128 + the signal's number. Nothing is saved when training fails: a NaN must not take the
    place of good weights.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.last_checkpoint)
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
            self.handlers = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave if asked to since the last epoch's end."""
        self._restore_handlers()
        if self._asked(trainer):
            self._leave(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
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
        """Save and leave if asked to; not between two batches that make one step, nor where the epoch ends
        anyway.
        """
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
        if isinstance(trainer.logger, RunLogger):
            trainer.logger.flush()  # first: a curve must not end before what it is continued from
        super()._save_checkpoint(trainer, filepath)

    def _asked(self, trainer: pl.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.stop is not None, all=False)

    def _leave(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            epoch = min(trainer.current_epoch + 1, trainer.max_epochs or trainer.current_epoch + 1)
            where = f"Stopped in epoch {epoch} and saved"
            print(f"\n{where}. To continue: {train_command()} {self.folder.resume_override}", flush=True)
        raise SystemExit(128 + (self.stop or signal.SIGTERM))


class Patience(EarlyStopping):
    """Early stopping whose patience may be given anew, and which stays stopped when the run is resumed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up everything but the patience."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train no further if the patience had been used up."""
        trainer.should_stop = self.wait_count >= self.patience
