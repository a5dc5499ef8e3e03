"""What happens beside training: pictures for TensorBoard and the run's folder, and the checkpoint to continue from."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from polyp import pictures, runs
from polyp.errors import InputError

log = logging.getLogger(__name__)

Batch = dict[str, Any]


class Checkpoint(ModelCheckpoint):
    """One file that is written anew, in one piece, each time there is something better or later to keep."""

    def __init__(self, path: Path, **options: Any) -> None:
        # At the very end of an epoch, which comes after validation: a run that is resumed begins with a whole epoch.
        options |= {"save_on_train_epoch_end": True, "enable_version_counter": False}
        super().__init__(dirpath=path.parent, filename=path.stem, **options)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, unless the epoch was cut short (max_steps) before there was a number to go by."""
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        try:
            super()._save_checkpoint(trainer, filepath)
        except OSError as error:
            raise InputError(
                f"cannot write {filepath} ({error.strerror}): free some space, then continue with "
                f"resume={os.path.relpath(Path(filepath).parents[1])}"
            ) from error


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt after each epoch and when the user or the machine interrupts the run.

    Not when training fails: a NaN must not take the place of the last good weights.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(runs.last_checkpoint(folder), save_on_exception=True)
        self.folder = folder

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save where it makes sense, and say how to go on."""
        if not isinstance(exception, KeyboardInterrupt | SIGTERMException):
            return
        if trainer.training:  # while validating, the averaged weights stand where the trained ones belong
            super().on_exception(trainer, pl_module, exception)
        if runs.last_checkpoint(self.folder).is_file():
            where = os.path.relpath(self.folder)
            print(
                f"\nInterrupted in epoch {trainer.current_epoch}. To continue: python train.py resume={where}",
                flush=True,
            )
        else:
            print("\nInterrupted before there was anything to save.", flush=True)


class EpochLine(Callback):
    """A line for each epoch, on the terminal and in train.log."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it; validation comes before the end of the epoch."""
        numbers = trainer.callback_metrics
        names = [name for name in ("train/loss", "val/loss", "val/dice") if name in numbers]
        told = "   ".join(f"{name} {numbers[name]:.3f}" for name in names)
        log.info("epoch %d of %s   %s", trainer.current_epoch + 1, trainer.max_epochs, told)


class ValidationPictures(Callback):
    """The same validation images over time, in TensorBoard."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose the images."""
        if stage in ("fit", "validate"):
            self.stems: list[str] = trainer.datamodule.showcase("val")  # type: ignore[attr-defined]

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Any],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the chosen images of the batch."""
        logger = trainer.logger
        if trainer.sanity_checking or not isinstance(logger, TensorBoardLogger):
            return
        for row, stem in enumerate(batch["stem"]):
            if stem in self.stems:
                picture = _panel(batch, outputs["probability"], row, pl_module)
                tag = f"val_pictures/{self.stems.index(stem)}_{stem}"
                logger.experiment.add_image(tag, picture, trainer.global_step - 1, dataformats="HWC")


class TestRecord(Callback):
    """per_image.csv, and pictures of a few test images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the images."""
        self.rows = []
        self.panels: dict[str, Any] = {}
        self.stems: list[str] = trainer.datamodule.showcase("test")  # type: ignore[attr-defined]

    def on_test_batch_end(  # type: ignore[override]
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Any],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores, draw the chosen images."""
        for row, stem in enumerate(batch["stem"]):
            self.rows.append({"stem": stem, **outputs["rows"][row]})
            if stem in self.stems:
                self.panels[stem] = _panel(batch, outputs["probability"], row, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files."""
        runs.write_per_image(self.folder, self.rows)
        drawn = [(stem, self.panels[stem]) for stem in self.stems if stem in self.panels]  # a test may be cut short
        for number, (stem, panel) in enumerate(drawn):
            pictures.save(self.folder / runs.PICTURES / f"{number}_{stem}.png", panel)
        if drawn:
            pictures.save(self.folder / runs.PICTURES / "overview.png", pictures.sheet([panel for _, panel in drawn]))


def _panel(batch: Batch, probability: Sequence[torch.Tensor], row: int, module: pl.LightningModule) -> Any:
    image = batch["image"][row].permute(1, 2, 0).cpu().numpy()
    return pictures.panel(
        image, batch["mask"][row].cpu().numpy(), probability[row].cpu().numpy(), module.hparams["threshold"]
    )
