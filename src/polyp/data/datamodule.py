"""The data of a run: prepared, checked, split, cached and loaded."""

import functools
import logging
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from polyp.data.augment import Augmentation, MultiScale
from polyp.data.cache import cache_folder, load_inspection, load_resized
from polyp.data.dataset import EpochSampler, PolypDataset, TrainLoader, collate_lists
from polyp.data.layouts import Listing, list_images
from polyp.data.locations import check_locations
from polyp.data.pairs import Inspection, Pair, find_suspicions
from polyp.data.sources import DATASETS
from polyp.data.split_files import SUBSETS, check_stems
from polyp.data.splits import Splitter
from polyp.errors import InputError, pick
from polyp.images import square
from polyp.processors import count_processors

log = logging.getLogger(__name__)

AUTO: Literal["auto"] = "auto"

MAX_WORKERS = 8
"""Of num_workers=auto: more keep their share of the cache in memory and are rarely needed."""

NORMAL = "normal"
"""The source of frames without polyps, and their subset that is tested."""


class PolypDataModule(pl.LightningDataModule):
    """Training, validation and test data of one data set and one split.

    Args:
        dataset: a key of `sources.DATASETS`; `source` holds the keyword arguments of its class.
        split, split_seed, group, folds, fold: see `polyp.data.splits.Splitter`; runs of different seeds share
            their subsets.
        image_size: height and width in pixels that the network works at, or one number for both.
        batch_size: images in a training batch of each device; auto is found for the GPU before training, see
            `training.tuning`, and until then 2.
        num_workers: processes that load and augment training images; 0 does it in the training process; auto
            is one for each processor but one on a GPU, at most 8, else 0.
        cache: True keeps resized images in the user's cache folder, a path keeps them there, False decodes
            every time.
        allow_empty: whether an image without a polyp is data; if not, it is reported as a mistake.
        augment: the training images' transforms, see `Augmentation`.
        scales: of the sizes of training batches, see `MultiScale`.
        seed: of the order and the augmentation.
        eval_batch_size: images in a batch of validation and test; None is batch_size. No score depends on it.
        eval_workers: processes that load images for each of validation and test; None is num_workers.
        normal: a folder of frames without polyps: four fifths are trained on with empty masks, the others are
            a test of their own.

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
        batch_size: int | Literal["auto"],
        num_workers: int | Literal["auto"],
        cache: bool | str,
        allow_empty: bool,
        augment: Sequence[Mapping[str, Any]],
        seed: int,
        eval_batch_size: int | None = None,
        eval_workers: int | Literal["auto"] | None = None,
        normal: str | None = None,
        group: str | None = None,
        folds: int | None = None,
        fold: int = 0,
        scales: Sequence[float] = (1,),
        **source: Any,
    ) -> None:
        super().__init__()
        self.source = pick("data.dataset", dataset, DATASETS)(**source)
        self.dataset = dataset
        self.split = split
        self.normal = normal
        self.image_size = square(image_size)
        self.splitter = Splitter(split, _check_int("split_seed", split_seed, 0), group, folds, fold)
        self.finds_batch_size = batch_size == AUTO
        self.batch_size = 2 if batch_size == AUTO else _check_int("batch_size", batch_size, 1)
        self.num_workers = _check_workers("num_workers", num_workers)
        if eval_batch_size is not None:
            _check_int("eval_batch_size", eval_batch_size, 1)
        self._eval_batch_size = eval_batch_size
        eval_workers = num_workers if eval_workers is None else eval_workers
        self.eval_workers = _check_workers("eval_workers", eval_workers)
        self.cache = cache
        self.allow_empty = allow_empty
        self.augmentation = Augmentation(augment) if augment else None
        self.multiscale = MultiScale(self.image_size, scales, seed)
        self.seed = seed
        self.recorded_split: dict[str, list[str]] = {}
        """The subsets of a run that exists; they replace those of `split`, which may have changed."""
        self.subsets: dict[str, list[str]] = {}
        """The stems of train, val and test, and those of the test's normal frames as `normal` if any."""
        self.sources: list[str] = []
        """The data sets or centres that the images are from, after `find`; empty where there is only one."""
        self.train_loader: TrainLoader | None = None
        self.progress: dict[str, int] | None = None

    @property
    def eval_batch_size(self) -> int:
        """Images in a batch of validation and test."""
        return self._eval_batch_size or self.batch_size

    def check(self) -> None:
        """Check where the data lie, without reading, drawing or downloading images.

        Raises:
            InputError: a folder, the archive or the split's file is not there.
        """
        check_locations(self.source, None if self.recorded_split else self.split, self.normal)

    def prepare_data(self) -> None:
        """Download, extract or draw what is not there yet."""
        self.source.prepare()

    @functools.cached_property
    def _listing(self) -> Listing:
        """All images, normal frames last."""
        normal = Path(self.normal).expanduser().absolute() if self.normal is not None else None
        listing = self.source.find(exclude=normal)
        self._normal_start = len(listing.pairs)
        if normal is not None:
            frames = list_images(normal)
            if any(pair.stem.startswith(f"{NORMAL}/") for pair in listing.pairs):
                raise InputError(
                    f"data.normal={self.normal}: data.root has images in a folder '{NORMAL}' as well, which "
                    "frames without polyps are named after: rename it"
                )
            listing.problems += frames.problems
            listing.notes += [f"data.normal: {note}" for note in frames.notes]
            listing.pairs += [
                replace(pair, stem=f"{NORMAL}/{pair.stem}", source=NORMAL, subset=None)
                for pair in frames.pairs
            ]
        return listing

    @functools.cached_property
    def pixels(self) -> np.ndarray | None:
        """All images and masks at network resolution, see `load_resized`; None without a cache."""
        listing, folder = self._listing, cache_folder(self.cache)
        return load_resized(listing.pairs, listing.problems, self.image_size, folder, self.allow_empty)

    def find(self) -> None:
        """Check every file and split the data, once; how the files are understood is logged."""
        if self.subsets:
            return
        self.pairs, folder = self._listing.pairs, cache_folder(self.cache)
        self.rows = {pair.stem: row for row, pair in enumerate(self.pairs)}
        self.inspection: Inspection = load_inspection(
            self.pairs, self._listing.problems, folder, self.allow_empty
        )
        for note in (*self._listing.notes, *self.inspection.notes.splitlines()):
            log.info("%s", note)
        start = self._normal_start
        pairs, inspection = self.pairs[:start], self.inspection.select(slice(start))
        counts = Counter(pair.source for pair in pairs)
        if len(counts) > 1:
            self.sources = list(counts)
            log.info("sources: %s", ", ".join(f"{count} {name}" for name, count in counts.items()))
        for suspicion in find_suspicions(inspection):
            log.warning("%s", suspicion)
        if self.recorded_split:
            check_stems(self.split, self.recorded_split, list(self.rows))
            with suppress(InputError):  # the split's file may be gone: the record is enough
                self.splitter.read(pairs, self._listing.lists)
            self.subsets = self.recorded_split
        else:
            subsets = self.splitter.divide(pairs, inspection, self._listing.lists)
            if frames := self.pairs[start:]:
                normal = self.splitter.divide_normal(frames, self.inspection.select(slice(start, None)))
                subsets["train"] += normal["train"]
                if normal["test"]:
                    subsets[NORMAL] = normal["test"]
            self.subsets = subsets
        sizes = ", ".join(f"{len(stems)} {name}" for name, stems in self.subsets.items())
        log.info("%s: %s images (split %s)", self.dataset, sizes, self.splitter.used)

    def source_of(self, stem: str) -> str:
        """The source of an image, see `sources`."""
        return self.pairs[self.rows[stem]].source

    def setup(self, stage: str) -> None:
        """Check and split the data and fill the cache, once."""
        _ = self.pixels  # before `find`: the pass that resizes inspects as well
        self.find()
        _, processes = self._processes()
        count = len(self.subsets["train"])
        if count < self.batch_size * processes:
            setting = f"data.batch_size={self.batch_size}" + f" on {processes} devices" * (processes > 1)
            raise InputError(f"{setting} is larger than the {count} training images: lower it")

    def get_pairs(self, subset: str) -> list[Pair]:
        """The files of train, val, test, or of the test's normal frames (`normal`), after `find`."""
        return [self.pairs[self.rows[stem]] for stem in self.subsets.get(subset, ())]

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

    def _loader_options(self, workers: int | Literal["auto"], persistent: bool = True) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        count = 0 if workers == AUTO else workers
        if workers == AUTO and on_gpu and self.trainer is not None:
            count = min(MAX_WORKERS, max(count_processors() // self.trainer.num_devices - 1, 0))
        return {
            "num_workers": count,
            "persistent_workers": persistent and count > 0,
            "worker_init_fn": _ignore_signals,
            "pin_memory": on_gpu,
        }

    def train_dataloader(self) -> DataLoader:
        """Augmented images at network resolution, in a new order each epoch; this process's share of them.

        An incomplete last batch is left out. With Lightning's overfit_batches, each epoch is the first one.
        """
        dataset = self._dataset("train", augment=True)
        sampler = EpochSampler(len(dataset), self.seed, self.batch_size, *self._processes())
        options = self._loader_options(self.num_workers)
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
        """The state of the training loader."""
        return {"train_loader": self.train_loader.state_dict()} if self.train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the training loader that is made next."""
        self.progress = state_dict["train_loader"]

    def val_dataloader(self) -> DataLoader:
        """Images at network resolution; all in each process, since equal shares would need padding."""
        options = self._loader_options(self.eval_workers)
        return DataLoader(self._dataset("val"), self.eval_batch_size, **options)

    def test_dataloader(self) -> list[DataLoader]:
        """The test images at their own sizes, as an `OriginalBatch`, and those of normal frames if any."""
        options = self._loader_options(self.eval_workers, persistent=False) | {"collate_fn": collate_lists}
        subsets = [name for name in ("test", NORMAL) if name in self.subsets]
        return [
            DataLoader(self._dataset(name, resize=False), self.eval_batch_size, **options) for name in subsets
        ]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave images of their original sizes on the CPU, where they are resized; the result is moved."""
        if isinstance(batch["image"], list):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def showcase(self, subset: str, count: int = 6) -> list[str]:
        """The stems of images to show, the same each time, from the smallest polyp to the largest."""
        stems = sorted(self.subsets[subset], key=lambda stem: (self.inspection.shares[self.rows[stem]], stem))
        indices = np.unique(np.linspace(0, len(stems) - 1, min(count, len(stems))).round().astype(int))
        return [stems[index] for index in indices]

    def describe(self) -> dict[str, Any]:
        """The entries on the data in a run's metrics.json."""
        names = [pair.source for name in SUBSETS for pair in self.get_pairs(name)]
        return {
            "dataset": self.dataset,
            "fingerprint": self.inspection.fingerprint,
            "split": self.splitter.used,
            **({"split_seed": self.splitter.seed} if self.splitter.is_drawn else {}),
            **({"folds": self.splitter.parts, "fold": self.splitter.fold} if self.splitter.parts else {}),
            **({"sources": {name: names.count(name) for name in self.sources}} if self.sources else {}),
            "image_size": list(self.image_size),
            "images": {name: len(stems) for name, stems in self.subsets.items()},
        }


def _check_int(key: str, value: Any, minimum: int) -> int:
    if type(value) is not int or value < minimum:  # a bool is an int to isinstance
        raise InputError(f"data.{key}={value} must be a whole number of at least {minimum}")
    return value


def _check_workers(key: str, value: Any) -> int | Literal["auto"]:
    return AUTO if value == AUTO else _check_int(key, value, 0)


def _ignore_signals(worker: int) -> None:
    """Let the main process end the workers after it has saved: signals reach all processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
