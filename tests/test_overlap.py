import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import BinaryF1Score

from polyp.images import IGNORED
from polyp.metrics.overlap import DEFINITIONS, SegmentationScores, image_scores

EMPTY = torch.zeros(4, 4)
DOT = torch.zeros(4, 4).index_put_((torch.tensor(0), torch.tensor(0)), torch.tensor(1.0))


def random_masks(count: int = 40, size: int = 12) -> tuple[Tensor, Tensor]:
    """Probabilities and truths (count, size, size), from almost empty to almost full."""
    random = torch.Generator().manual_seed(0)
    share = torch.rand(count, 1, 1, generator=random)
    truth = (torch.rand(count, size, size, generator=random) < share).float()
    return (torch.rand(count, size, size, generator=random) * 0.6 + truth * 0.4), truth


def scores(probability: Tensor, truth: Tensor) -> dict[str, float]:
    return {name: value.item() for name, value in image_scores(probability, truth).items()}


# ---- one image ----


def test_values_by_hand() -> None:
    probability = torch.tensor([[0.9, 0.5, 0.2], [0.7, 0.0, 0.4]])
    truth = torch.tensor([[1, 1, 1], [0, 0, 1]])
    # Predicted: the first two of the first row (0.5 counts) and the first of the second. Missed: 0.2 and 0.4.
    assert scores(probability, truth) == pytest.approx(
        {
            "tp": 2,
            "fp": 1,
            "fn": 2,
            "dice": 4 / 7,
            "iou": 2 / 5,
            "precision": 2 / 3,
            "recall": 2 / 4,
            "mae": (0.1 + 0.5 + 0.8 + 0.7 + 0.0 + 0.6) / 6,
            "polyp_share": 4 / 6,
        }
    )


def test_ignored_pixels_are_left_out_by_hand() -> None:
    probability = torch.tensor([[0.9, 0.5, 0.2, 0.99], [0.7, 0.0, 0.4, 0.01]])
    truth = torch.tensor([[1, 1, 1, IGNORED], [0, 0, IGNORED, IGNORED]])
    # Predicted: the first two of the first row and the first of the second. Missed: 0.2. Five pixels count.
    expected = {
        "tp": 2,
        "fp": 1,
        "fn": 1,
        "dice": 4 / 6,
        "iou": 2 / 4,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "mae": (0.1 + 0.5 + 0.8 + 0.7 + 0.0) / 5,
        "polyp_share": 3 / 5,
    }
    assert scores(probability, truth) == pytest.approx(expected)
    batch = torch.stack([truth, torch.full_like(truth, IGNORED)])
    first, second = (
        compute(iter([(probability[None], truth[None])])),
        image_scores(torch.stack([probability, probability]), batch),
    )
    assert first["pooled_dice"] == pytest.approx(4 / 6)
    assert second["dice"].tolist() == [pytest.approx(4 / 6), 1] and second["mae"][1] == 0


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [(EMPTY, EMPTY, 1.0), (EMPTY, DOT, 0.0), (DOT, EMPTY, 0.0), (DOT, DOT, 1.0), (DOT, DOT.flip(0), 0.0)],
)
def test_empty_masks(prediction: Tensor, truth: Tensor, expected: float) -> None:
    result = scores(prediction, truth)
    assert [result[name] for name in ("dice", "iou", "precision", "recall")] == [expected] * 4


def test_another_threshold() -> None:
    probability, truth = torch.tensor([[0.3, 0.6, 0.9]]), torch.tensor([[0, 1, 1]])
    counts = [
        tuple(image_scores(probability, truth, t)[name].item() for name in ("tp", "fp", "fn"))
        for t in (0.2, 0.7)
    ]
    assert counts == [(2, 1, 0), (1, 0, 1)]


def test_shapes_and_types() -> None:
    probability, truth = random_masks(3)
    batch = image_scores(probability, truth)
    for name, values in batch.items():
        assert values.shape == (3,)
        assert values.dtype == (torch.int64 if name in ("tp", "fp", "fn") else torch.float64)
        torch.testing.assert_close(image_scores(probability[:, None], truth[:, None].bool())[name], values)
        torch.testing.assert_close(image_scores(probability[1], truth[1].to(torch.uint8))[name], values[1:2])
        assert not values.requires_grad
    assert image_scores(probability.bfloat16(), truth)["mae"].dtype == torch.float64
    assert not image_scores(probability.requires_grad_(), truth)["mae"].requires_grad


def test_counts_are_exact_beyond_float32() -> None:
    everything = torch.ones(4097, 4097)
    assert int(torch.tensor(4097.0**2)) != 4097**2  # what float32 makes of it
    assert image_scores(everything, everything > 0)["tp"].item() == 4097**2


def test_agrees_with_torchmetrics() -> None:
    probability, truth = random_masks()
    independent = [BinaryF1Score()(p, t.long()).item() for p, t in zip(probability, truth, strict=True)]
    assert image_scores(probability, truth)["dice"].tolist() == pytest.approx(independent, abs=1e-6)


def test_laws() -> None:
    probability, truth = random_masks(200)
    predicted = (probability >= 0.5).float()
    result, swapped = image_scores(predicted, truth), image_scores(truth, predicted)
    assert torch.equal(result["dice"], swapped["dice"]) and torch.equal(result["iou"], swapped["iou"])
    assert torch.equal(result["precision"], swapped["recall"])
    torch.testing.assert_close(result["dice"], 2 * result["iou"] / (1 + result["iou"]))
    precision, recall = result["precision"], result["recall"]
    torch.testing.assert_close(result["dice"] * (precision + recall), 2 * precision * recall)
    for name in ("dice", "iou", "precision", "recall", "mae", "polyp_share"):
        assert (result[name] >= 0).all() and (result[name] <= 1).all()
    assert (result["iou"] <= result["dice"]).all()
    assert torch.equal(result["tp"] + result["fn"], truth.sum((1, 2)).long())
    turned = image_scores(probability.transpose(1, 2).flip(1), truth.transpose(1, 2).flip(1))
    assert torch.equal(turned["dice"], result["dice"])


@pytest.mark.parametrize(
    ("probability", "truth", "message"),
    [
        (torch.tensor([[-3.0, 5.0]]), torch.ones(1, 2), r"in \[0, 1\], got -3 to 5: are these logits"),
        (torch.tensor([[0.5, math.nan]]), torch.ones(1, 2), r"in \[0, 1\]"),
        (torch.tensor([[0.5, math.inf]]), torch.ones(1, 2), r"in \[0, 1\]"),
        (torch.tensor([[0.5, 1.01]]), torch.ones(1, 2), r"in \[0, 1\]"),
        (
            torch.ones(1, 2),
            torch.tensor([[0, 254]], dtype=torch.uint8),
            "0 or 1 .*, got 0 to 254: is this a grey image",
        ),
        (torch.ones(1, 2), torch.tensor([[0.0, 0.5]]), "0 or 1"),
        (torch.ones(1, 2), torch.tensor([[0.0, math.nan]]), "0 or 1"),
        (torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2), "floating-point"),
        (torch.ones(2, 4, 4), torch.ones(2, 1, 4, 4), "same shape"),
        (torch.ones(4), torch.ones(4), r"need \(H, W\)"),
        (torch.ones(0, 4, 4), torch.ones(0, 4, 4), "no pixels"),
    ],
)
def test_what_is_no_probability_or_no_mask_is_refused(
    probability: Tensor, truth: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        image_scores(probability, truth)


# ---- a data set ----


def compute(batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, float]:
    metric = SegmentationScores()
    for probability, truth in batches:
        metric.update(image_scores(probability, truth))
    return {name: value.item() for name, value in metric.compute().items()}


def test_pooled_and_mean_differ() -> None:
    large = torch.zeros(4, 4)
    large[:2] = 1
    # Eight pixels found; one pixel missed and another invented.
    result = compute(iter([(torch.stack([large, DOT.flip(0)]), torch.stack([large, DOT]))]))
    assert result["dice"] == (1 + 0) / 2
    assert result["pooled_dice"] == 16 / 18


def test_the_numbers_are_those_that_are_defined() -> None:
    probability, truth = random_masks()
    result = compute(iter([(probability, truth)]))
    assert result.keys() == DEFINITIONS.keys()
    for name in result.keys() - {"pooled_dice"}:
        assert result[name] == image_scores(probability, truth)[name].mean().item()


@pytest.mark.parametrize("size", [1, 7, 40])
def test_batches_make_no_difference(size: int) -> None:
    probability, truth = random_masks()
    one_by_one = compute(iter(zip(probability, truth, strict=True)))
    assert compute(iter(zip(probability.split(size), truth.split(size), strict=True))) == one_by_one


def test_nothing_to_find_and_nothing_found() -> None:
    result = compute(iter([(EMPTY, EMPTY), (EMPTY, EMPTY)]))
    assert result == {"dice": 1, "iou": 1, "precision": 1, "recall": 1, "mae": 0, "pooled_dice": 1}


def test_reset_forgets() -> None:
    metric = SegmentationScores()
    metric.update(image_scores(DOT, EMPTY))
    metric.reset()
    metric.update(image_scores(DOT, DOT))
    assert metric.compute()["dice"] == 1


# ---- three mistakes that once made a perfect network score like a blind one ----


def polyp() -> Tensor:
    """A mask (1, 1, 40, 50) of which 16.5 % is polyp."""
    mask = torch.zeros(1, 1, 40, 50)
    mask[..., 10:25, 20:42] = 1
    return mask


def test_mistake_inverted_masks() -> None:
    assert scores(polyp(), polyp())["dice"] == 1
    assert scores(polyp(), 1 - polyp())["dice"] == 0


def test_mistake_an_empty_second_channel() -> None:
    def diluted(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x)], dim=1)

    # Flattened into one long image, the second channel's pixels are "right" and the error shrinks by half.
    wrong = polyp().flip(-1)
    assert scores(diluted(wrong).reshape(1, 80, 50), diluted(polyp()).reshape(1, 80, 50))[
        "mae"
    ] == pytest.approx(scores(wrong, polyp())["mae"] / 2)
    with pytest.raises(ValueError, match="one channel"):
        image_scores(diluted(polyp()), diluted(polyp()))
    with pytest.raises(ValueError, match="same shape"):
        image_scores(diluted(polyp()), polyp())


@pytest.mark.parametrize("sharpness", [1, 5, 100])
def test_mistake_sigmoid_twice(sharpness: float) -> None:
    logits = sharpness * (2 * polyp() - 1)
    once, twice = logits.sigmoid(), logits.sigmoid().sigmoid()
    assert scores(once, polyp())["dice"] == 1
    assert (twice >= 0.5).all()  # so everything is polyp, whatever the network says
    assert scores(twice, polyp())["dice"] == pytest.approx(2 * 0.165 / (1 + 0.165))
    with pytest.raises(ValueError, match="are these logits"):
        image_scores(logits, polyp())  # nor is it applied not at all


def test_the_three_mistakes_together_cannot_tell_a_perfect_network_from_a_blind_one() -> None:
    def their_dice_loss(prediction: Tensor) -> float:
        logits = 100 * torch.cat([1 - 2 * prediction, -torch.ones_like(prediction)], dim=1)
        p = logits.sigmoid().sigmoid()
        t = torch.cat([1 - polyp(), torch.zeros_like(polyp())], dim=1)
        return 1 - (2 * (p * t).sum() / (p.sum() + t.sum())).item()

    perfect, blind = polyp(), torch.zeros_like(polyp())
    assert their_dice_loss(perfect) == pytest.approx(0.398, abs=1e-3)
    assert their_dice_loss(blind) == pytest.approx(0.409, abs=1e-3)
    assert (scores(perfect, polyp())["dice"], scores(blind, polyp())["dice"]) == (1, 0)
