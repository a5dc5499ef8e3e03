"""Which of the images that a model is scored on were among those that it was trained or validated on."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyp.commands.evaluate.testsets import TestSet
from polyp.data.datamodule import PolypDataModule
from polyp.data.duplicates import find_links
from polyp.errors import InputError
from polyp.runs.data import load_run_data
from polyp.runs.model import Source

FITTED = ("train", "val")
"""What a model has been fitted to: the weights to the first, the choice of the checkpoint to the second."""


class TrainingData:
    """The data of the runs of all models that are scored, and of the runs that these have their first weights
    from (`model.init_from`), as far as they are there.

    Args:
        sources: the models.
        root, archive: where the runs' data are now, if they have moved.
        needed: whether to download or draw data that are not there.

    Attributes:
        origins: the models of `model.init_from`, and of theirs, each after the model that is scored.
        known: the data of each run, by its folder.
        unknown: why the data of a model are not known, by its folder, or by its file if that is not in a run.

    Raises:
        InputError: the data of a run are needed, and not there or not what its split is of.
    """

    def __init__(
        self, sources: Sequence[Source], root: str | None, archive: str | None, needed: bool
    ) -> None:
        self.sources = sources
        self.known: dict[Path, PolypDataModule] = {}
        self.unknown: dict[Path, str] = {}
        self.origins: list[tuple[Source, Source]] = []
        pending = [(source, source) for source in sources]
        for model, source in pending:  # which grows
            required = needed and source is model
            if source.config is None:
                self.unknown[source.file] = (
                    "it is not in a run's folder" if source.file.exists() else "it is not there"
                )
            elif source.home not in self.known | self.unknown:
                try:
                    self.known[source.home] = load_run_data(
                        source.home, source.config, root, archive, required
                    )
                except InputError as error:
                    if required:
                        raise
                    self.unknown[source.home] = str(error).partition("\n")[0]
                if origin := source.origin:
                    self.origins.append((model, origin))
                    pending.append((model, origin))

    def of(self, source: Source) -> PolypDataModule | None:
        """The data of a model's run; None if they are not known."""
        return None if source.config is None else self.known.get(source.home)

    @property
    def has_folds(self) -> bool:
        """Whether the models are from several folds of one data set, or leave out different groups of it."""
        folds = {(source.config or {}).get("data", {}).get("fold", 0) for source in self.sources}
        fingerprints = {data and data.inspection.fingerprint for data in map(self.of, self.sources)}
        return len(folds) > 1 and len(fingerprints) == 1 and None not in fingerprints

    def assign_models(self, subset: str) -> dict[str, tuple[int, ...]]:
        """The images that runs have in a subset, by stem: the numbers of the models whose runs have each."""
        models: defaultdict[str, tuple[int, ...]] = defaultdict(tuple)
        for number, source in enumerate(self.sources):
            for stem in self.known[source.home].subsets.get(subset, ()):
                models[stem] += (number,)
        return dict(sorted(models.items()))

    def may_include(self, source: Source, images: TestSet, subsets: Sequence[str]) -> bool:
        """Whether images of a run may be among those that another model was fitted to."""
        if (data := self.of(source)) is None:
            return source.data_fingerprint in (None, images.fingerprint)
        stems = {stem for subset in subsets for stem in data.subsets[subset]}
        same = data.inspection.fingerprint == images.fingerprint
        return same and any(pair.stem in stems for pair in images.pairs)

    def explain_unknown(self, test_set: TestSet) -> dict[str, str]:
        """Why it is not known which images of a set each of the other models was fitted to."""
        reasons = {str(path): reason for path, reason in self.unknown.items()}
        for source in self.sources:
            if str(source.home) in reasons and source.data_fingerprint == test_set.fingerprint is not None:
                reasons[str(source.home)] += "; it was trained on this data set"
        return reasons

    def find_images(self, test_set: TestSet) -> list[dict[str, str]]:
        """The images of a set that a model was fitted to, identical or nearly so, under any name.

        Returns:
            A dict for each, in the order of stems: its stem, the run's folder as `model`, the `subset` that
            the model was fitted to, the stem of the run's image as `like`, and `why`, see
            `polyp.data.duplicates`.
        """
        assert test_set.thumbnails is not None and test_set.fields is not None
        images = []
        count = len(test_set.pairs)
        for home, data in self.known.items():
            fitted = [(stem, subset) for subset in FITTED for stem in data.subsets[subset]]
            rows = [data.rows[stem] for stem, _ in fitted]
            links = find_links(
                np.concatenate([test_set.thumbnails, data.inspection.thumbnails[rows]]),
                np.concatenate([test_set.fields, data.inspection.fields[rows]]),
                split=count,
            )
            for link in {link.first: link for link in reversed(links)}.values():  # the first of each image
                like, subset = fitted[link.second - count]
                stem = test_set.pairs[link.first].stem
                images.append(
                    {"stem": stem, "model": str(home), "subset": subset, "like": like, "why": link.reason}
                )
        return sorted(images, key=lambda image: (image["stem"], image["model"]))
