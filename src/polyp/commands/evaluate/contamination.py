"""Finds the test images that a model was trained or validated on."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyp.commands.evaluate.testsets import TestSet
from polyp.data.datamodule import PolypDataModule
from polyp.data.duplicates import find_links
from polyp.errors import InputError
from polyp.runs.data import load_run_data
from polyp.runs.model import ModelSource

FITTED = ("train", "val")  # the subsets that determine the weights of a model and its best checkpoint


class TrainingData:
    """The data of the runs of models, and of the runs whose weights these started from (`model.init_from`).

    Args:
        sources: the models that are scored.
        root, archive: where the runs' data are, if they have moved.
        needed: whether the data of the models that are scored must be there; they are downloaded or drawn.

    Attributes:
        datasets: the data of each run, by its folder.
        reasons: why the data of a model are unknown, by its folder, or by its file if that is not in a run.
        origins: pairs of a scored model and a model that its training, or that of an origin, started from.

    Raises:
        InputError: data that are needed are missing, or have changed since they were split.
    """

    def __init__(
        self, sources: Sequence[ModelSource], root: str | None, archive: str | None, needed: bool
    ) -> None:
        self.sources = sources
        self.datasets: dict[Path, PolypDataModule] = {}
        self.reasons: dict[Path, str] = {}
        self.origins: list[tuple[ModelSource, ModelSource]] = []
        queue = [(source, source) for source in sources]
        for model, source in queue:  # origins are appended to the queue
            required = needed and source is model
            if source.config is None:
                exists = source.file.exists()
                self.reasons[source.file] = "it is not in a run's folder" if exists else "it is not there"
                continue
            if source.home in self.datasets or source.home in self.reasons:
                continue
            try:
                data = load_run_data(source.home, source.config, root, archive, required)
                self.datasets[source.home] = data
            except InputError as error:
                if required:
                    raise
                self.reasons[source.home] = str(error).partition("\n")[0]
            if origin := source.origin:
                self.origins.append((model, origin))
                queue.append((model, origin))

    def get_data(self, source: ModelSource) -> PolypDataModule | None:
        """The data of a model's run; None if they are unknown."""
        return None if source.config is None else self.datasets.get(source.home)

    @property
    def has_folds(self) -> bool:
        """Whether the models are of several folds of one data set, or leave out different groups of it."""
        folds = {(source.config or {}).get("data", {}).get("fold", 0) for source in self.sources}
        datasets = [self.get_data(source) for source in self.sources]
        fingerprints = {data and data.inspection.fingerprint for data in datasets}
        return len(folds) > 1 and len(fingerprints) == 1 and None not in fingerprints

    def assign_models(self, subset: str) -> dict[str, tuple[int, ...]]:
        """The numbers of the models whose runs have an image in a subset, by the image's stem."""
        models: defaultdict[str, tuple[int, ...]] = defaultdict(tuple)
        for number, source in enumerate(self.sources):
            for stem in self.datasets[source.home].subsets.get(subset, ()):
                models[stem] += (number,)
        return dict(sorted(models.items()))

    def may_include(self, source: ModelSource, images: TestSet, subsets: Sequence[str]) -> bool:
        """Whether these subsets of a model's data may include some of the images of a run."""
        data = self.get_data(source)
        if data is None:
            return source.data_fingerprint in (None, images.fingerprint)
        if data.inspection.fingerprint != images.fingerprint:
            return False
        stems = {stem for subset in subsets for stem in data.subsets[subset]}
        return any(pair.stem in stems for pair in images.pairs)

    def explain_unknown(self, test_set: TestSet) -> dict[str, str]:
        """Why it is unknown which images of a set each of the remaining models was fitted to."""
        reasons = {str(path): reason for path, reason in self.reasons.items()}
        for source in self.sources:
            if str(source.home) in reasons and source.data_fingerprint == test_set.fingerprint is not None:
                reasons[str(source.home)] += "; it was trained on this data set"
        return reasons

    def find_images(self, test_set: TestSet) -> list[dict[str, str]]:
        """The images of a set that a model was fitted to, identical or nearly so, under any name.

        Returns:
            A dict for each, in the order of stems: its `stem`, the run's folder as `model`, the `subset` that
            the model was fitted to, the stem of the run's image as `like`, and `why`, see
            `polyp.data.duplicates`.
        """
        assert test_set.thumbnails is not None and test_set.fields is not None
        images = []
        count = len(test_set.pairs)
        for home, data in self.datasets.items():
            fitted = [(stem, subset) for subset in FITTED for stem in data.subsets[subset]]
            rows = [data.rows[stem] for stem, _ in fitted]
            links = find_links(
                np.concatenate([test_set.thumbnails, data.inspection.thumbnails[rows]]),
                np.concatenate([test_set.fields, data.inspection.fields[rows]]),
                split=count,
            )
            first_links = {link.first: link for link in reversed(links)}
            for link in first_links.values():
                stem = test_set.pairs[link.first].stem
                like, subset = fitted[link.second - count]
                images.append(
                    {"stem": stem, "model": str(home), "subset": subset, "like": like, "why": link.reason}
                )
        return sorted(images, key=lambda image: (image["stem"], image["model"]))
