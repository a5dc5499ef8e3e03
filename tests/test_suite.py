import math

import numpy as np
import pytest
import torch
from masks import disc, odd_masks, predictions

from polyp.data.traits import measure_traits
from polyp.images import IGNORED
from polyp.metrics import literature
from polyp.metrics.calibration import THRESHOLDS
from polyp.metrics.intervals import bootstrap_interval
from polyp.metrics.overlap import SegmentationScores, image_scores
from polyp.metrics.suite import (
    Number,
    get_definitions,
    get_missed_shares,
    score,
    summarise,
    summarise_at_threshold,
)

IMAGES = list(predictions())
LITERATURE = literature.unavailable() is None
SCORES = [score(*image, literature=LITERATURE) for image in IMAGES]
PERFECT = [score(mask.astype(np.float32), mask) for mask in odd_masks().values()]


def test_over_images_the_numbers_are_those_of_training() -> None:
    metric = SegmentationScores()
    for probability, truth in IMAGES:
        metric.update(image_scores(torch.tensor(probability), torch.tensor(truth)))
    summary = summarise(SCORES)
    for name, value in metric.compute().items():
        assert summary[name].value == pytest.approx(value.item())


def test_each_number_is_defined_and_has_an_interval() -> None:
    summary = summarise(SCORES)
    assert list(summary) == list(get_definitions(literature=LITERATURE))
    for name, number in summary.items():
        assert number.interval is not None and number.interval[0] <= number.value <= number.interval[1], name
    assert summary["dice"].interval == pytest.approx(
        bootstrap_interval([scores.row["dice"] for scores in SCORES])
    )
    assert summary["dice"].n == len(IMAGES)
    assert summary["polyp_recall"].n == len(IMAGES) - 1
    assert summary["false_alarms"].n == 1


def test_sums_and_ratios_by_hand() -> None:
    truth, empty = disc(14, 20, 8), np.zeros((29, 41), dtype=bool)
    discs = disc(8, 9, 5) | disc(20, 30, 6)
    pairs = [(truth, truth), (disc(8, 9, 5), discs), (empty, empty), (truth, empty), (empty, empty)]
    summary = summarise([score(p.astype(np.float32), t) for p, t in pairs])
    assert summary["polyp_recall"].value == pytest.approx(2 / 3)
    assert summary["false_positives_per_image"].value == pytest.approx(1 / 5)
    assert summary["false_alarms"].value == pytest.approx(1 / 3)
    shared, missed, alarm = truth.sum() + disc(8, 9, 5).sum(), disc(20, 30, 6).sum(), truth.sum()
    assert summary["pooled_dice"].value == pytest.approx(2 * shared / (2 * shared + missed + alarm))
    wrong = [(p != t).mean() for p, t in pairs]
    assert summary["brier"].value == pytest.approx(np.mean(wrong))
    # All pixels are in the first or the last bin: what is missed in one, the alarm in the other.
    assert summary["ece"].value == pytest.approx((missed + alarm) / 5 / truth.size)


@pytest.mark.parametrize("beside", [0.0, 0.3, 1.0])
def test_ignored_pixels_are_left_out_of_what_counts_pixels(beside: float) -> None:
    """An image with ignored columns scores like the image without them, whatever is predicted there."""
    for probability, truth in IMAGES:
        ignored = np.full((truth.shape[0], 30), IGNORED, np.uint8)
        wide = (
            np.hstack([probability, np.full_like(ignored, beside, np.float32)]),
            np.hstack([truth, ignored]),
        )
        with_ignored, alone = (score(*pair, literature=LITERATURE) for pair in (wide, (probability, truth)))
        geometric = {"nsd", "hd95", "wfm", "sm", "polyps_found", "polyps_missed", "false_positives"}
        for name in alone.row.keys() - geometric:
            assert with_ignored.row[name] == pytest.approx(alone.row[name], abs=1e-6), name
        for name, vector in alone.vectors.items():
            assert with_ignored.vectors[name] == pytest.approx(vector), name
        traits = measure_traits(wide[1])
        assert traits["polyp_share"] == measure_traits(truth)["polyp_share"]


def test_ignored_pixels_are_background_where_shapes_matter() -> None:
    probability, truth = disc(14, 12, 8).astype(np.float32), disc(14, 12, 8).astype(np.uint8)
    probability[:, 25:] = 1  # a false positive, of which no pixel counts
    truth[:, 25:] = IGNORED
    row = score(probability, truth).row
    assert (row["nsd"], row["hd95"], row["polyps_found"], row["false_positives"]) == (1, 0, 1, 0)
    truth[:, 12:] = IGNORED  # half of the polyp
    row = score(probability, truth, threshold=0.0).row
    assert (row["recall"], row["polyps_found"] + row["polyps_missed"]) == (1, 1)
    assert measure_traits(truth)["polyps"] == 1


def test_an_image_in_which_nothing_counts_scores_like_an_empty_one() -> None:
    nothing = np.full((29, 41), IGNORED, np.uint8)
    row = score(np.ones((29, 41), np.float32), nothing, literature=LITERATURE).row
    empty = score(np.zeros((29, 41), np.float32), np.zeros((29, 41)), literature=LITERATURE).row
    assert row == empty


def test_the_truth_itself_is_perfect() -> None:
    summary = summarise(PERFECT)
    for name in ("mae", "hd95", "brier", "ece", "false_positives_per_image", "false_alarms"):
        assert summary.pop(name).value == 0, name
    assert {number.value for number in summary.values()} == {1.0}


def test_what_the_images_cannot_tell_is_left_out() -> None:
    summary = summarise(PERFECT[1:])
    assert "false_alarms" not in summary and "wfm" not in summary
    summary = summarise(PERFECT[:1])
    assert "polyp_recall" not in summary and summary["dice"] == Number(1.0, None, 1)
    assert "missed" not in summarise_at_threshold(PERFECT[:1], 0.5)
    with pytest.raises(ValueError, match="no images"):
        summarise([])


def test_numbers_improve_as_an_eroded_mask_grows_to_the_truth() -> None:
    truth = disc(60, 80, 40, (120, 160))
    rows = [
        score(disc(60, 80, radius, (120, 160)).astype(np.float32), truth).row for radius in (30, 34, 38, 40)
    ]
    for name in ("dice", "iou", "recall", "nsd"):
        assert [row[name] for row in rows] == sorted(row[name] for row in rows)
    for name in ("mae", "hd95", "brier"):
        assert [row[name] for row in rows] == sorted((row[name] for row in rows), reverse=True)


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.75])
def test_another_threshold_without_the_images(threshold: float) -> None:
    direct = [score(*image, threshold=threshold).row for image in IMAGES]
    numbers = summarise_at_threshold(SCORES, threshold)
    for name in ("dice", "iou", "precision", "recall"):
        assert numbers[name].value == pytest.approx(np.mean([row[name] for row in direct]))
    polyps = [row for row in direct if row["tp"] + row["fn"]]
    assert numbers["missed"].value == pytest.approx(np.mean([1 - row["recall"] for row in polyps]))
    assert numbers["missed"].n == len(polyps) == len(get_missed_shares(SCORES))
    assert get_missed_shares(SCORES)[:, list(THRESHOLDS).index(threshold)].mean() == pytest.approx(
        numbers["missed"].value
    )


def test_a_threshold_between_the_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="k/256"):
        summarise_at_threshold(SCORES, 0.3)


def test_definitions_name_the_threshold() -> None:
    assert all("0.5" not in text for name, text in get_definitions(0.3).items() if name != "polyp_recall")
    assert "0.3" in get_definitions(0.3)["dice"] and "0.3" in get_definitions(0.3)["nsd"]
    assert "0.5" in get_definitions()["dice"]


def test_no_pixels_are_kept() -> None:
    sizes = [sum(vector.nbytes for vector in scores.vectors.values()) for scores in SCORES]
    assert max(sizes) < 10_000


def test_probabilities_that_are_none_are_refused() -> None:
    broken = np.full((4, 4), math.nan, dtype=np.float32)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        score(broken, np.zeros((4, 4)))
    with pytest.raises(ValueError, match="one image"):
        score(broken[None], broken[None])
