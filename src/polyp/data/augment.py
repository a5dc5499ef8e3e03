"""Augmentation: the list in conf/augment, applied to image and mask together by albumentations, imported here only."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hydra.utils import instantiate

from polyp.data.cache import resize_image, resize_mask
from polyp.errors import InputError

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network at each import
import albumentations as A


class Augmentation:
    """A list of albumentations transforms, each given as in a configuration: `_target_` and its arguments.

    Raises:
        InputError: a transform does not exist or has no such argument (albumentations itself would only warn).
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]]) -> None:
        built = []
        for transform in transforms:
            target = str(transform.get("_target_"))
            if not target.startswith("albumentations."):
                raise InputError(f"augment.transforms: {target} is not a transform of albumentations")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    built.append(instantiate(transform))
            except Exception as error:  # whatever the transform's constructor raises
                reason = " ".join(str(error.__cause__ or error).split())[:200]
                raise InputError(f"augment.transforms: {target} cannot be made: {reason}") from error
        self.compose = A.Compose(built)

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Augment an image (H, W, 3) uint8 and its mask (H, W) uint8 in {0, 1}; the seed alone decides how."""
        self.compose.set_random_seed(seed)
        result = self.compose(image=image, mask=mask)
        size = mask.shape
        if result["mask"].shape != size:  # a quarter turn of an image that is not square
            return resize_image(result["image"], size), resize_mask(result["mask"], size)
        return result["image"], result["mask"]
