"""Callbacks that draw validation and test images, and record the scores of the test images."""

import math
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from polyp.data.traits import measure_traits
from polyp.metrics.overlap import image_scores
from polyp.report import pictures
from polyp.runs.folder import RunFolder
from polyp.training.module import Batch

Tensors = tuple[Tensor, Tensor, Tensor]
"""An image (3, H, W), its mask (H, W) and its probabilities (H, W)."""

WORST_COUNT = 4
"""Validation images that are shown for their low Dice."""

MIN_WIDTH = 480
"""Pixels of a picture with text above it; smaller ones are enlarged."""


class ValidationPictures(Callback):
    """The same validation images over time, and the worst of each epoch, in TensorBoard.

    Where several processes validate, the worst are those of the first process.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose the images."""
        if stage in ("fit", "validate"):
            self.stems: list[str] = trainer.datamodule.showcase("val")  # type: ignore[attr-defined]

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the worst images of the last epoch."""
        self.worst: list[tuple[float, str, Tensors]] = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Draw the chosen images of the batch, and keep the worst."""
        if trainer.sanity_checking or not isinstance(trainer.logger, TensorBoardLogger):
            return
        images, masks, probabilities = batch["image"], batch["mask"], outputs["probability"]
        dice = image_scores(probabilities, masks, check_values=False)["dice"].tolist()
        for row, stem in enumerate(batch["stem"]):
            self.worst.append((dice[row], stem, (images[row], masks[row], probabilities[row])))
            if stem in self.stems:
                self._draw(trainer, f"val_pictures/{self.stems.index(stem)}_{stem}", *self.worst[-1])
        self.worst = sorted(self.worst, key=lambda image: image[0])[:WORST_COUNT]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the worst images, the worst first."""
        for rank, image in enumerate(self.worst, start=1):
            self._draw(trainer, f"val_worst/{rank}", *image)

    def _draw(self, trainer: pl.Trainer, tag: str, dice: float, stem: str, tensors: Tensors) -> None:
        panel = _draw_panel(trainer, *tensors)
        factor = math.ceil(MIN_WIDTH / panel.shape[1])
        panel = panel.repeat(factor, 0).repeat(factor, 1)
        size = panel.shape[1] // 24  # TensorBoard shows pictures of any size equally wide
        title = dict.fromkeys((f"epoch {trainer.current_epoch + 1}", f"Dice {dice:.3f}"), pictures.TEXT)
        picture = pictures.add_text(panel, {stem: pictures.TEXT}, size)
        picture = pictures.add_text(picture, title | pictures.LEGEND, size)
        logger: Any = trainer.logger
        logger.experiment.add_image(tag, picture, trainer.global_step - 1, dataformats="HWC")


class TestRecord(Callback):
    """per_image.csv, and pictures of a few test images.

    Attributes:
        rows: of per_image.csv.
        normal: the false positives of each frame without polyps; these are in no file.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.normal: list[dict[str, int]] = []

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the images."""
        self.rows, self.normal = [], []
        self.panels: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # at full size, and for the overview
        self.stems: list[str] = trainer.datamodule.showcase("test")  # type: ignore[attr-defined]

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores, draw the chosen images."""
        if dataloader_idx:
            self.normal += outputs["rows"]
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        for row, stem in enumerate(batch["stem"]):
            mask = batch["mask"][row].numpy()  # on the CPU
            source = {"source": data.source_of(stem)} if data.sources else {}
            self.rows.append({"stem": stem, **source, **outputs["rows"][row], **measure_traits(mask)})
            if stem in self.stems:
                tensors = batch["image"][row], batch["mask"][row], outputs["probability"][row]
                small_panel = _draw_panel(trainer, *tensors, height=pictures.PANEL_HEIGHT)
                self.panels[stem] = _draw_panel(trainer, *tensors), small_panel

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files."""
        self.folder.write_rows(self.rows)
        stems = [stem for stem in self.stems if stem in self.panels]  # a test may be cut short
        for number, stem in enumerate(stems):
            file = self.folder.pictures / f"{number}_{stem.replace('/', '_')}.png"
            pictures.save(file, self.panels[stem][0])
        if stems:
            dice = {row["stem"]: row["dice"] for row in self.rows}
            overview = pictures.sheet(
                [self.panels[stem][1] for stem in stems],
                [f"{stem}   Dice {dice[stem]:.3f}" for stem in stems],
                {"image": pictures.TEXT} | pictures.LEGEND,
            )
            pictures.save(self.folder.pictures / "overview.png", overview)


def _draw_panel(
    trainer: pl.Trainer, image: Tensor, mask: Tensor, probability: Tensor, height: int | None = None
) -> np.ndarray:
    module: Any = trainer.lightning_module
    image, mask, probability = (tensor.cpu() for tensor in (image.permute(1, 2, 0), mask, probability))
    return pictures.panel(image.numpy(), mask.numpy(), probability.numpy(), module.threshold, height)
