"""The data of a run: prepared, checked, split, cached and loaded."""

import functools
import logging
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from polyp.data.augment import Augmentation
from polyp.data.cache import cache_folder, load_inspection, load_resized
from polyp.data.dataset import EpochSampler, PolypDataset, TrainLoader, collate_lists
from polyp.data.pairs import Inspection, Pair, find_pairs
from polyp.data.sources import DATASETS
from polyp.data.splits import check_stems, split_file, split_stems
from polyp.errors import InputError, pick
from polyp.images import square
from polyp.settings import collect, raise_together

log = logging.getLogger(__name__)


class PolypDataModule(pl.LightningDataModule):
    """Training, validation and test data of one data set and one split.

    Args:
        dataset: a key of `sources.DATASETS`; `source` holds the keyword arguments of its class.
        split: official, pranet, random, or the path of a CSV with the columns stem and subset.
        split_seed: of the random split: runs of different seeds share their subsets.
        image_size: height and width in pixels that the network works at, or one number for both.
        batch_size: images in a training batch of each device.
        num_workers: processes that load and augment training images; 0 does it in the training process.
        cache: True keeps resized images in the user's cache folder, a path keeps them there, False decodes
            every time.
        allow_empty: whether an image without a polyp is data; if not, it is reported as a mistake.
        augment: the training images' transforms, see `Augmentation`.
        seed: of the order and the augmentation.
        eval_batch_size: images in a batch of validation and test; None is batch_size. No score depends on it.
        eval_workers: processes that load images for each of validation and test; None is num_workers.

    Raises:
        InputError: on construction for an unknown or impossible value, on `setup` for everything wrong with
            the data.
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        split_seed: int,
        image_size: int | Sequence[int],
        batch_size: int,
        num_workers: int,
        cache: bool | str,
        allow_empty: bool,
        augment: Sequence[Mapping[str, Any]],
        seed: int,
        eval_batch_size: int | None = None,
        eval_workers: int | None = None,
        **source: Any,
    ) -> None:
        super().__init__()
        self.source = pick("data.dataset", dataset, DATASETS)(**source)
        self.dataset = dataset
        self.split = split
        self.image_size = square(image_size)
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        eval_workers = num_workers if eval_workers is None else eval_workers
        self.split_seed = _check_int("split_seed", split_seed, 0)
        self.batch_size = _check_int("batch_size", batch_size, 1)
        self.num_workers = _check_int("num_workers", num_workers, 0)
        self.eval_batch_size = _check_int("eval_batch_size", eval_batch_size, 1)
        self.eval_workers = _check_int("eval_workers", eval_workers, 0)
        self.cache = cache
        self.allow_empty = allow_empty
        self.augmentation = Augmentation(augment) if augment else None
        self.seed = seed
        self.recorded_split: dict[str, list[str]] = {}
        """The split of a run that exists, which holds whatever `split` would give now."""
        self.subsets: dict[str, list[str]] = {}
        self.train_loader: TrainLoader | None = None
        self.progress: dict[str, int] | None = None

    def check(self) -> None:
        """Check where the data lie, without reading, drawing or downloading images.

        Raises:
            InputError: a folder, the archive or the split's file is not there.
        """
        problems: list[str] = []
        with collect(problems):
            self.source.check()
        with collect(problems):
            if not self.recorded_split:
                split_file(self.split)
        raise_together(problems)

    def prepare_data(self) -> None:
        """Download, extract or draw what is not there yet."""
        self.source.prepare()

    @functools.cached_property
    def _files(self) -> tuple[list[Pair], list[str]]:
        return find_pairs(self.source.prepare(), self.source.images, self.source.masks)

    @functools.cached_property
    def pixels(self) -> np.ndarray | None:
        """All images and masks at network resolution, see `load_resized`; None without a cache."""
        return load_resized(*self._files, self.image_size, cache_folder(self.cache), self.allow_empty)

    def find(self) -> None:
        """Check every file and split, once."""
        if self.subsets:
            return
        self.pairs, problems = self._files
        self.rows = {pair.stem: row for row, pair in enumerate(self.pairs)}
        cache = cache_folder(self.cache)
        self.inspection: Inspection = load_inspection(self.pairs, problems, cache, self.allow_empty)
        if self.recorded_split:
            check_stems(self.split, self.recorded_split, list(self.rows))
        self.subsets = self.recorded_split or split_stems(
            self.split, list(self.rows), self.inspection, self.split_seed
        )
        counts = ", ".join(f"{len(stems)} {name}" for name, stems in self.subsets.items())
        log.info("%s: %s images (split %s)", self.dataset, counts, self.split)

    def setup(self, stage: str) -> None:
        """Check and split the data and fill the cache, once."""
        _ = self.pixels  # before `find`: the pass that resizes inspects as well
        self.find()
        _, processes = self._processes()
        if (count := len(self.subsets["train"])) < self.batch_size * processes:
            devices = f" on {processes} devices" if processes > 1 else ""
            reason = f"is larger than the {count} training images"
            raise InputError(f"data.batch_size={self.batch_size}{devices} {reason}: lower it")

    def get_pairs(self, subset: str) -> list[Pair]:
        """The files of train, val or test, after `find`."""
        return [self.pairs[self.rows[stem]] for stem in self.subsets[subset]]

    def _dataset(self, subset: str, resize: bool = True, augment: bool = False) -> PolypDataset:
        rows = [self.rows[stem] for stem in self.subsets[subset]]
        return PolypDataset(
            self.get_pairs(subset),
            self.image_size if resize else None,
            [self.pixels[row] for row in rows] if resize and self.pixels is not None else None,
            self.inspection.sizes[rows],
            self.augmentation if augment else None,
            self.seed,
        )

    def _processes(self) -> tuple[int, int]:
        """This process's number and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader_options(self, workers: int) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": workers, "worker_init_fn": _ignore_signals, "pin_memory": on_gpu}

    def train_dataloader(self) -> DataLoader:
        """Augmented images at network resolution, in a new order each epoch; this process's share of them.

        An incomplete last batch is left out. With Lightning's overfit_batches, each epoch is the first one.
        """
        dataset = self._dataset("train", augment=True)
        sampler = EpochSampler(len(dataset), self.seed, self.batch_size, *self._processes())
        options = self._loader_options(self.num_workers) | {"persistent_workers": self.num_workers > 0}
        self.train_loader = TrainLoader(dataset, self.batch_size, sampler=sampler, **options)
        if self.trainer is not None:
            sampler.frozen = self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
            self.train_loader.limit = self.trainer.limit_train_batches
        if self.progress is not None:
            self.train_loader.load_state_dict(self.progress)
        return self.train_loader

    # Lightning 2.6 stores a loader's state by itself, but restores it only in loaders that are made later;
    # this one was made when the schedule needed the number of steps.
    def state_dict(self) -> dict[str, Any]:
        """How far the epoch is."""
        return {"train_loader": self.train_loader.state_dict()} if self.train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin the next epoch there."""
        self.progress = state_dict["train_loader"]

    def val_dataloader(self) -> DataLoader:
        """Images at network resolution; all in each process, since equal shares would need padding."""
        options = self._loader_options(self.eval_workers) | {"persistent_workers": self.eval_workers > 0}
        return DataLoader(self._dataset("val"), self.eval_batch_size, **options)

    def test_dataloader(self) -> DataLoader:
        """Images and masks at their original sizes, as an `OriginalBatch`."""
        options = self._loader_options(self.eval_workers) | {"collate_fn": collate_lists}
        return DataLoader(self._dataset("test", resize=False), self.eval_batch_size, **options)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave images of their original sizes on the CPU, where they are resized; the result is moved."""
        if isinstance(batch["image"], list):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def showcase(self, subset: str, count: int = 6) -> list[str]:
        """Stems of the images to show: always the same, from the subset's smallest polyp to its largest."""
        stems = sorted(self.subsets[subset], key=lambda stem: (self.inspection.shares[self.rows[stem]], stem))
        places = np.unique(np.linspace(0, len(stems) - 1, min(count, len(stems))).round().astype(int))
        return [stems[place] for place in places]

    def describe(self) -> dict[str, Any]:
        """What a run's metrics.json says of its data."""
        return {
            "dataset": self.dataset,
            "fingerprint": self.inspection.fingerprint,
            "split": self.split,
            **({"split_seed": self.split_seed} if self.split == "random" else {}),
            "image_size": list(self.image_size),
            "images": {name: len(stems) for name, stems in self.subsets.items()},
        }


def _check_int(key: str, value: Any, least: int) -> int:
    if type(value) is not int or value < least:  # a bool is an int to isinstance
        raise InputError(f"data.{key}={value} must be a whole number of at least {least}")
    return value


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach all processes; the main one saves and then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
