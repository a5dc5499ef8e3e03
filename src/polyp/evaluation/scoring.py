"""Images scored one by one, and what they say together."""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from polyp.data.pairs import Pair
from polyp.data.traits import by_stratum, traits
from polyp.evaluation.testsets import TestSet
from polyp.inference.predictor import BATCH, Predictor
from polyp.metrics import literature
from polyp.metrics.calibration import RiskControl, risk_threshold
from polyp.metrics.intervals import bootstrap_interval
from polyp.metrics.overlap import FAILURE
from polyp.metrics.suite import Number, Scores, at_threshold, definitions, missed, summarise
from polyp.metrics.suite import scored as scored_pairs

OF_NORMAL_FRAMES = ("false_alarms", "false_positives_per_image", "mae", "brier", "ece")
"""The numbers that say something where there is no polyp."""


@dataclass(frozen=True)
class Image:
    """An image that has been scored."""

    pair: Pair
    scores: Scores
    traits: dict[str, float]

    @property
    def row(self) -> dict[str, Any]:
        """Its row of per_image.csv."""
        return {"stem": self.pair.stem, **self.scores.row, **self.traits}

    @property
    def dice(self) -> float:
        """Its Dice."""
        return self.scores.row["dice"]


def scored(predictor: Predictor, test_set: TestSet, threshold: float) -> Iterator[Image]:
    """Score the images of a set in their order; two batches are in memory at a time.

    Args:
        predictor: what predicts.
        test_set: on what.
        threshold: a pixel is predicted to be polyp from this probability on.

    Raises:
        InputError: a model gives something else than probabilities, such as NaN.
    """
    seen: deque[tuple[Pair, dict[str, float]]] = deque()

    def read(pair: Pair) -> tuple[Pair, np.ndarray, np.ndarray, dict[str, float]]:
        image, mask = test_set.read(pair)
        return pair, image, mask, traits(image, mask)

    def predicted(pool: ThreadPoolExecutor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        starts = range(0, len(test_set.pairs), BATCH)
        reading = [pool.submit(read, pair) for pair in test_set.pairs[:BATCH]]
        for start in starts:
            now = [future.result() for future in reading]
            reading = [pool.submit(read, pair) for pair in test_set.pairs[start + BATCH : start + 2 * BATCH]]
            probabilities = predictor.predict_all([image for _, image, _, _ in now])
            for (pair, _, mask, of), probability in zip(now, probabilities, strict=True):
                seen.append((pair, of))
                yield probability, mask

    workers = os.cpu_count() or 1
    bar = tqdm(total=len(test_set.pairs), desc=test_set.name, unit="image", leave=False, disable=None)
    with ThreadPoolExecutor(workers) as pool, bar:
        for scores in scored_pairs(predicted(pool), threshold, literature.unavailable() is None, workers):
            pair, of = seen.popleft()
            yield Image(pair, scores, of)
            bar.update()


def summary(
    images: Sequence[Image], threshold: float, normal: bool = False, control: RiskControl | None = None
) -> dict[str, Any]:
    """What images that have been scored say together: numbers with definitions and intervals, strata, calibration.

    Args:
        images: at least one.
        threshold: that they were scored at.
        normal: none of them has a polyp.
        control: a threshold that validation vouches for, to be applied as well.
    """
    scores = [image.scores for image in images]
    numbers = summarise(scores)
    if normal:  # Dice and its like say nothing of images without a polyp
        numbers = {name: number for name, number in numbers.items() if name in OF_NORMAL_FRAMES}
    known = definitions(threshold, literature.unavailable() is None)
    pixels, probability, polyp = np.mean([one.vectors["reliability"] for one in scores], axis=0).tolist()
    controlled = control and vars(control) | {"here": _plain(at_threshold(scores, control.threshold))}
    return {
        "numbers": _plain(numbers),
        "definitions": {name: known[name] for name in numbers},
        "strata": {} if normal else strata([image.row for image in images]),
        "reliability": {"pixels": pixels, "probability": probability, "polyp": polyp},
        "risk_control": controlled,
    }


def strata(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Dice by stratum: for each bin that has images n, dice with its interval, and the share of failures.

    Args:
        rows: of per_image.csv.
    """
    return {
        name: {
            part: {
                "n": len(values),
                "dice": float(np.mean(values)),
                "dice_interval": list(bootstrap_interval(values)) if len(values) > 1 else None,  # JSON knows no NaN
                "failures": float(np.mean(np.array(values) < FAILURE)),
            }
            for part, values in parts.items()
        }
        for name, parts in by_stratum(rows, "dice").items()
        if parts
    }


def controlled(images: Sequence[Image], share: float, confidence: float) -> RiskControl | None:
    """The threshold that images, those of validation, vouch for; None if they cannot, see `risk_threshold`."""
    shares = missed([image.scores for image in images])
    return risk_threshold(shares, share, confidence) if len(shares) else None


def _plain(numbers: Mapping[str, Number]) -> dict[str, dict[str, Any]]:
    return {name: vars(number) for name, number in numbers.items()}
