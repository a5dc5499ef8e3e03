"""A data set of drawn pictures, for first runs and tests: there without any download."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from platformdirs import user_cache_path

from polyp.data.drawing import draw
from polyp.errors import InputError

VERSION = 1  # a part of the folder's name: raise it when the drawing changes, so that an old set is not taken for new
# The least values that work: fewer images cannot be split, and in smaller ones nothing can be seen.
LEAST = {"count": 10, "size": 32, "drawing_seed": 0}


@dataclass(frozen=True)
class Synthetic:
    """A set of drawn pictures, made when it is first asked for.

    Attributes:
        root: the folder for drawn sets; None is `polyp/synthetic` in the user's cache folder.
        count: how many pictures, at least 10.
        size: heights are between `size` and 1.3 `size` pixels, widths between `size` and 1.5 `size`; at least 32.
        drawing_seed: of the set; another seed gives other pictures.
    """

    root: str | None = None
    count: int = 300
    size: int = 160
    drawing_seed: int = 0

    images: ClassVar[str] = "images"
    masks: ClassVar[str] = "masks"
    default_split: ClassVar[str | None] = None
    licence: ClassVar[str] = "Drawn by polyp itself: no patient's data."

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: one is too small.
        """
        for key, least in LEAST.items():
            value = getattr(self, key)
            if not isinstance(value, int) or value < least:
                raise InputError(f"data.{key}={value}: give a whole number, at least {least}")

    def check(self) -> None:
        """The values were checked already."""

    def available(self) -> bool:
        """Nothing is ever downloaded."""
        return True

    def prepare(self) -> Path:
        """Draw the set if it is not there yet.

        Returns:
            The folder with images/synthetic_0000.jpg, ... (RGB) and masks/synthetic_0000.png, ... (0 and 255).

        Raises:
            InputError: the folder cannot be written, or files were taken out of it.
        """
        root = Path(self.root).expanduser() if self.root else user_cache_path("polyp") / "synthetic"
        folder = root / f"{self.count}x{self.size}_seed{self.drawing_seed}_v{VERSION}"
        try:
            if not folder.exists():
                root.mkdir(parents=True, exist_ok=True)
                # Drawn aside and then renamed: what has the right name is whole, whoever looks at it and whenever.
                with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=root) as aside:
                    self._fill(Path(aside) / "set")
                    try:
                        os.rename(Path(aside) / "set", folder)
                    except OSError:
                        if not folder.exists():  # else another process was faster, and its set, the same, stays
                            raise
            found = [len(list((folder / part).iterdir())) for part in ("images", "masks")]
        except OSError as error:
            raise InputError(f"cannot use {root} ({error}); data.root=FOLDER puts the set elsewhere") from error
        if found != [self.count, self.count]:
            raise InputError(f"{folder} has lost files; delete it to have it drawn again, or give data.root=FOLDER")
        return folder

    def _fill(self, folder: Path) -> None:
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()

        def save(number: int) -> None:
            rng = np.random.default_rng([self.drawing_seed, number])
            height, width = (int(self.size * rng.uniform(1, most)) for most in (1.3, 1.5))
            image, mask = draw(int(rng.integers(2**32)), height, width)
            # Not cv2.imwrite, which says nothing when the disk is full.
            for name, pixels, options in (
                (f"images/synthetic_{number:04}.jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]),
                (f"masks/synthetic_{number:04}.png", mask * 255, []),
            ):
                (folder / name).write_bytes(cv2.imencode(Path(name).suffix, pixels, options)[1].tobytes())

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(save, range(self.count)))  # list: so that an error in a thread is raised here
