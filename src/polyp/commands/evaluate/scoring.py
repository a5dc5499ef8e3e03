"""Scores of single images, and their summary."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import torch

from polyp import terminal
from polyp.commands.evaluate.testsets import TestSet
from polyp.data.pairs import Pair
from polyp.data.traits import group_by_stratum, measure_traits
from polyp.inference.predictor import BATCH, Predictor
from polyp.metrics import literature
from polyp.metrics.calibration import RiskControl
from polyp.metrics.intervals import summarise_rows, summarise_sources
from polyp.metrics.overlap import FAILURE, image_scores
from polyp.metrics.suite import (
    Scores,
    get_definitions,
    score,
    summarise,
    summarise_at_threshold,
)

T = TypeVar("T")

# The numbers that are meaningful for images without polyps.
NORMAL = ("false_alarms", "false_positives_per_image", "mae", "brier", "ece")


@dataclass(frozen=True)
class Image:
    """A scored image."""

    pair: Pair
    scores: Scores
    traits: dict[str, float]

    @property
    def row(self) -> dict[str, Any]:
        """The image's row of per_image.csv; without `source` if the data set has only one."""
        source = {"source": self.pair.source} if self.pair.source else {}
        return {"stem": self.pair.stem, **source, **self.scores.row, **self.traits}

    @property
    def dice(self) -> float:
        """The Dice of the image."""
        return self.scores.row["dice"]

    @property
    def is_failure(self) -> bool:
        """Whether the Dice is below `FAILURE`."""
        return self.dice < FAILURE


Score = Callable[[Pair, np.ndarray, np.ndarray, float], T]
"""Scores an image, from its pair, truth (H, W), probabilities (H, W) and the threshold."""


def score_image(pair: Pair, truth: np.ndarray, probability: np.ndarray, threshold: float) -> Image:
    """All numbers of an image."""
    suite = literature.unavailable() is None
    return Image(pair, score(probability, truth, threshold, suite), measure_traits(truth))


def score_dice(pair: Pair, truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    """The Dice of an image alone, which takes a tenth of the time of `score_image`."""
    scores = image_scores(torch.as_tensor(probability), torch.as_tensor(truth), threshold)
    return scores["dice"].item()


def score_images(
    predictor: Predictor, test_set: TestSet, threshold: float, score_function: Score[T]
) -> list[T]:
    """Score the images of a set: a pixel is predicted to be polyp if its probability is at least `threshold`.

    While a batch is predicted, the next one is read and the previous one scored: three are in memory.

    Raises:
        InputError: a model returns something other than probabilities, such as NaN.
    """
    pairs, results = test_set.pairs, list[T]()
    scores: Iterable[T] = ()
    with ThreadPoolExecutor() as pool, terminal.progress() as bar:
        task = bar.add_task(f"scoring {test_set.name}", total=len(pairs))
        next_batch = pool.map(test_set.read, pairs[:BATCH])
        for start in range(0, len(pairs), BATCH):
            end = start + BATCH
            batch, arrays = pairs[start:end], list(next_batch)
            next_batch = pool.map(test_set.read, pairs[end : end + BATCH])
            probabilities = predictor.predict_all([image for image, _ in arrays])
            results += scores
            truths = [truth for _, truth in arrays]
            scores = pool.map(score_function, batch, truths, probabilities, repeat(threshold))
            bar.advance(task, len(batch))
        return [*results, *scores]


def summarise_images(
    images: Sequence[Image], threshold: float, normal: bool = False, control: RiskControl | None = None
) -> dict[str, Any]:
    """Numbers with definitions and intervals, sources, strata and calibration of images, for metrics.json.

    Args:
        images: at least one, scored at `threshold`.
        normal: none of the images has a polyp.
        control: a threshold that was chosen on validation images; its numbers are added unless `normal`.
    """
    scores = [image.scores for image in images]
    with terminal.status("computing the intervals"):
        numbers = summarise(scores)
    if normal:
        numbers = {name: number for name, number in numbers.items() if name in NORMAL}
    texts = get_definitions(threshold, literature.unavailable() is None)
    reliability = np.mean([image.vectors["reliability"] for image in scores], axis=0).tolist()
    risk_control = None
    if control and not normal:
        results = summarise_at_threshold(scores, control.threshold)
        risk_control = {**vars(control), "here": {name: vars(result) for name, result in results.items()}}
    return {
        "numbers": {name: vars(number) for name, number in numbers.items()},
        "definitions": {name: texts[name] for name in numbers},
        "sources": {} if normal else summarise_sources([image.row for image in images]),
        "strata": {} if normal else _summarise_strata(images),
        "reliability": dict(zip(("pixels", "probability", "polyp"), reliability, strict=True)),
        "risk_control": risk_control,
    }


def _summarise_strata(images: Sequence[Image]) -> dict[str, dict[str, dict[str, Any]]]:
    """For each bin of each stratum: n, Dice with its interval, and the share of failures."""
    strata: dict[str, dict[str, dict[str, Any]]] = {}
    for name, groups in group_by_stratum([image.row for image in images]).items():
        for part, rows in groups.items():
            failures = float(np.mean([row["dice"] < FAILURE for row in rows]))
            summary = {**summarise_rows(rows, ["dice"]), "failures": failures}
            strata.setdefault(name, {})[part] = summary
    return strata
