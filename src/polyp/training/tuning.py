"""The learning rate and the batch size, found by training a little with Lightning's Tuner."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.tuner import Tuner
from torch.utils.data import DataLoader, Dataset

from polyp import terminal
from polyp.data.datamodule import PolypDataModule
from polyp.errors import InputError
from polyp.runs.folder import RunFolder
from polyp.training.module import TrainingModule
from polyp.training.trainer import make_trainer

LIMIT = 64
"""The most images in a batch: larger ones leave an epoch of a data set of this field too few steps."""


def measure_losses(
    model: TrainingModule, data: PolypDataModule, settings: Mapping[str, Any], steps: int
) -> tuple[list[float], list[float]]:
    """Train while the learning rate of all weights grows from 1e-6 to 1, and stop where the loss explodes.

    Args:
        model: to train; its weights are restored.
        data: to train on.
        settings: `trainer` of the configuration.
        steps: learning rates to try.

    Returns:
        The learning rates and the smoothed loss at each.
    """
    with _build_trainer(settings) as trainer, terminal.progress() as bar:
        task = bar.add_task("training", total=steps * trainer.accumulate_grad_batches)
        hook = model.network.register_forward_hook(lambda *_: bar.advance(task))
        try:
            finder = Tuner(trainer).lr_find(
                model, datamodule=data, min_lr=1e-6, max_lr=1, num_training=steps, update_attr=False
            )
        finally:
            hook.remove()
    assert finder is not None
    return finder.results["lr"], finder.results["loss"]


def find_batch_size(
    model: TrainingModule, sizes: Iterable[tuple[int, int]], settings: Mapping[str, Any], limit: int = LIMIT
) -> int:
    """The largest power of two of drawn images that the device can train on.

    Args:
        model: to train; its weights are restored.
        sizes: heights and widths of the batches' images; the largest is tried.
        settings: `trainer` of the configuration.
        limit: the most images to try, a power of two.

    Raises:
        InputError: a batch of two does not fit.
    """
    data = _DrawnBatches(max(sizes))
    with _build_trainer(settings) as trainer:
        trials = (limit // data.batch_size).bit_length()  # the size after the last is not tried
        try:
            size = Tuner(trainer).scale_batch_size(
                model, datamodule=data, init_val=data.batch_size, max_trials=trials
            )
        except torch.OutOfMemoryError as error:
            raise InputError(
                "data.batch_size=auto: a batch of 2 images does not fit: lower data.image_size"
            ) from error
    assert size is not None
    return min(size, limit)


class _DrawnImages(Dataset[dict[str, torch.Tensor]]):
    """Noise, which takes the memory of any image."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __len__(self) -> int:
        return 10**9  # Lightning's finder stops where an epoch has fewer batches than a batch has images

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        image = torch.randint(256, (3, *self.size), dtype=torch.uint8)
        return {"image": image, "mask": (image[0] > 127).to(torch.uint8)}


class _DrawnBatches(pl.LightningDataModule):
    """Batches of drawn images; the finder sets `batch_size`."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.images, self.batch_size = _DrawnImages(size), 2

    def train_dataloader(self) -> DataLoader:
        """As many images as `batch_size` says."""
        return DataLoader(self.images, self.batch_size)

    val_dataloader = train_dataloader  # the finder validates as well


@contextmanager
def _build_trainer(settings: Mapping[str, Any]) -> Iterator[pl.Trainer]:
    """A Trainer on one device that leaves nothing behind."""
    keys = ("accelerator", "precision", "gradient_clip_val", "accumulate_grad_batches")
    options = {key: settings[key] for key in keys if key in settings}
    options |= {"devices": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    options |= {"max_epochs": 1000, "enable_progress_bar": False}  # schedules need an end
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its notes are for developers
    with tempfile.TemporaryDirectory() as folder:
        yield make_trainer(RunFolder(folder), options, [])
