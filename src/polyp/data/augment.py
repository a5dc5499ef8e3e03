"""Augmentation of images and masks by albumentations, and the sizes of training batches: see conf/augment."""

import os
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from polyp.data.cache import resize_image, resize_mask
from polyp.errors import InputError, describe_error, nearest
from polyp.images import LARGEST, SMALLEST

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
        # Not set_random_seed, which gives every transform the same seed: two flips would come together.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = self.compose(image=image, mask=mask)
        size = mask.shape
        if result["mask"].shape != size:  # a quarter turn of an image that is not square
            return resize_image(result["image"], size), resize_mask(result["mask"], size)
        return result["image"], result["mask"]


class MultiScale:
    """The sizes of training batches: each batch has one of several, drawn by seed, epoch and batch alone.

    PraNet (Fan et al., MICCAI 2020) trains with each batch at each of 0.75, 1 and 1.25 of the image size, an
    optimiser step each. Here a batch is taken once, at one of the sizes: an epoch has the steps that it has
    without scales and takes 4 % longer, not three times as long, so that runs of as many epochs compare.

    Args:
        image_size: height and width in pixels that the network works at otherwise.
        scales: of the image size; sides are rounded to multiples of 32, those at scale 1 stay as they are.
        seed: of the draws.

    Raises:
        InputError: a size is not possible, or several scales give one size only.
    """

    MULTIPLE = 32

    def __init__(self, image_size: tuple[int, int], scales: Sequence[float] = (1,), seed: int = 0) -> None:
        self.image_size, self.seed = image_size, seed
        self.sizes = []
        for scale in scales:
            height, width = (self.MULTIPLE * round(side * scale / self.MULTIPLE) for side in image_size)
            self.sizes.append(image_size if scale == 1 else (height, width))
        setting = f"augment.scales={list(scales)} at data.image_size={image_size[0]}x{image_size[1]}"
        if not all(SMALLEST <= side <= LARGEST for size in self.sizes for side in size) or not self.sizes:
            raise InputError(f"{setting} must be a list that gives sides of {SMALLEST} to {LARGEST} pixels")
        if len(scales) > 1 and len(set(self.sizes)) == 1:
            raise InputError(
                f"{setting} gives the same size, in multiples of {self.MULTIPLE}, for all scales"
            )

    def resize(self, image: Tensor, mask: Tensor, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        """Resize a batch to the size that is drawn for it.

        Args:
            image: (B, 3, H, W) uint8 in 0-255, on any device.
            mask: (B, H, W) uint8, whose values stay as they are.
            epoch, number: of the batch in its epoch; the processes of a run number their batches together.

        Returns:
            The images, float32 in 0-1 if they are resized, and the masks.
        """
        size = self.sizes[np.random.default_rng([self.seed, epoch, number]).integers(len(self.sizes))]
        if size == self.image_size:
            return image, mask
        resized = F.interpolate(image.float() / 255, size=size, mode="bilinear", antialias=True)
        return resized, F.interpolate(mask[:, None], size=size, mode="nearest-exact")[:, 0]


def _build(transform: Any) -> Any:
    """Make a transform from its `_target_` and arguments, which may hold other transforms."""
    if not isinstance(transform, Mapping) or "_target_" not in transform:
        raise InputError(f"augment.transforms: {str(transform)[:80]} is not a transform: it needs a _target_")
    arguments = dict(transform)
    target = str(arguments.pop("_target_"))
    if target not in TRANSFORMS:
        reason = "is no transform of albumentations"
        raise InputError(f"augment.transforms: {target[:80]} {reason}: {nearest(target, TRANSFORMS)}")
    if "transforms" in arguments:
        arguments["transforms"] = [_build(inner) for inner in arguments["transforms"]]
    try:
        if any(isinstance(value, Mapping) for value in arguments.values()):
            raise TypeError("an argument must be a number, a text or a list")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return TRANSFORMS[target](**arguments)
    except Exception as error:  # whatever the transform's constructor raises
        raise InputError(f"augment.transforms: {target} cannot be made: {describe_error(error)}") from error


def _try(transform: Any) -> None:
    """Check on a grey image that a transform works and keeps size and type."""
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
        raise InputError(
            f"augment.transforms: {name} changes an image's size or type: leave that to data.image_size"
        )
