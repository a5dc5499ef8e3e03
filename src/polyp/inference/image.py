"""The images that people have, as the networks want them: whatever the format, RGB of 8 bits, upright."""

from io import BytesIO
from pathlib import Path
from warnings import filterwarnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from polyp.errors import InputError, describe_error, printable

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
"""What is opened: Pillow's other formats are rare, and some run programs. (MPO opens as JPEG.)"""

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm"}
"""Of the files that are taken for images."""

MOST_PIXELS = 2**26
"""More than an endoscope has by far; an image of so many takes 1 GB to read and 3 GB to predict."""

MOST_BYTES = 2**30
"""Of a file: more than so many pixels take in any format."""


class TooManyPixels(InputError):
    """An image is larger than is accepted."""


filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `decode` refuses such an image anyway
filterwarnings("ignore", module=r"PIL\.")  # of damaged metadata, which nobody asked for


def read(path: Path, most: int = MOST_PIXELS) -> np.ndarray:
    """The image in a file, as `decode` gives it.

    Raises:
        InputError: it cannot be read, or as `decode` does.
    """
    name = printable(path)
    try:
        if not path.is_file():  # a pipe or a device might never end
            raise InputError(f"{name}: {'not a file' if path.exists() else 'not there'}")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{name}: has more than {MOST_BYTES / 2**30:.0f} GB")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({describe_error(error)})") from error
    return decode(content, name, most)


def decode(content: bytes, name: str, most: int = MOST_PIXELS) -> np.ndarray:
    """An image as a person sees it.

    An orientation tag is followed, grey becomes RGB, 16 bits become 8, CMYK becomes RGB, and what is transparent black.

    Args:
        content: of the file.
        name: of the file, for the message.
        most: pixels that are accepted; the size is known before they are decoded.

    Returns:
        (H, W, 3) uint8 RGB; of a JPEG, PNG or BMP of 8 bits the same pixels that training reads.

    Raises:
        TooManyPixels: it is too large.
        InputError: it is no image, damaged, cut off, an animation, or of floating-point numbers.
    """
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > most:
                raise TooManyPixels(
                    f"{name}: has {width}x{height} pixels, more than {most / 1e6:.0f} million: make it smaller"
                )
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # MPO is a photograph with previews of itself
                raise InputError(f"{name}: holds {frames} images: save each as a file of its own, or all as a video")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image, name)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"{name}: has more than {most / 1e6:.0f} million pixels: make it smaller") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not an image that can be read ({', '.join(FORMATS)} can)") from error
    except Exception as error:  # there is no end to what Pillow raises on damaged files
        raise InputError(f"{name}: a damaged image ({describe_error(error)})") from error


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode == "F":
        raise InputError(f"{name}: has floating-point pixels: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, grey; those of colour images Pillow has made 8 bits
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{name}: has pixels of 32 bits: save it with 8 or 16 bits")
        return np.repeat((values // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "black"), seen)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
