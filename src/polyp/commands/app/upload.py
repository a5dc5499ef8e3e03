"""What visitors send, before it is trusted."""

import hashlib
from pathlib import PurePath

from polyp.commands.app.desk import Photo
from polyp.errors import InputError
from polyp.images import TooManyPixels, decode

MOST_PIXELS = 2**24
"""Of an image that is looked at; an endoscope's has two million."""


class NotAnImage(InputError):
    """What was sent is no image that can be read."""


def checked(value: float) -> float:
    """A threshold or an opacity as it was given.

    Raises:
        InputError: it is no number in 0-1.
    """
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{value} must be between 0 and 1")
    return value


def uploaded(content: bytes, name: str) -> Photo:
    """An image that a visitor has sent.

    Raises:
        TooManyPixels: it is larger than `MOST_PIXELS`.
        NotAnImage: whatever else `decode` raises.
    """
    try:
        return Photo(digest(content), name, decode(content, name, MOST_PIXELS))
    except TooManyPixels:
        raise
    except InputError as error:
        raise NotAnImage(str(error)) from error


def stem(name: str) -> str:
    """A file's name without folders and its suffix."""
    return PurePath(name).stem or "image"


def digest(content: bytes) -> str:
    """What tells an uploaded image from all others; whoever knows it has the image."""
    return hashlib.sha256(content).hexdigest()
