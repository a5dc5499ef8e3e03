"""Writing checkpoints: whole files only, after each epoch and when a signal stops the run."""

import os
import signal
import time
from contextlib import ExitStack
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
from polyp.training.signals import STOP_SIGNALS, handle_signals


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints atomically, keeps the previous last.ckpt as previous.ckpt, and loads no code."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it, flushed to the disk.

        Raises:
            WriteError: the disk is full or not writable; the old file stays.
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
    """One file that is replaced when there is something better or later to save."""

    def __init__(self, path: Path, **options: Any) -> None:
        # Lightning resolves paths as well: it must see that a new checkpoint has the path of the old one.
        self.path = path.resolve()
        super().__init__(
            dirpath=self.path.parent,
            filename=path.stem,
            # The end of an epoch comes after validation: a run that is resumed begins with a whole epoch.
            save_on_train_epoch_end=True,
            enable_version_counter=False,
            **options,
        )
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
        return {name: getattr(self, name) for name in ("best_model_score", "current_score", "step")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the score, if its file is there."""
        if not self.path.is_file():
            return
        self.best_model_score = state_dict["best_model_score"]
        self.current_score = state_dict["current_score"]
        self.step = state_dict.get("step")
        if self.best_model_score is not None:
            path = self.best_model_path = self.kth_best_model_path = str(self.path)
            self.kth_value, self.best_k_models = self.best_model_score, {path: self.best_model_score}


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt after each epoch, and when the user (Ctrl-C) or the machine (SIGTERM) stops the run.

    A signal has its effect after the current step; during validation, at the end of the epoch. The process
    then exits with 128 + the signal's number. Nothing is saved when training fails: a NaN must not take the
    place of good weights.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.last_checkpoint)
        self.folder = folder
        self.signal: signal.Signals | None = None
        self.handlers = ExitStack()
        self.start = time.time()

    @property
    def seconds(self) -> float:
        """The seconds of training so far, without pauses and without steps that were lost and repeated."""
        return time.time() - self.start

    def state_dict(self) -> dict[str, Any]:
        """Add the time that the run has taken."""
        return super().state_dict() | {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the time as well."""
        super().load_state_dict(state_dict)
        self.start -= state_dict["seconds"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the fingerprint of the data, which may be moved before the run is resumed."""
        checkpoint["data_fingerprint"] = trainer.datamodule.inspection.fingerprint  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle signals until training ends."""
        self.handlers.enter_context(handle_signals(dict.fromkeys(STOP_SIGNALS, self._on_signal)))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Exit if a signal came since the last epoch's end."""
        self.handlers.close()
        self._exit_if_stopped(trainer)

    def on_exception(self, *_: Any) -> None:
        """Handle signals no more."""
        self.handlers.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second signal: exit without saving
        self.signal = signal.Signals(number)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and exit if a signal came; not between batches that make one step, nor at the epoch's end."""
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if is_step and not trainer.is_last_batch:
            self._exit_if_stopped(trainer, save=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and exit if a signal came."""
        super().on_train_epoch_end(trainer, pl_module)
        self._exit_if_stopped(trainer)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        if isinstance(trainer.logger, RunLogger):
            trainer.logger.flush()  # first: the curves must reach the checkpoint that continues them
        super()._save_checkpoint(trainer, filepath)

    def _exit_if_stopped(self, trainer: pl.Trainer, save: bool = False) -> None:
        """Exit if a signal came to any process of the run."""
        if not trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False):
            return
        if save:
            self._save_checkpoint(trainer, str(self.path))
        if trainer.is_global_zero:
            epoch = min(trainer.current_epoch + 1, trainer.max_epochs or trainer.current_epoch + 1)
            command = f"{train_command()} {self.folder.resume_override}"
            print(f"\nStopped in epoch {epoch} and saved. To continue: {command}", flush=True)
        raise SystemExit(128 + (self.signal or signal.SIGTERM))


class Patience(EarlyStopping):
    """Early stopping whose patience may change when a run is resumed; a run that has stopped stays so."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore everything but the patience."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train no further if the patience had been used up."""
        trainer.should_stop = self.wait_count >= self.patience
