import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polyp.errors import InputError
from polyp.images import IGNORED
from polyp.model.losses import LOSSES, build_loss

LOGITS = [2.0, -1.0, 0.0, -3.0]
TRUTH = [1.0, 0.0, 1.0, 0.0]
P = [1 / (1 + math.exp(-x)) for x in LOGITS]


def square(values: list[float]) -> Tensor:
    return torch.tensor(values).reshape(1, 1, 2, 2)


def disc(size: int = 64, radius: float = 12) -> Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((y - size / 2) ** 2 + (x - size / 2) ** 2 < radius**2).float()[None, None]


def structure_by_hand(logits: Tensor, truth: Tensor, weighted: bool = True) -> tuple[float, float]:
    """The two terms for one image, pixel by pixel; not `weighted`: the first as in the code that was
    published.
    """
    x, t = logits[0, 0].double().numpy(), truth[0, 0].double().numpy()
    weight = np.zeros_like(t)
    for i, j in np.argwhere(t != IGNORED):
        around = t[max(0, i - 15) : i + 16, max(0, j - 15) : j + 16]
        weight[i, j] = 1 + 5 * abs(around[around != IGNORED].mean() - t[i, j])
    x, t = np.where(t == IGNORED, 0, x), np.where(t == IGNORED, 0, t)  # they have no weight
    p = 1 / (1 + np.exp(-x))
    cross_entropy = -t * np.log(p) - (1 - t) * np.log(1 - p)
    both, either = (weight * p * t).sum(), (weight * (p + t - p * t)).sum()
    first = (weight * cross_entropy).sum() / weight.sum() if weighted else cross_entropy.mean()
    return first, 1 - (1 + both) / (1 + either)


def hand_values() -> dict[str, float]:
    truth_probability = [P[0], 1 - P[1], P[2], 1 - P[3]]  # the probability given to the truth
    bce = sum(-math.log(q) for q in truth_probability) / 4
    dice = 1 - 2 * (P[0] + P[2]) / (sum(P) + 2)
    missed, invented = (1 - P[0]) + (1 - P[2]), P[1] + P[3]
    # The window covers the whole square: m = 1/2 and w = 1 + 5/2 everywhere, which leaves the first term as
    # it is.
    w = 3.5
    iou = 1 - (1 + w * (P[0] + P[2])) / (1 + w * (2 + P[1] + P[3]))
    return {
        "bce": bce,
        "dice": dice,
        "dice_bce": dice + bce,
        "focal": sum(-((1 - q) ** 2) * math.log(q) for q in truth_probability) / 4,
        "tversky": 1 - (P[0] + P[2]) / (P[0] + P[2] + 0.3 * invented + 0.7 * missed),
        "structure": bce + iou,
        # Errors 1 (of the third pixel, a polyp's), 0, -1 and -2: only the first counts. Without it the
        # intersection is 1 of 2 pixels, and 1 - IoU = 1/2.
        "lovasz": 1 * 0.5,
    }


@pytest.mark.parametrize("name", LOSSES)
def test_value_by_hand(name: str) -> None:
    assert build_loss(name)(square(LOGITS), square(TRUTH)).item() == pytest.approx(
        hand_values()[name], rel=1e-5
    )


def test_structure_by_hand_where_the_window_is_smaller_than_the_image() -> None:
    truth = disc()
    truth[..., :20, :9] = 1  # a second polyp, cut by the frame
    logits = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)) * 3
    loss = build_loss("structure")(logits, truth).item()
    assert loss == pytest.approx(sum(structure_by_hand(logits, truth)), rel=1e-5)


def test_structure_weighs_boundary_errors_where_the_published_code_does_not() -> None:
    truth = disc()
    edge, far = truth.clone(), truth.clone()
    edge[..., 32, 44:49] = 1  # five false alarms beside the polyp …
    far[..., 2, 2:7] = 1  # … or in the corner
    first = {}
    for place, predicted in (("edge", edge), ("far", far)):
        logits = 20 * predicted - 10
        published, iou = structure_by_hand(logits, truth, weighted=False)
        first[place] = build_loss("structure")(logits, truth).item() - iou
        assert published == pytest.approx(F.binary_cross_entropy_with_logits(logits, truth).item(), rel=1e-3)
        first[place + ", published"] = published
    assert first["edge, published"] == pytest.approx(first["far, published"])
    assert first["edge"] > 2 * first["far"]


def test_structure_sees_no_boundary_in_a_full_mask() -> None:
    logits, truth = torch.zeros(1, 1, 40, 40), torch.ones(1, 1, 40, 40)
    assert build_loss("structure")(logits, truth).item() == pytest.approx(
        math.log(2) + 1 - 801 / 1601, rel=1e-5
    )


def test_structure_is_a_mean_over_images_and_dice_pools() -> None:
    logits = torch.cat([square(LOGITS), square([4.0, 4.0, -4.0, -4.0])])
    truth = torch.cat([square(TRUTH), square([1.0, 1.0, 1.0, 1.0])])
    structure, dice = build_loss("structure"), build_loss("dice")
    alone = [structure(logits[i : i + 1], truth[i : i + 1]).item() for i in range(2)]
    assert structure(logits, truth).item() == pytest.approx(sum(alone) / 2)
    p = 1 / (1 + math.exp(-4))
    both, total = P[0] + P[2] + 2 * p + 2 * (1 - p), sum(P) + 2 * p + 2 * (1 - p) + 6
    assert dice(logits, truth).item() == pytest.approx(1 - 2 * both / total, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_change_neither_value_nor_gradient(name: str) -> None:
    ignored = torch.full((1, 1, 2, 1), IGNORED)
    truth = torch.cat([square(TRUTH), ignored], -1)
    for beside in (-7.0, 0.0, 30.0):
        logits = torch.cat([square(LOGITS), torch.full_like(square(TRUTH)[..., :1], beside)], -1)
        logits.requires_grad_()
        loss = build_loss(name)(logits, truth)
        loss.backward()
        assert loss.item() == pytest.approx(hand_values()[name], rel=1e-5)
        alone = square(LOGITS).requires_grad_()
        build_loss(name)(alone, square(TRUTH)).backward()
        assert logits.grad is not None and alone.grad is not None
        assert torch.allclose(logits.grad[..., :2], alone.grad, rtol=1e-5)
        assert not logits.grad[..., 2].any()


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"structure", "lovasz"}))
def test_pooled_losses_are_those_of_the_counted_pixels_alone(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (3, 1, 20, 30), generator=random)
    truth[truth == 2] = IGNORED
    truth[2] = IGNORED  # an image in which nothing counts
    logits = 3 * torch.randn(truth.shape, generator=random)
    counted = truth != IGNORED
    alone = build_loss(name)(logits[counted].reshape(1, 1, 1, -1), truth[counted].reshape(1, 1, 1, -1))
    assert build_loss(name)(logits, truth).item() == pytest.approx(alone.item(), rel=1e-5)


def test_structure_by_hand_with_ignored_pixels() -> None:
    truth = disc()
    truth[..., :20, :9] = 1
    truth[..., 25:50, 40:60] = IGNORED
    logits = 3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    loss = build_loss("structure")
    expected = sum(structure_by_hand(logits, truth))
    assert loss(logits, truth).item() == pytest.approx(expected, rel=1e-5)
    nothing = torch.full_like(truth, IGNORED)  # an image in which nothing counts
    assert loss(torch.cat([logits, logits]), torch.cat([truth, nothing])).item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_in_which_nothing_counts_costs_nothing(name: str) -> None:
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    loss = build_loss(name)(logits, torch.full((2, 1, 8, 8), IGNORED, dtype=torch.uint8))
    loss.backward()
    assert loss == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_costs_nothing_and_an_inverted_mask_much(name: str) -> None:
    truth = disc()
    loss, perfect = build_loss(name), 40 * truth - 20
    assert 0 <= loss(perfect, truth).item() < 1e-3
    assert loss(perfect, 1 - truth).item() > 0.99
    assert loss(-perfect, truth).item() > 0.99


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("scale", [1, 100])
def test_gradients_are_finite(name: str, empty: bool, scale: float) -> None:
    truth = torch.zeros(2, 1, 64, 64) if empty else torch.cat([disc(), torch.zeros(1, 1, 64, 64)])
    random = torch.Generator().manual_seed(0)
    logits = (scale * (2 * torch.randint(0, 2, truth.shape, generator=random) - 1.0)).requires_grad_()
    loss = build_loss(name)(logits, truth)
    loss.backward()
    assert loss.isfinite() and loss.ndim == 0
    assert logits.grad is not None and logits.grad.isfinite().all()
    if empty and name in ("dice", "tversky"):
        assert loss == 0 and not logits.grad.any()  # as their docstrings say
    elif name == "lovasz":  # of an image without polyp, only the worst pixel
        assert (logits.grad[-1].sum(), loss > 0) == (pytest.approx(1 / 2), True)
    elif scale == 1:
        # every false alarm is pushed down, also in the image without polyp
        assert (logits.grad[truth == 0] > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_logits_are_summed_in_float32(name: str) -> None:
    truth = disc()
    logits = (torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)) + 4 * truth - 2).bfloat16()
    loss = build_loss(name)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, truth)
    assert value.dtype == torch.float32
    assert value == loss(logits.float(), truth)
    assert value == loss(logits.float(), truth.to(torch.uint8))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "shapes", [((2, 2, 8, 8), (2, 2, 8, 8)), ((2, 1, 8, 8), (2, 8, 8)), ((2, 8, 8), (2, 8, 8))]
)
def test_only_one_channel(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"need logits and target \(B, 1, H, W\)"):
        build_loss(name)(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def lovasz_by_hand(logits: Tensor, truth: Tensor) -> float:
    """Of one image: the extension of 1 - IoU, pixel by pixel in the order of the errors."""
    x, t = logits.double().numpy().ravel(), truth.double().numpy().ravel()
    x, t = x[t != IGNORED], t[t != IGNORED]
    errors = 1 - x * (2 * t - 1)
    total, before, wrong = 0.0, 0.0, np.zeros(len(t), bool)
    for pixel in np.argsort(-errors):
        wrong[pixel] = True
        predicted = np.where(wrong, 1 - t, t)
        jaccard = 1 - (predicted * t).sum() / np.maximum(predicted, t).sum()
        total, before = total + max(0, errors[pixel]) * (jaccard - before), jaccard
    return total


def test_lovasz_by_hand_with_ignored_pixels_and_an_empty_mask() -> None:
    random = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 2, (3, 1, 9, 7), generator=random)
    truth[0, 0, 2:5, 1:4] = IGNORED
    truth[1] = 0
    truth[1, 0, :2] = IGNORED
    truth[2] = IGNORED  # an image in which nothing counts
    logits = 2 * torch.randn(truth.shape, generator=random)
    empty = 1 + logits[1, 0, 2:].max().item()  # a false alarm costs
    by_hand = [lovasz_by_hand(logits[image], truth[image]) for image in (0, 1)]
    assert by_hand[1] == pytest.approx(empty)
    assert build_loss("lovasz")(logits, truth).item() == pytest.approx(sum(by_hand) / 2, rel=1e-5)


def test_weighted_sum() -> None:
    logits, truth = square(LOGITS), square(TRUTH)
    value = build_loss({"dice": 1, "bce": 0.5})(logits, truth).item()
    assert value == pytest.approx(hand_values()["dice"] + 0.5 * hand_values()["bce"], rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({}, "has no terms"),
        ({"dise": 1}, "did you mean dice"),
        ({"dice": 0}, "weight of dice is 0"),
        ({"dice": True}, "weight of dice is True"),
        ({"dice": "1"}, "weight of dice is 1"),
        ({"dice": math.inf}, "weight of dice is inf"),
        (
            "no_such_package.loss",
            "no_such_package.loss cannot be imported: No module named 'no_such_package'",
        ),
        ("math.no_such_loss", "math.no_such_loss cannot be imported"),
        ("math.pi", "math.pi is no function"),
        ("torch.nn.BCEWithLogitsLoss", "is no function"),
        ("math.hypot", "math.hypot does not work"),
        ("torch.add", r"torch.add does not work .* returns a tensor \(2, 1, 64, 64\)"),
        ("torch.equal", "torch.equal does not work .* type bool"),
    ],
)
def test_loss_that_cannot_work_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        build_loss(loss)
    assert "\n" not in str(refusal.value)


def test_loss_by_import_path_sees_ignored_pixels_as_certain_background() -> None:
    name = "torch.nn.functional.binary_cross_entropy_with_logits"
    truth = torch.cat([square(TRUTH), torch.full((1, 1, 2, 1), IGNORED)], -1)
    logits = torch.cat([square(LOGITS), torch.full((1, 1, 2, 1), 7.0)], -1)
    mean = 4 * hand_values()["bce"] / 6  # they cost 0, and count
    assert build_loss(name)(logits, truth).item() == pytest.approx(mean, rel=1e-5)
    total = build_loss({"bce": 1, name: 2})(logits, truth).item()
    assert total == pytest.approx(hand_values()["bce"] + 2 * mean, rel=1e-5)


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"model\.loss=dise is unknown: did you mean dice"):
        build_loss("dise")
