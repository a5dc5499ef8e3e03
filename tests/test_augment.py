"""Augmentation: image and mask move together, masks stay masks, and a configuration runs nothing but
transforms.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from polyp.data.augment import Augmentation, MultiScale
from polyp.errors import InputError

CONF = Path(__file__).parents[1] / "conf" / "augment"
FLIP = {"_target_": "albumentations.HorizontalFlip", "p": 1.0}


def shipped(name: str) -> list[dict[str, Any]]:
    plain: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    return plain["transforms"]


def sample(height: int = 96, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """A bright polyp, beside the middle and of a shape like none of its mirror images, on a dark wall."""
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 3, height // 3), (width // 5, height // 8), 25, 0, 360, 1, -1)
    cv2.circle(mask, (width // 3, height // 2), height // 8, 1, -1)
    return np.where(mask[..., None] > 0, np.uint8((225, 200, 190)), np.uint8((60, 30, 25))), mask


def overlap(image: np.ndarray, mask: np.ndarray) -> float:
    """IoU of the mask with what is bright in the image."""
    bright = image[..., 1] > (image[..., 1].min() + np.ptp(image[..., 1]) / 2)
    return float((bright & (mask == 1)).sum() / (bright | (mask == 1)).sum())


def refusal(transforms: Any, *parts: str) -> str:
    with pytest.raises(InputError) as caught:
        Augmentation(transforms)(*sample(), 0)
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in ("augment.transforms", *parts)), text
    return text


# What the shipped lists do


@pytest.mark.parametrize("name", ["light", "strong"])
@pytest.mark.parametrize("size", [(96, 96), (96, 120)])
def test_image_and_mask_stay_together(name: str, size: tuple[int, int]) -> None:
    if size[0] != size[1]:  # a quarter turn of an oblong image cannot keep its size
        transforms = [one for one in shipped(name) if "Rotate90" not in one["_target_"]]
    else:
        transforms = shipped(name)
    augment = Augmentation(transforms)
    image, mask = sample(*size)
    overlaps, places = [], set()
    for seed in range(60):
        new_image, new_mask = augment(image, mask, seed)
        assert new_image.shape == (*size, 3) and new_image.dtype == np.uint8
        assert new_mask.shape == size and new_mask.dtype == np.uint8
        assert set(np.unique(new_mask)) <= {0, 1}
        if new_mask.mean() > 0.05:  # a polyp that was moved out of the picture has no outline to compare
            overlaps.append(overlap(new_image, new_mask))
            places.add(tuple(int(n) for n in np.argwhere(new_mask).mean(0) / 4))
    assert len(overlaps) > 50
    assert min(overlaps) > 0.9
    assert len(places) >= 4  # it does move them
    assert overlap(image[:, ::-1], mask) < 0.7  # and the measure would see one of the two moved alone


def test_light_moves_pixels_and_changes_none() -> None:
    augment = Augmentation(shipped("light"))
    image, mask = sample(96, 96)
    placements = set()
    for seed in range(60):
        new_image, new_mask = augment(image, mask, seed)
        assert np.array_equal(new_image[..., 0] == 225, new_mask == 1)
        assert np.array_equal(np.sort(new_image, axis=None), np.sort(image, axis=None))
        placements.add(new_mask.tobytes())
    assert len(placements) == 8  # every way to lay a square down


def test_one_transform_tells_nothing_of_the_next() -> None:
    """Seeded one by one with the same number, both flips would always come together."""
    flips = [{"_target_": f"albumentations.{way}Flip", "p": 0.5} for way in ("Horizontal", "Vertical")]
    augment = Augmentation(flips)
    image, mask = sample()
    results = Counter(augment(image, mask, seed)[1].tobytes() for seed in range(200))
    assert sorted(results.values())[0] > 25 and len(results) == 4


def test_strong_changes_light_and_scale() -> None:
    augment = Augmentation(shipped("strong"))
    image, mask = sample(96, 96)
    results = [augment(image, mask, seed) for seed in range(60)]
    shares = [new.mean() / mask.mean() for _, new in results]
    means = [int(new_image[..., 0].max()) for new_image, _ in results]
    assert min(shares) < 0.8 and max(shares) > 1.2
    assert min(means) < 215 and max(means) > 235


def test_none_is_nothing() -> None:
    assert shipped("none") == []
    image, mask = sample()
    new_image, new_mask = Augmentation([])(image, mask, 3)
    assert np.array_equal(new_image, image) and np.array_equal(new_mask, mask)


@pytest.mark.parametrize("name", ["light", "strong"])
def test_the_seed_decides_alone(name: str) -> None:
    image, mask = sample(96, 96)
    first, second = Augmentation(shipped(name)), Augmentation(shipped(name))
    alone = [first(image, mask, seed)[0].tobytes() for seed in range(20)]  # and its own past does not
    np.random.seed(5)
    repeated = [second(image, mask, seed)[0].tobytes() for seed in reversed(range(20))]
    assert alone == repeated[::-1]
    assert len(set(alone)) > 4


def test_the_original_is_left_alone() -> None:
    image, mask = sample()
    copies = image.copy(), mask.copy()
    for seed in range(5):
        Augmentation([FLIP])(image, mask, seed)
    assert np.array_equal(image, copies[0]) and np.array_equal(mask, copies[1])


def test_transforms_of_transforms() -> None:
    either = {"_target_": "albumentations.OneOf", "p": 1.0, "transforms": [FLIP | {"p": 0.5}]}
    image, mask = sample()
    assert np.array_equal(Augmentation([either])(image, mask, 0)[1], mask[:, ::-1])


# What is refused


@pytest.mark.filterwarnings("default")  # as for users: albumentations only warns of an unknown argument
@pytest.mark.parametrize(
    ("transform", "parts"),
    [
        ({"_target_": "albumentations.HorizontalFlp"}, ["HorizontalFlp"]),
        ({"_target_": "albumentations.HorizontalFlip", "probability": 1}, ["HorizontalFlip", "probability"]),
        ({"_target_": "albumentations.HorizontalFlip", "p": 2}, ["HorizontalFlip", "p "]),
        ({"_target_": "albumentations.Affine", "scale": "large"}, ["Affine", "scale"]),
        ({"_target_": "albumentations.__version__"}, ["albumentations.__version__"]),
        ({"_target_": "torchvision.transforms.RandomCrop", "size": 8}, ["torchvision.transforms.RandomCrop"]),
        ({"p": 0.5}, ["_target_"]),
        ("HorizontalFlip", ["HorizontalFlip", "_target_"]),
    ],
)
def test_what_is_no_transform_is_refused(transform: Any, parts: Sequence[str]) -> None:
    text = refusal([transform], *parts)
    assert len(text) < 400


def test_a_misspelled_transform_is_answered_with_the_nearest() -> None:
    refusal([{"_target_": "albumentations.HorizontalFlp"}], "did you mean", "HorizontalFlip")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda harm: harm,
        lambda harm: harm | {"_target_": f"albumentations.{harm['_target_']}"},
        lambda harm: {"_target_": "albumentations.OneOf", "transforms": [FLIP, harm]},
        lambda harm: {"_target_": "albumentations.Lambda", "image": harm},
    ],
    ids=["bare", "through a module of theirs", "inside a transform", "as an argument"],
)
def test_a_configuration_runs_no_other_code(tmp_path: Path, wrap: Any) -> None:
    refusal([wrap({"_target_": "os.mkdir", "path": str(tmp_path / "was_here")})])
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize(
    "transform",
    [
        {"_target_": "albumentations.Resize", "height": 64, "width": 64},
        {"_target_": "albumentations.RandomCrop", "height": 64, "width": 64},
        {"_target_": "albumentations.Normalize"},
        {"_target_": "albumentations.ToFloat"},
    ],
)
def test_what_changes_size_or_type_is_refused(transform: dict[str, Any]) -> None:
    """The network resizes and normalises by itself; twice would train on other images than it predicts."""
    refusal([transform], transform["_target_"].rpartition(".")[2])


# Sizes of batches


def test_multiscale_draws_its_sizes_by_seed_epoch_and_batch() -> None:
    scales = MultiScale((352, 288), [0.75, 1, 1.25], seed=1)
    mask = torch.randint(0, 3, (2, 352, 288), dtype=torch.uint8)
    mask[mask == 2] = 255
    image = (mask == 1)[:, None].expand(-1, 3, -1, -1).to(torch.uint8) * 200
    drawn = {}
    for epoch in range(3):
        for number in range(8):
            resized, truth = scales.resize(image, mask, epoch, number)
            repeated, _ = MultiScale((352, 288), [0.75, 1, 1.25], seed=1).resize(image, mask, epoch, number)
            assert torch.equal(resized, repeated) and resized.shape[-2:] == truth.shape[-2:]
            assert truth.dtype == torch.uint8 and set(truth.unique().tolist()) == {0, 1, 255}
            pixels = resized if resized.is_floating_point() else resized / 255
            assert pixels.min() >= 0 and pixels.max() <= 200 / 255 + 1e-6
            drawn[epoch, number] = tuple(truth.shape[-2:])
    assert set(drawn.values()) == {(256, 224), (352, 288), (448, 352)}
    first, second = ([drawn[epoch, number] for number in range(8)] for epoch in (0, 1))
    assert first != second


def test_multiscale_resizes_image_and_mask_alike() -> None:
    image, mask = sample(96, 128)
    scales = MultiScale((96, 128), [2])
    larger, truth = scales.resize(
        torch.from_numpy(image).permute(2, 0, 1)[None], torch.from_numpy(mask)[None], 0, 0
    )
    assert truth.shape == (1, 192, 256)
    assert overlap(larger[0].permute(1, 2, 0).numpy(), truth[0].numpy()) > 0.95


@pytest.mark.parametrize(
    ("scales", "size"), [([], 64), ([0.1, 1], 64), ([-1], 64), ([100], 64), ([0.75, 1, 1.25], 64)]
)
def test_multiscale_refuses_sizes_that_cannot_be(scales: list[float], size: int) -> None:
    with pytest.raises(InputError, match=r"augment\.scales=.* at data\.image_size=64x64"):
        MultiScale((size, size), scales)
