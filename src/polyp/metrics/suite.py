"""All metrics together: `score` an image, `summarise` the scores of images, `get_definitions` of the numbers.

The scores of an image are numbers and a few small arrays (14 kB), from which `summarise` and
`summarise_at_threshold` compute the metrics of any choice of images, at any of 256 thresholds.

Pixels whose truth is `polyp.images.IGNORED` are left out of whatever counts pixels. Where shapes matter (nsd,
hd95, the polyps that are found, wfm and sm) they are background in prediction and truth alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from polyp.images import IGNORED
from polyp.metrics import boundary, calibration, detection, overlap
from polyp.metrics import literature as literature_suite
from polyp.metrics.intervals import bootstrap_intervals

CURVE_MEANS = tuple(f"{name}_mean" for name in literature_suite.CURVES)
MEANS = (*overlap.MEANS, "nsd", "hd95", "brier", "wfm", "sm", *CURVE_MEANS)
"""Numbers of a row that are summarised by their mean; the last five are of the literature's suite."""


@dataclass(frozen=True)
class Scores:
    """The scores of the prediction of one image."""

    row: dict[str, float]
    """One image's line of a table. Keys: tp, fp, fn; dice, iou, precision, recall, mae; nsd, hd95; brier;
    polyps_found, polyps_missed, false_positives; and with the literature's suite wfm, sm, dice_mean,
    iou_mean, em_mean."""
    vectors: dict[str, np.ndarray]
    """levels (2, 256) and reliability (3, BINS), see `calibration`; with the literature's suite dice_curve,
    iou_curve and em_curve (256,), see `literature`."""


@dataclass(frozen=True)
class Number:
    """A number over images."""

    value: float
    interval: tuple[float, float] | None  # 95 % bootstrap over the images; None for a single image
    n: int  # images


def score(
    probability: np.ndarray, truth: np.ndarray, threshold: float = 0.5, literature: bool = False
) -> Scores:
    """Score one image.

    Args:
        probability: (H, W) float32 in [0, 1], at the image's original size.
        truth: (H, W), values 0, 1 and `IGNORED`.
        threshold: a pixel is predicted to be polyp where its probability is >= threshold.
        literature: the literature's suite too; needs PySODMetrics, see `literature.unavailable`.

    Raises:
        ValueError: as for `overlap.image_scores`: probabilities that are NaN or outside [0, 1], shapes that
            differ, a truth with other values.
    """
    if probability.ndim != 2:
        raise ValueError(f"need one image (H, W), got {probability.shape}")
    overlaps = overlap.image_scores(torch.as_tensor(probability), torch.as_tensor(truth), threshold)
    counted = truth != IGNORED
    if not counted.any():  # the overlaps take it for an empty image
        counted, probability = np.ones_like(counted), np.zeros_like(probability)
    polyp, prediction = truth == 1, (probability >= threshold) & counted
    pixels, polyp_pixels = (probability, polyp) if counted.all() else (probability[counted], polyp[counted])
    row = {name: overlaps[name].item() for name in overlap.COUNTS + overlap.MEANS}
    row |= boundary.boundary_scores(prediction, polyp)
    row["brier"] = float(np.square(pixels - polyp_pixels).mean(dtype=np.float64))
    row |= detection.detection_scores(prediction, polyp)
    levels, reliability = calibration.histograms(pixels, polyp_pixels)
    vectors = {"levels": levels, "reliability": reliability}
    if literature:
        numbers, curves = literature_suite.literature_scores(probability, polyp, counted)
        row |= numbers
        vectors |= curves
    return Scores(row, vectors)


def summarise(scores: Sequence[Scores]) -> dict[str, Number]:
    """The numbers of `get_definitions` over images, each with its interval.

    Numbers without a value are left out: polyp_recall where there are no polyps, false_alarms where there are
    no normal frames, the literature's suite where `score` left it out.

    Raises:
        ValueError: no images.
    """
    columns, vectors = _stack(scores, "row"), _stack(scores, "vectors")
    means = [name for name in MEANS if name in columns]
    curves = [name for name in vectors if name.endswith("_curve")]
    normal = columns["tp"] + columns["fn"] == 0
    polyps = columns["polyps_found"] + columns["polyps_missed"]
    columns |= {"polyps": polyps, "normal": normal, "alarm": normal & (columns["false_positives"] > 0)}
    columns |= {name: vectors[name] for name in ("reliability", *curves)}

    def from_means(mean: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        areas = 2 * mean["tp"] + mean["fp"] + mean["fn"]
        return {
            **{name: mean[name] for name in means},
            "pooled_dice": _ratio(2 * mean["tp"], areas, 1.0),
            "ece": calibration.calibration_error(mean["reliability"]),
            "polyp_recall": _ratio(mean["polyps_found"], mean["polyps"]),
            "false_positives_per_image": mean["false_positives"],
            "false_alarms": _ratio(mean["alarm"], mean["normal"]),
            **{name.replace("curve", "max"): mean[name].max(-1) for name in curves},
        }

    counts = {"polyp_recall": int((polyps > 0).sum()), "false_alarms": int(normal.sum())}
    numbers = _with_intervals(columns, from_means, counts)
    return {name: numbers[name] for name in get_definitions(literature=True) if name in numbers}


def summarise_at_threshold(scores: Sequence[Scores], threshold: float) -> dict[str, Number]:
    """dice, iou, precision, recall and missed at another threshold, without the network or the images.

    missed is `calibration.MISSED`, left out if no image has a polyp; the others are as in `get_definitions`.

    Raises:
        ValueError: no images, or a threshold that is not one of `calibration.THRESHOLDS`.
    """
    if threshold not in calibration.THRESHOLDS:
        raise ValueError(f"threshold must be k/256 with k from 0 to 255, got {threshold}")
    levels = _stack(scores, "vectors")["levels"]
    total, (fp, tp) = levels.sum(-1), levels[..., int(threshold * 256) :].sum(-1).T
    fn = total[:, 1] - tp
    ratios = overlap.ratios(torch.as_tensor(tp), torch.as_tensor(fp), torch.as_tensor(fn))
    columns = {name: values.numpy() for name, values in ratios.items()}
    polyp = total[:, 1] > 0

    def from_means(mean: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: mean[name] for name in ratios} | {"missed": _ratio(mean["missed"], mean["polyp"])}

    columns |= {"missed": _ratio(fn, total[:, 1], 0.0), "polyp": polyp}
    return _with_intervals(columns, from_means, {"missed": int(polyp.sum())})


def get_missed_shares(scores: Sequence[Scores]) -> np.ndarray:
    """(N, 256) for `calibration.risk_threshold`: the missed shares of the N images that have a polyp."""
    levels = np.array([image.vectors["levels"] for image in scores]).reshape(-1, 2, 256)
    return calibration.missed_shares(levels[levels[:, 1].any(axis=1)])


def get_definitions(threshold: float = 0.5, literature: bool = False) -> dict[str, str]:
    """What each number of `summarise` is, in the same order, for predictions at `threshold`."""
    texts = {name: text.replace("0.5", f"{threshold:g}") for name, text in overlap.DEFINITIONS.items()}
    for name, text in (boundary.DEFINITIONS | detection.DEFINITIONS).items():
        texts[name] = f"{text} Threshold {threshold:g}."
    return texts | calibration.DEFINITIONS | (literature_suite.DEFINITIONS if literature else {})


def _stack(scores: Sequence[Scores], field: str) -> dict[str, np.ndarray]:
    """The values of all images (N, …) by name, of `row` or of `vectors`."""
    if not scores:
        raise ValueError("no images")
    values = [getattr(image, field) for image in scores]
    return {name: np.array([value[name] for value in values], np.float64) for name in values[0]}


def _ratio(part: np.ndarray, whole: np.ndarray, default: float = np.nan) -> np.ndarray:
    """part / whole, `default` where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), default), where=whole > 0)


def _with_intervals(
    columns: Mapping[str, np.ndarray],
    from_means: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    counts: Mapping[str, int],
) -> dict[str, Number]:
    """Numbers that follow from the means of columns (N, …), with intervals; those that are NaN are left out.

    Args:
        columns: one value or array per image.
        from_means: from means (R, …) to numbers (R,).
        counts: how many images a number is about, where those are not all.
    """
    ends = np.cumsum([column[0].size for column in columns.values()])[:-1]
    flat = np.concatenate([column.reshape(len(column), -1) for column in columns.values()], axis=1)

    def numbers(means: np.ndarray) -> dict[str, np.ndarray]:
        parts = zip(columns.items(), np.split(means, ends, axis=1), strict=True)
        return from_means({name: part.reshape(-1, *column.shape[1:]) for (name, column), part in parts})

    values = {name: float(value[0]) for name, value in numbers(flat.mean(0, keepdims=True)).items()}
    intervals = bootstrap_intervals(flat, lambda means: np.stack(list(numbers(means).values()), axis=1))
    return {
        name: Number(value, None if np.isnan(low) else (float(low), float(high)), counts.get(name, len(flat)))
        for (name, value), (low, high) in zip(values.items(), intervals, strict=True)
        if not np.isnan(value)
    }
