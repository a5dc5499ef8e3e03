"""Augmentation: the transforms of conf/augment, applied to image and mask together by albumentations."""

import os
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyp.data.cache import resize_image, resize_mask
from polyp.errors import InputError, describe_error, nearest

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise it looks for updates at each import
import albumentations as A

TRANSFORMS: dict[str, type] = {
    f"albumentations.{name}": value
    for name, value in vars(A).items()
    if isinstance(value, type) and issubclass(value, A.BasicTransform | A.BaseCompose)
}
TRIAL = 96, 128  # height and width in pixels of the image that each transform is tried on


class Augmentation:
    """A list of albumentations transforms, each given as in a configuration: `_target_` and its arguments.

    Only transforms of albumentations are made, nested ones too: a configuration from a stranger runs no other
    code.

    Raises:
        InputError: a transform does not exist or has no such argument (albumentations itself would only
            warn), or it changes the size or the type of an image, which is the network's business.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]]) -> None:
        self.compose = A.Compose([_build(transform) for transform in transforms])
        for transform in self.compose.transforms:
            _try(transform)

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Augment an image (H, W, 3) uint8 and its mask (H, W) uint8 in {0, 1}, by the seed alone."""
        # Not set_random_seed: it gives every transform the same seed, so that two flips would always come
        # together.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = self.compose(image=image, mask=mask)
        size = mask.shape
        if result["mask"].shape != size:  # a quarter turn of an image that is not square
            return resize_image(result["image"], size), resize_mask(result["mask"], size)
        return result["image"], result["mask"]


def _build(transform: Any) -> Any:
    if not isinstance(transform, Mapping) or "_target_" not in transform:
        raise InputError(f"augment.transforms: {str(transform)[:80]} is not a transform: it needs a _target_")
    target = str(transform["_target_"])
    if target not in TRANSFORMS:
        reason = "is no transform of albumentations"
        raise InputError(f"augment.transforms: {target[:80]} {reason}: {nearest(target, TRANSFORMS)}")
    settings = {key: value for key, value in transform.items() if key != "_target_"}
    if "transforms" in settings:  # a choice or a sequence of others
        settings["transforms"] = [_build(inner) for inner in settings["transforms"]]
    try:
        if any(isinstance(value, Mapping) for value in settings.values()):
            raise TypeError("an argument must be a number, a text or a list")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return TRANSFORMS[target](**settings)
    except Exception as error:  # whatever the transform's constructor raises
        raise InputError(f"augment.transforms: {target} cannot be made: {describe_error(error)}") from error


def _try(transform: Any) -> None:
    name = type(transform).__name__
    image, mask = np.full((*TRIAL, 3), 128, np.uint8), np.ones(TRIAL, np.uint8)
    probability, transform.p = transform.p, 1.0
    try:
        result = transform(image=image, mask=mask)
    except Exception as error:  # whatever the transform raises
        raise InputError(f"augment.transforms: {name} does not work: {describe_error(error)}") from error
    finally:
        transform.p = probability
    shapes = {result["image"].shape[:2], result["mask"].shape}
    types = {result["image"].dtype, result["mask"].dtype}
    if not shapes <= {TRIAL, TRIAL[::-1]} or types != {np.dtype(np.uint8)}:
        reason = "changes an image's size or type"
        raise InputError(f"augment.transforms: {name} {reason}: leave that to data.image_size")
