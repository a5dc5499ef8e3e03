"""A WebM video that is being written."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from polyp.errors import InputError, printable
from polyp.report.pictures import overlay

_stderr = threading.Lock()


class Writer:
    """A video that is being written; it is opened with the first frame, which tells the size.

    Args:
        path: of the file; None writes nothing.
        rate: frames a second.
    """

    def __init__(self, path: Path | None, rate: float) -> None:
        self.path, self.rate = path, rate
        self._file: Any = None

    def write(self, pictures: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> None:
        """Add frames (H, W, 3) uint8 RGB with their masks (H, W) drawn on them.

        Raises:
            InputError: the file cannot be written.
        """
        if self.path is None:
            return
        for picture, mask in zip(pictures, masks, strict=True):
            drawn = overlay(picture, mask)
            height, width = picture.shape[:2]
            if self._file is None:
                size = width + width % 2, height + height % 2
                with _silent():
                    self._file = cv2.VideoWriter(
                        address(self.path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"VP80"), self.rate, size
                    )
                if not self._file.isOpened():
                    raise InputError(f"cannot write {printable(self.path)}: is the folder there, and writable?")
            even = cv2.copyMakeBorder(drawn, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            self._file.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Let go of the file, which is then whole."""
        if self._file is not None:
            self._file.release()


def address(path: Path) -> str:
    """A file's name as OpenCV takes it: a whole path, which is never taken for an address on the network.

    Raises:
        InputError: it is no text in UTF-8, of which OpenCV dies.
    """
    try:
        return os.path.abspath(path).encode("utf-8").decode()
    except UnicodeEncodeError as error:
        raise InputError(f"{printable(path)}: a name that is not UTF-8: rename it, or its folder") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Without what OpenCV writes to the standard error stream past every setting: that WebM has no tag for VP8."""
    with _stderr, open(os.devnull, "w") as nowhere:
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
