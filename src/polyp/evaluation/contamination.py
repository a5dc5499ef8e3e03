"""Which of the images that a model is scored on were among those that it was trained or validated on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from polyp.data.datamodule import PolypDataModule
from polyp.data.duplicates import links
from polyp.errors import InputError
from polyp.evaluation.testsets import TestSet
from polyp.runs.data import load_run_data
from polyp.runs.model import Source

SUBSETS = ("train", "val")
"""What a model has been fitted to: the weights to the first, the choice of the checkpoint to the second."""


@dataclass(frozen=True)
class TrainingImage:
    """An image of a test set that shows the same as one that a model was trained or validated on.

    Attributes:
        stem: of the test set's image.
        model: the run's folder.
        subset: train or val.
        like: the stem of the run's image.
        why: what they have in common, see `polyp.data.duplicates`.
    """

    stem: str
    model: str
    subset: str
    like: str
    why: str


@dataclass(frozen=True)
class TrainingData:
    """The training and validation images of all models that are scored, as far as they are there.

    Attributes:
        known: the data of each run, by its folder.
        unknown: why the data of a model are not known, by its file or folder.
    """

    known: dict[str, PolypDataModule] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(
        sources: Sequence[Source], first: PolypDataModule | None, root: str | None, archive: str | None
    ) -> "TrainingData":
        """The data of some models.

        Args:
            sources: the models.
            first: the data of the first, where they are loaded already.
            root, archive: where the runs' data are now, if they have moved.
        """
        found = TrainingData()
        for source in sources:
            home = str(source.home)
            if source.config is None:
                found.unknown[str(source.file)] = "it is not in a run's folder"
            elif source is sources[0] and first is not None:
                found.known[home] = first
            elif home not in found.known:
                try:
                    found.known[home] = load_run_data(source.home, source.config, root, archive, needed=False)
                except InputError as error:
                    found.unknown[home] = str(error).partition("\n")[0]
        return found

    def images_in(self, test_set: TestSet) -> list[TrainingImage]:
        """The images of a set that a model was trained or validated on, identical or nearly so, under any name."""
        if test_set.thumbnails is None or test_set.fields is None:
            return []
        found = []
        count = len(test_set.pairs)
        for home, data in self.known.items():
            seen = [(data.rows[stem], stem, subset) for subset in SUBSETS for stem in data.subsets[subset]]
            rows = [row for row, _, _ in seen]
            pairs = links(
                np.concatenate([test_set.thumbnails, data.inspection.thumbnails[rows]]),
                np.concatenate([test_set.fields, data.inspection.fields[rows]]),
                split=count,
            )
            for link in {link.first: link for link in reversed(pairs)}.values():  # the first of each image
                _, stem, subset = seen[link.second - count]
                found.append(TrainingImage(test_set.pairs[link.first].stem, home, subset, stem, link.why))
        return sorted(found, key=lambda image: (image.stem, image.model))

    def report(self, images: Sequence[TrainingImage], without: dict[str, Any] | None) -> dict[str, Any]:
        """What metrics.json says of it.

        Args:
            images: those that were found.
            without: n and the numbers of the other images; None where nothing was found or nothing is left.
        """
        return {
            "checked": list(self.known),
            "unchecked": self.unknown,
            "found": len({image.stem for image in images}),
            "images": [asdict(image) for image in images],
            "without": without,
        }
