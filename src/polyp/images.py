"""Images and masks: read as a viewer shows them, resized, and divided into polyps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from warnings import filterwarnings

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from polyp.errors import InputError, describe_error, printable

if TYPE_CHECKING:  # an exported model does not need torch, which takes seconds to import
    from torch import Tensor

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
"""What is opened: Pillow's other formats are rare, and some run programs. (MPO opens as JPEG.)"""

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm"}
"""File name endings that are taken for images."""

MAX_PIXELS = 2**26
"""More than an endoscope has by far; an image of so many takes 1 GB to read and 3 GB to predict."""

SMALLEST, LARGEST = 32, 4096
"""Sides in pixels that networks work at. Colonoscopes record 1920 x 1080."""

IGNORED = 255
"""The value in a mask of 0 and 1 of pixels that count in no loss and no score."""

SPECK = 1e-4
"""Share of the image below which a connected component is no polyp. Kvasir-SEG's masks have 143 specks of a
pixel or three, which JPEG compression leaves, all below a tenth of this; the next larger component is ten
times as large."""

filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `open_image` refuses such an image anyway
filterwarnings("ignore", module=r"PIL\.")  # damaged metadata do not matter


class TooManyPixels(InputError):
    """An image is larger than is accepted."""


def read_image(path: Path) -> np.ndarray:
    """Read an image file as `decode` does.

    Raises:
        InputError: it is no regular file (a pipe might never end), or as `decode`.
    """
    return _to_rgb(path, printable(path), MAX_PIXELS)


def decode(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image as a viewer shows it.

    An orientation tag is followed, grey and CMYK become RGB, 16 bits become 8, transparent pixels black.

    Args:
        content: of the file.
        name: of the file, for the message.
        max_pixels: that are accepted; the size is known before they are decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        TooManyPixels: it is too large.
        InputError: it is no image, damaged, cut off, an animation, or of floating-point numbers.
    """
    return _to_rgb(BytesIO(content), name, max_pixels)


def _to_rgb(file: Path | BytesIO, name: str, max_pixels: int) -> np.ndarray:
    with open_image(file, name, max_pixels) as image:
        if image.mode.startswith("I"):  # 16 bits, grey; Pillow has reduced colour images of 16 bits to 8
            values = np.asarray(image)
            if values.min() < 0 or values.max() > 65535:
                raise InputError(f"{name}: has pixels of 32 bits: save it with 8 or 16 bits")
            return np.repeat((values // 257).astype(np.uint8)[..., None], 3, axis=2)
        return np.array(fill_transparent(image).convert("RGB"))


@contextmanager
def open_image(
    file: Path | BytesIO, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """The upright image, loaded; whatever Pillow raises becomes an InputError, also inside the context.

    Args:
        file: its path, or its content.
        name: of the file, for the message; by default the path.
        max_pixels: that are accepted.

    Raises:
        InputError: as `decode`.
    """
    name = name or printable(file)
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise InputError(f"{name}: not a file")
    limit = f"more than {max_pixels / 1e6:.0f} million pixels: make it smaller"
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise TooManyPixels(f"{name}: is {image.width}x{image.height}, {limit}")
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # MPO is a photograph with previews of itself
                raise InputError(
                    f"{name}: holds {frames} images: save each as a file of its own, or all as a video"
                )
            if image.mode == "F":
                raise InputError(f"{name}: has floating-point pixels: save it with 8 or 16 bits")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            yield image
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"{name}: has {limit}") from error
    except Exception as error:  # there is no end to what Pillow raises on damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"none of {', '.join(FORMATS)}" if unknown else describe_error(error)
        raise InputError(f"{name}: not a readable image ({reason})") from error


def fill_transparent(image: Image.Image) -> Image.Image:
    """The image on a black background."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)


def square(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two.

    Raises:
        InputError: not one or two whole numbers from 32 to 4096.
    """
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(side, int) and SMALLEST <= side <= LARGEST for side in size):
        raise InputError(
            f"data.image_size={image_size} must be one number or [height, width], "
            f"each {SMALLEST} to {LARGEST} pixels"
        )
    return size


def resize(image: "Tensor", size: tuple[int, int]) -> "Tensor":
    """An image (3, H, W) uint8 at another (height, width): bilinear, averaging where it shrinks.

    On the CPU wherever the image is: torch resizes 8-bit integers there only.
    """
    from torch.nn.functional import interpolate

    return interpolate(image[None].cpu(), size=size, mode="bilinear", antialias=True)[0].to(image.device)


def components(mask: np.ndarray) -> tuple[int, np.ndarray]:
    """The polyps of a mask: its connected components, touching corners included, without specks.

    Args:
        mask: (H, W), polyp where it is not 0.

    Returns:
        How many, and (H, W) int32: 0 for the background and specks, 1 to the count for the polyps.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats((mask != 0).astype(np.uint8), connectivity=8)
    counts = stats[:, cv2.CC_STAT_AREA] >= SPECK * mask.size
    counts[0] = False  # the background
    return int(counts.sum()), (np.cumsum(counts) * counts).astype(np.int32)[labels]
