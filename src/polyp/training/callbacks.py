"""Callbacks: randomness, the moving average, a line for each epoch, progress bars, the user's callbacks."""

import logging
import time
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from polyp import terminal
from polyp.errors import InputError, describe_error
from polyp.settings import import_object
from polyp.terminal import format_seconds
from polyp.training.module import Batch

log = logging.getLogger(__name__)


class StepSeed(Callback):
    """Seeds the randomness inside the network (dropout, stochastic depth) by seed, epoch and batch alone.

    A run that is resumed, in the middle of an epoch too, draws what it would have drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Seed torch."""
        entropy = [self.seed, trainer.current_epoch, _batch_number(trainer, batch_idx)]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


class BatchSize(Callback):
    """Resizes each training batch, see `MultiScale`."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Change the batch before the step takes it; with overfit_batches, as in the first epoch."""
        options: Any = trainer
        epoch = 0 if options.overfit_batches else trainer.current_epoch
        batch["image"], batch["mask"] = options.datamodule.multiscale.resize(
            batch["image"], batch["mask"], epoch, _batch_number(trainer, batch_idx)
        )


def _batch_number(trainer: pl.Trainer, batch_idx: int) -> int:
    """The number of a batch in its epoch; the processes of a run number their batches together."""
    return batch_idx * trainer.world_size + trainer.global_rank


class WeightAverage(WeightAveraging):
    """Lightning's exponential moving average of the weights, without waiting for the GPU at each step.

    torch keeps on the GPU how many weights were averaged, and asks it at each step whether this is the first
    one. Lightning's own EMAWeightAveraging goes through the weights one by one, which takes twice as long.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.decay = decay

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Add the weights to the average after each optimiser step; integers (counts) are copied."""
        average, step = self._average_model, trainer.global_step
        if average is None or step == self._latest_update_step:  # batches that make one step together
            return
        if self._latest_update_step == 0:
            average.update_parameters(pl_module)  # the first: a copy
        else:
            floats, weights = [], []
            for mean, value in zip(_tensors(average.module), _tensors(pl_module), strict=True):
                if mean.is_floating_point():
                    floats.append(mean)
                    weights.append(value)
                else:
                    mean.copy_(value)
            torch._foreach_lerp_(floats, weights, 1 - self.decay)
            average.n_averaged += 1
        self._latest_update_step = step


def _tensors(module: nn.Module) -> chain[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


class EpochLine(Callback):
    """A line for each epoch, on the terminal and in train.log, with the time that the run will still take."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure."""
        self.start, self.first_epoch = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it; validation comes before the end of the epoch."""
        metrics, epoch = trainer.callback_metrics, trainer.current_epoch + 1
        names = [name for name in ("train/loss", "val/loss", "val/dice") if name in metrics]
        parts = [f"{name} {metrics[name]:.3f}" for name in names]
        if (max_epochs := trainer.max_epochs or 0) > epoch:
            seconds_per_epoch = (time.monotonic() - self.start) / (epoch - self.first_epoch)
            parts.append(f"{format_seconds(seconds_per_epoch * (max_epochs - epoch))} left")
        log.info("epoch %d of %s   %s", epoch, trainer.max_epochs, "   ".join(parts))


class ProgressBar(pl.callbacks.ProgressBar):
    """A bar of the whole run in epochs, and one of its test in batches."""

    def __init__(self) -> None:
        super().__init__()
        self.bar = terminal.progress("{task.fields[text]}")

    def disable(self) -> None:
        """Show nothing, in a process that does not lead."""
        self.bar.disable = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the run, from the epoch on that it continues with."""
        epochs = trainer.max_epochs or -1
        self._add_bar(total=epochs if epochs > 0 else None)

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Show the batch; the first one may be in the middle of an epoch."""
        epoch, batch, batches = trainer.current_epoch, arguments[-1] + 1, self.total_train_batches
        self.bar.tasks[-1].fields.setdefault("first", epoch + (batch - 1) / batches)
        self.bar.update(
            self.task,
            description=f"epoch {epoch + 1} of {trainer.max_epochs}",
            text=f"batch {batch} of {batches}",
            completed=epoch + batch / batches,
        )

    def on_validation_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Show the batch; one loader has all images."""
        if not trainer.sanity_checking:
            text = f"validation {arguments[3] + 1} of {self.total_val_batches}"
            self.bar.update(self.task, text=text)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the test."""
        self._add_bar("test", total=sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Show the batch."""
        self.bar.advance(self.task)

    def on_train_end(self, *_: Any) -> None:
        """Remove the bar."""
        self.bar.stop()

    on_test_end = on_exception = on_train_end  # type: ignore[assignment]

    def _add_bar(self, description: str = "", total: float | None = None) -> None:
        self.task = self.bar.add_task(description, total=total, text="")
        self.bar.start()


def import_callbacks(callbacks: Any) -> list[Callback]:
    """Make the user's callbacks.

    This imports what the list names: it must come from the user's command or conf/, never from the folder of
    a run.

    Args:
        callbacks: a list of import paths `package.module.Class`, or of mappings with the path as `_target_`
            and the arguments of the class; or None.

    Raises:
        InputError: a path cannot be imported, is no callback of Lightning's, or cannot be made.
    """
    if not isinstance(callbacks, list | None):
        raise InputError(
            f"callbacks={callbacks} must be a list: callbacks=[my_package.MyCallback]; patience=EPOCHS stops "
            "early"
        )
    return [_import_callback(entry) for entry in callbacks or []]


def _import_callback(entry: Any) -> Callback:
    settings = dict(entry) if isinstance(entry, Mapping) else {"_target_": entry}
    path = str(settings.pop("_target_", ""))
    callback_class = import_object("callbacks", path)
    if not (isinstance(callback_class, type) and issubclass(callback_class, Callback)):
        raise InputError(f"callbacks: {path} must be a class derived from pytorch_lightning.Callback")
    try:
        return callback_class(**settings)
    except Exception as error:  # whatever its constructor raises
        raise InputError(f"callbacks: {path} cannot be made: {describe_error(error)}") from error
