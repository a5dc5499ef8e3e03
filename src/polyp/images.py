"""Sizes and resizing of images: one way for data, model and everything that uses them."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from polyp.errors import InputError


def square(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two.

    Raises:
        InputError: not one or two numbers of at least 32.
    """
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side >= 32 for side in size):
        raise InputError(f"data.image_size={image_size} must be one number or [height, width], each at least 32 pixels")
    return size


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (3, H, W) uint8 at another (height, width): bilinear, averaging where it shrinks."""
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
