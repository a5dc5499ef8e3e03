"""Images scored one by one, and what they say together."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyp import terminal
from polyp.commands.evaluate.testsets import TestSet
from polyp.data.pairs import Pair
from polyp.data.traits import group_by_stratum, measure_traits
from polyp.inference.predictor import BATCH, Predictor
from polyp.metrics import literature
from polyp.metrics.calibration import RiskControl, risk_threshold
from polyp.metrics.intervals import summarise_rows, summarise_sources
from polyp.metrics.overlap import FAILURE
from polyp.metrics.suite import (
    Scores,
    get_definitions,
    get_missed_shares,
    score,
    summarise,
    summarise_at_threshold,
)

NORMAL = ("false_alarms", "false_positives_per_image", "mae", "brier", "ece")
"""The numbers that say something where there is no polyp."""


@dataclass(frozen=True)
class Image:
    """An image that has been scored."""

    pair: Pair
    scores: Scores
    traits: dict[str, float]

    @property
    def row(self) -> dict[str, Any]:
        """Its row of per_image.csv; `source` is left out where there is only one."""
        source = {"source": self.pair.source} if self.pair.source else {}
        return {"stem": self.pair.stem, **source, **self.scores.row, **self.traits}

    @property
    def dice(self) -> float:
        """Its Dice."""
        return self.scores.row["dice"]


def score_images(predictor: Predictor, test_set: TestSet, threshold: float) -> list[Image]:
    """Score the images of a set; those of three batches are in memory at a time.

    Args:
        predictor: the model or models.
        test_set: the images.
        threshold: a pixel is predicted to be polyp from this probability on.

    Raises:
        InputError: a model gives something else than probabilities, such as NaN.
    """
    suite = literature.unavailable() is None

    def finish(pair: Pair, truth: np.ndarray, probability: np.ndarray) -> Image:
        return Image(pair, score(probability, truth, threshold, suite), measure_traits(truth))

    pairs, images = test_set.pairs, list[Image]()
    scores: Iterable[Image] = ()
    with ThreadPoolExecutor() as pool, terminal.progress() as bar:
        task = bar.add_task(f"scoring {test_set.name}", total=len(pairs))
        reading = pool.map(test_set.read, pairs[:BATCH])
        for start in range(0, len(pairs), BATCH):
            batch, arrays = pairs[start : start + BATCH], list(reading)
            reading = pool.map(
                test_set.read, pairs[start + BATCH : start + 2 * BATCH]
            )  # during the prediction
            probabilities = predictor.predict_all([image for image, _ in arrays])
            images += scores  # of the batch before
            scores = pool.map(finish, batch, [truth for _, truth in arrays], probabilities)
            bar.advance(task, len(batch))
        return [*images, *scores]


def summarise_images(
    images: Sequence[Image], threshold: float, normal: bool = False, control: RiskControl | None = None
) -> dict[str, Any]:
    """What scored images say together: numbers with definitions and intervals, sources, strata,
    calibration.

    Args:
        images: at least one.
        threshold: that they were scored at.
        normal: none of them has a polyp.
        control: a threshold chosen on validation images, to be applied as well.
    """
    scores = [image.scores for image in images]
    with terminal.status("computing the intervals"):
        numbers = summarise(scores)
    if normal:  # Dice and its like say nothing of images without a polyp
        numbers = {name: number for name, number in numbers.items() if name in NORMAL}
    texts = get_definitions(threshold, literature.unavailable() is None)
    reliability = np.mean([image.vectors["reliability"] for image in scores], axis=0).tolist()
    here = summarise_at_threshold(scores, control.threshold) if control else {}
    return {
        "numbers": {name: vars(number) for name, number in numbers.items()},
        "definitions": {name: texts[name] for name in numbers},
        "sources": {} if normal else summarise_sources([image.row for image in images]),
        "strata": {} if normal else _summarise_strata(images),
        "reliability": dict(zip(("pixels", "probability", "polyp"), reliability, strict=True)),
        "risk_control": control and {**vars(control), "here": {name: vars(here[name]) for name in here}},
    }


def _summarise_strata(images: Sequence[Image]) -> dict[str, dict[str, dict[str, Any]]]:
    """For each bin that has images n, Dice with its interval, and the share of failures."""

    def summarise_bin(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        failures = np.mean([row["dice"] < FAILURE for row in rows])
        return {**summarise_rows(rows, ["dice"]), "failures": float(failures)}

    groups = group_by_stratum([image.row for image in images])
    return {
        name: {part: summarise_bin(rows) for part, rows in parts.items()}
        for name, parts in groups.items()
        if parts
    }


def control_risk(images: Sequence[Image], share: float, confidence: float) -> RiskControl | None:
    """The threshold that validation images allow; None if they allow none, see `risk_threshold`."""
    shares = get_missed_shares([image.scores for image in images])
    return risk_threshold(shares, share, confidence) if len(shares) else None
