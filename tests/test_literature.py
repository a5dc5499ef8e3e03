import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from masks import disc, odd_masks, predictions

from polyp.metrics import literature
from polyp.metrics.literature import literature_scores

extra = pytest.mark.skipif(
    literature.unavailable() is not None, reason="needs pip install -e '.[literature]'"
)


def as_the_field_does(images: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """PySODMetrics on images of predictions and masks, as they would be read from files."""
    import py_sod_metrics as sod

    options = {"with_dynamic": True, "with_adaptive": False}
    counted = sod.FmeasureV2({"dice": sod.DICEHandler(**options), "iou": sod.IOUHandler(**options)})
    metrics = [counted, sod.WeightedFmeasure(), sod.Smeasure(), sod.Emeasure()]
    for probability, truth in images:
        for metric in metrics:
            metric.step((255 * probability).round().astype(np.uint8), 255 * truth)
    overlaps, wfm, sm, em = (metric.get_results() for metric in metrics)
    curves = {"dice": overlaps["dice"]["dynamic"], "iou": overlaps["iou"]["dynamic"], "em": em["em"]["curve"]}
    return (
        {"wfm": wfm["wfm"], "sm": sm["sm"]}
        | {f"{name}_mean": curve.mean() for name, curve in curves.items()}
        | {f"{name}_max": curve.max() for name, curve in curves.items()}
    )


def compute(images: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    numbers, vectors = zip(
        *(literature_scores(p, t == 1, np.ones_like(t, bool)) for p, t in images), strict=True
    )
    means = {name: float(np.mean([scores[name] for scores in numbers])) for name in numbers[0]}
    curves = {
        name: np.mean([scores[f"{name}_curve"] for scores in vectors], axis=0) for name in literature.CURVES
    }
    return means | {f"{name}_max": curve.max() for name, curve in curves.items()}


@extra
def test_equal_to_the_library_over_all_images_together() -> None:
    options = dict(zip([*odd_masks(), *range(12)], predictions(), strict=True))
    # of these it makes NaN
    images = [options[name] for name in options if name not in ("corner pixel", "last column")]
    assert compute(images) == pytest.approx(as_the_field_does(images), abs=1e-6)
    assert compute(images).keys() == literature.DEFINITIONS.keys()


@extra
@pytest.mark.real_data
def test_equal_to_the_library_on_kvasir_seg(data_folder: Path) -> None:
    images = []
    with zipfile.ZipFile(data_folder / "kvasir-seg.zip") as archive:
        for name in sorted(n for n in archive.namelist() if "/masks/" in n and n.endswith(".jpg"))[::125]:
            grey = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_GRAYSCALE)
            truth = (grey > 127).astype(np.uint8)
            shifted = np.roll(truth, (9, -14), (0, 1)).astype(np.float32)
            images.append((cv2.GaussianBlur(shifted, (0, 0), 12).clip(0, 1), truth))
    assert len(images) == 8
    assert compute(images) == pytest.approx(as_the_field_does(images), abs=1e-6)


@extra
def test_curves_by_the_formulas() -> None:
    for probability, truth in predictions():
        polyp = truth == 1
        stretched = np.rint(probability * 255).astype(np.uint8) / 255
        stretched = (stretched - stretched.min()) / (stretched.max() - stretched.min())
        curves = literature_scores(probability, polyp, np.ones_like(polyp))[1]
        for index in range(0, 256, 15):
            prediction = (255 * stretched).astype(np.uint8) >= 255 - index  # from the highest threshold on
            intersection, either = (prediction & polyp).sum(), (prediction | polyp).sum()
            assert curves["iou_curve"][index] == pytest.approx(intersection / max(either, 1))
            assert curves["dice_curve"][index] == pytest.approx(
                2 * intersection / max(either + intersection, 1)
            )
            aligned = np.where(polyp.any(), prediction, ~prediction).astype(float)
            if 0 < polyp.sum() < polyp.size:
                a, b = prediction - prediction.mean(), polyp - polyp.mean()
                aligned = (1 + 2 * a * b / (a * a + b * b)) ** 2 / 4
            assert curves["em_curve"][index] == pytest.approx(aligned.sum() / (polyp.size - 1))


@extra
def test_every_mask_has_finite_scores_and_the_truth_itself_the_best() -> None:
    for name, mask in odd_masks().items():
        numbers, vectors = literature_scores(mask.astype(np.float32), mask, np.ones_like(mask))
        assert all(np.isfinite(value).all() for value in (*numbers.values(), *vectors.values())), name
        if name not in ("empty", "full", "one pixel", "corner pixel", "last column"):
            assert numbers == pytest.approx(
                {"wfm": 1, "sm": 1, "em_mean": 1, "dice_mean": 1, "iou_mean": 1}, abs=0.01
            )


@extra
def test_a_correct_mask_that_is_eroded_gets_worse() -> None:
    truth = disc(60, 80, 40, (120, 160))
    numbers = [
        literature_scores(disc(60, 80, radius, (120, 160)).astype(np.float32), truth, np.ones_like(truth))[0]
        for radius in (40, 36, 30)
    ]
    for name in numbers[0]:
        values = [scores[name] for scores in numbers]
        assert values == sorted(values, reverse=True) and values[0] > values[1] > values[2], name


def test_without_the_extra_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(literature, "find_spec", lambda name: None)
    line = literature.unavailable()
    assert line is not None and "pip install -e '.[literature]'" in line and "\n" not in line
