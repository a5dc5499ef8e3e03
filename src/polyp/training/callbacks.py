"""What happens beside training: its randomness, a line for each epoch, and callbacks of the user's own."""

import logging
import time
from collections.abc import Mapping
from itertools import compress
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from polyp import terminal
from polyp.errors import InputError, describe_error
from polyp.settings import import_object
from polyp.terminal import format_seconds
from polyp.training.module import Batch

log = logging.getLogger(__name__)


class StepSeed(Callback):
    """Makes the randomness inside the network (dropout, stochastic depth) depend on seed, epoch and batch
    alone.

    A run that is resumed, in the middle of an epoch too, draws what it would have drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Seed torch; the processes of a run number their batches together."""
        number = batch_idx * trainer.world_size + trainer.global_rank
        parts = np.random.SeedSequence([self.seed, trainer.current_epoch, number])
        torch.manual_seed(int(parts.generate_state(1)[0]))


class BatchSize(Callback):
    """Resizes each training batch, see `MultiScale`."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Change the batch before the step takes it; with overfit_batches, as in the first epoch."""
        settings: Any = trainer
        epoch = 0 if settings.overfit_batches else trainer.current_epoch
        number = batch_idx * trainer.world_size + trainer.global_rank
        resize = settings.datamodule.multiscale.resize
        batch["image"], batch["mask"] = resize(batch["image"], batch["mask"], epoch, number)


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
            averages = [*average.module.parameters(), *average.module.buffers()]
            values = [*pl_module.parameters(), *pl_module.buffers()]
            floating = [value.is_floating_point() for value in averages]
            torch._foreach_lerp_(
                [*compress(averages, floating)], [*compress(values, floating)], 1 - self.decay
            )
            for mean, value in zip(averages, values, strict=True):
                if not mean.is_floating_point():
                    mean.copy_(value)
            average.n_averaged += 1
        self._latest_update_step = step


class EpochLine(Callback):
    """A line for each epoch, on the terminal and in train.log, with the time that the run will still take."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure."""
        self.began, self.first_epoch = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it; validation comes before the end of the epoch."""
        numbers, done = trainer.callback_metrics, trainer.current_epoch + 1
        names = [name for name in ("train/loss", "val/loss", "val/dice") if name in numbers]
        parts = [f"{name} {numbers[name]:.3f}" for name in names]
        if (epochs := trainer.max_epochs or 0) > done:
            seconds = (time.monotonic() - self.began) / (done - self.first_epoch) * (epochs - done)
            parts.append(f"{format_seconds(seconds)} left")
        log.info("epoch %d of %s   %s", done, trainer.max_epochs, "   ".join(parts))


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
        self._start(total=epochs if epochs > 0 else None)

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
        self._start("test", total=sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Show the batch."""
        self.bar.advance(self.task)

    def on_train_end(self, *_: Any) -> None:
        """Remove the bar."""
        self.bar.stop()

    on_test_end = on_exception = on_train_end  # type: ignore[assignment]

    def _start(self, description: str = "", **fields: Any) -> None:
        self.task = self.bar.add_task(description, **{"text": "", **fields})
        self.bar.start()


def import_callbacks(callbacks: Any) -> list[Callback]:
    """Make the user's own callbacks.

    This imports what it is asked to: the list must come from the user's command or conf/, never from the
    folder of a run.

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
    kind = import_object("callbacks", path)
    if not (isinstance(kind, type) and issubclass(kind, Callback)):
        raise InputError(f"callbacks: {path} must be a class derived from pytorch_lightning.Callback")
    try:
        return kind(**settings)
    except Exception as error:  # whatever its constructor raises
        raise InputError(f"callbacks: {path} cannot be made: {describe_error(error)}") from error
