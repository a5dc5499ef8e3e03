"""Samples and batches, and the order in which training takes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from polyp.data.augment import Augmentation
from polyp.data.cache import resize_image, resize_mask
from polyp.data.pairs import Pair
from polyp.errors import InputError


class Sample(TypedDict):
    """An image and its mask, at the network's size or that of their files."""

    image: Tensor  # (3, H, W) uint8 RGB in 0-255
    mask: Tensor  # (H, W) uint8 in {0, 1}
    stem: str  # of the files' names
    size: Tensor  # (2,) int64, height and width of the files


class Batch(TypedDict):
    """B samples of training or validation, all of the network's size."""

    image: Tensor  # (B, 3, H, W) uint8 RGB in 0-255
    mask: Tensor  # (B, H, W) uint8 in {0, 1}
    stem: list[str]
    size: Tensor  # (B, 2) int64, heights and widths of the files


class OriginalBatch(TypedDict):
    """Samples of the test set, at the sizes of their files: a list for each key of `Sample`."""

    image: list[Tensor]
    mask: list[Tensor]
    stem: list[str]
    size: list[Tensor]


def collate_lists(samples: Sequence[Sample]) -> OriginalBatch:
    """A batch of samples of different sizes."""
    return {
        "image": [sample["image"] for sample in samples],
        "mask": [sample["mask"] for sample in samples],
        "stem": [sample["stem"] for sample in samples],
        "size": [sample["size"] for sample in samples],
    }


@dataclass(eq=False)
class PolypDataset(Dataset[Sample]):
    """Images and masks as samples, by index or, where they are augmented, by (epoch, index)."""

    pairs: Sequence[Pair]
    image_size: tuple[int, int] | None = None  # height and width; None leaves those of the files
    pixels: Sequence[np.ndarray] | None = (
        None  # (H, W, 4) uint8 of each pair, resized; None decodes the files
    )
    sizes: np.ndarray | None = None  # (n, 2) heights and widths of the files; needed with `pixels`
    augmentation: Augmentation | None = None  # by seed, epoch and index, whatever the worker is
    seed: int = 0

    def __len__(self) -> int:
        """The number of images."""
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """One sample, by index or by (epoch, index)."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, mask, size = self._load(index)
        if self.augmentation is not None:
            seed = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
            image, mask = self.augmentation(image, mask, seed)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1),
            "mask": torch.from_numpy(np.ascontiguousarray(mask)),
            "stem": self.pairs[index].stem,
            "size": torch.tensor(size),
        }

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray, Sequence[int]]:
        """The image, the mask, and the size of the file."""
        if self.pixels is not None and self.sizes is not None:
            pixels = self.pixels[index].copy()
            return pixels[..., :3], pixels[..., 3], self.sizes[index].tolist()
        image, mask = self.pairs[index].read()
        size = mask.shape
        if self.image_size is not None:
            image, mask = resize_image(image, self.image_size), resize_mask(mask, self.image_size)
        return image, mask, size


@dataclass(eq=False)
class EpochSampler(SequentialSampler):
    """The (epoch, index) of every image once, in an order that depends on seed and epoch alone.

    Several processes take its batches in turn, the same number of whole batches each; the remainder is left
    out. It is a SequentialSampler because Lightning replaces any other if `trainer.overfit_batches` is set.
    """

    count: int  # of all images
    seed: int
    batch_size: int  # of each process
    rank: int = 0  # of this process
    processes: int = 1
    epoch: int = 0
    start: int = 0  # the batch that the next epoch starts with, where the run was interrupted
    frozen: bool = False  # whether every epoch repeats the order and the augmentation of the first

    @property
    def steps(self) -> int:
        """The number of batches of each process."""
        return self.count // (self.batch_size * self.processes)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = 0 if self.frozen else epoch

    def __len__(self) -> int:
        """The number of images that this process takes."""
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        """The keys of this epoch."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        batches = order[: len(self) * self.processes].reshape(self.steps, self.processes, self.batch_size)
        indices = batches[self.start :, self.rank].ravel()
        self.start = 0
        return ((self.epoch, int(index)) for index in indices)


class TrainLoader(DataLoader[Sample]):
    """A loader that continues in the middle of an epoch: Lightning stores its state in the checkpoint."""

    sampler: EpochSampler
    batches_taken = 0  # of this epoch
    limit: int | float = 1.0
    """How much of an epoch is used, as Lightning's limit_train_batches: a number of batches or a share."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The remaining batches of the epoch."""
        self.batches_taken = self.sampler.start
        for batch in super().__iter__():
            self.batches_taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch each process has taken; 0 at its end."""
        count = min(len(self), self.limit) if isinstance(self.limit, int) else int(len(self) * self.limit)
        taken = self.batches_taken if self.batches_taken < count else 0
        return {"taken": taken, "processes": self.sampler.processes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next epoch after the batches that were taken.

        Raises:
            InputError: another number of processes shared the beginning of the epoch.
        """
        if state["taken"] and state["processes"] != self.sampler.processes:
            raise InputError(
                f"trainer.devices={self.sampler.processes} cannot finish the epoch that {state['processes']} "
                f"began: continue with trainer.devices={state['processes']}"
            )
        self.batches_taken = self.sampler.start = state["taken"]
