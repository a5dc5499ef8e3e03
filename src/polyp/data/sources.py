"""The data sets. A new one is a subclass of `Source` in DATASETS and a file of its fields in conf/data."""

import os
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from filelock import FileLock
from platformdirs import user_cache_path

from polyp.data import kvasir
from polyp.data.drawing import draw_dataset
from polyp.errors import InputError, describe_error

LEAST = {
    "count": 10,
    "size": 32,
    "drawing_seed": 0,
}  # fewer images cannot be split, smaller ones show nothing


@dataclass(frozen=True)
class Source:
    """Where the images and masks of a data set come from.

    Attributes:
        root: the folder that holds the data set, or where it is put.
        images, masks: the names of the two folders below the one that `prepare` returns.
        default_split: the split that `polyp data` reports on if none is given.
        licence: terms of use and whom to cite, for model cards.
    """

    root: str | None = None

    images = "images"
    masks = "masks"
    default_split: ClassVar[str | None] = None
    licence = "Not known here: ask whoever gave the data."

    def check(self) -> None:
        """Check the arguments before anything is drawn, unpacked or downloaded.

        Raises:
            InputError: a file or folder is not there, or is something else.
        """

    def available(self) -> bool:
        """Whether `prepare` needs no download."""
        return True

    def prepare(self) -> Path:
        """Make the data set if it is not there yet; one that is there is only read.

        Returns:
            The folder that holds images and masks of equal stems.

        Raises:
            InputError: as `check`, or the data set cannot be made or is incomplete.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Folder(Source):
    """A folder of the user's, `root`, with a folder of images and one of masks."""

    images: str = "images"
    masks: str = "masks"

    def check(self) -> None:
        """Check that the root and both folders are there."""
        self.prepare()

    def prepare(self) -> Path:
        """The root as an absolute path."""
        if not self.root:
            raise InputError(f"data.root=FOLDER is needed: it holds {self.images}/ and {self.masks}/")
        root = Path(self.root).expanduser().absolute()
        if not root.is_dir():
            raise InputError(f"data.root={self.root} is not a folder")
        for key, name in (("images", self.images), ("masks", self.masks)):
            if not (root / name).is_dir():
                folders = ", ".join(sorted(f"'{path.name}'" for path in root.iterdir() if path.is_dir()))
                way_out = f"its folders are {folders or 'none'}: say which with data.images= and data.masks="
                raise InputError(f"data.root={self.root} has no folder '{name}' (data.{key}); {way_out}")
        if (root / self.images).samefile(root / self.masks):
            raise InputError(f"data.images and data.masks are the same folder: {root / self.images}")
        return root


@dataclass(frozen=True)
class KvasirSeg(Source):
    """Kvasir-SEG: 1000 images, in `root` already, unpacked from the owners' archive, or downloaded.

    Attributes:
        root: holds `images/` and `masks/`, or is empty or absent; by default a folder in the user's cache
            folder.
        archive: kvasir-seg.zip, or HyperKvasir's zip file of the segmented images; by default it is
            downloaded.
    """

    archive: str | None = None

    default_split: ClassVar[str | None] = "official"
    licence = (
        "Kvasir-SEG may be used for research and education; cite Jha et al., Kvasir-SEG: A Segmented Polyp "
        "Dataset, MMM 2020."
    )

    @property
    def _home(self) -> Path:
        return Path(self.root).expanduser() if self.root else user_cache_path("polyp") / "kvasir-seg"

    def _find(self) -> Path | None:
        folders = (self._home, self._home / "Kvasir-SEG", self._home / "segmented-images")
        return next((f for f in folders if (f / "images").is_dir() and (f / "masks").is_dir()), None)

    def available(self) -> bool:
        """Whether it was unpacked or downloaded already."""
        return self._find() is not None

    def check(self) -> None:
        """Check that there is nothing else in the folder, or that the archive can be read."""
        if self.available():
            return
        setting, way_out = f"data.root={self.root}", "give a folder"
        names = []
        try:
            if self.archive:
                setting = f"data.archive={self.archive}"
                way_out = "give the path of the zip file; a folder goes to data.root="
                Path(self.archive).expanduser().open("rb").close()
            elif self.root and self._home.exists():
                names = [path.name for path in self._home.iterdir() if not path.name.startswith(".")]
        except OSError as error:
            raise InputError(f"{setting} cannot be read ({describe_error(error)}): {way_out}") from error
        if names:
            way_out = "give the folder that has them, an empty one to download into, or data.archive=PATH.zip"
            raise InputError(f"{setting} has no images/ and masks/: {way_out}")

    def prepare(self) -> Path:
        """Find, unpack or download the data set, and compare it with the owners' files."""
        try:
            self.check()
            folder = self._find() or self._make()
            kvasir.verify(folder)
        except OSError as error:
            reason = f"cannot use the folder {self._home} ({describe_error(error)})"
            way_out = "a folder that can be written, with 100 MiB free, is needed as data.root="
            raise InputError(f"{reason}: {way_out}, or a zip file as data.archive=") from error
        return folder

    def _make(self) -> Path:
        folder = self._home / "Kvasir-SEG"
        self._home.mkdir(parents=True, exist_ok=True)
        with FileLock(self._home / ".lock"):
            if existing := self._find():  # made by another process meanwhile
                return existing
            if folder.exists():
                way_out = "delete it, or give another folder as data.root="
                raise InputError(f"{folder} lacks images/ or masks/: {way_out}")
            if not self.archive:
                kvasir.download(folder)
                return folder
            try:
                kvasir.unpack(Path(self.archive).expanduser(), folder)
            except kvasir.ArchiveError as error:
                way_out = f"delete it and download {kvasir.OWNERS} again"
                raise InputError(f"data.archive={self.archive} {error}: {way_out}") from error
        return folder


@dataclass(frozen=True)
class Synthetic(Source):
    """Drawn pictures, for first runs and tests.

    Attributes:
        root: the folder for drawn data sets; by default `polyp/synthetic` in the user's cache folder.
        count: the number of pictures, at least 10.
        size: heights are between `size` and 1.3 `size` pixels, widths between `size` and 1.5 `size`; at least
            32.
        drawing_seed: another one gives other pictures.
    """

    count: int = 300
    size: int = 160
    drawing_seed: int = 0

    licence = "Drawn by polyp itself: no patient's data."
    version = 1
    """A part of the folder's name: raise it when the drawing changes, so that old pictures are not used."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: one is too small.
        """
        for key, least in LEAST.items():
            value = getattr(self, key)
            if not isinstance(value, int) or value < least:
                raise InputError(f"data.{key}={value}: give a whole number, at least {least}")

    def prepare(self) -> Path:
        """Draw images/synthetic_0000.jpg, ... (RGB) and masks/synthetic_0000.png, ... (0 and 255)."""
        root = Path(self.root).expanduser() if self.root else user_cache_path("polyp") / "synthetic"
        folder = root / f"{self.count}x{self.size}_seed{self.drawing_seed}_v{self.version}"
        try:
            if not folder.exists():
                root.mkdir(parents=True, exist_ok=True)
                # Drawn in another folder and then renamed: what has the name is complete.
                with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=root) as temporary:
                    draw_dataset(Path(temporary, "set"), self.count, self.size, self.drawing_seed)
                    try:
                        os.rename(Path(temporary, "set"), folder)
                    except OSError:
                        if not folder.exists():  # else another process was faster, with equal pictures
                            raise
            counts = [len(list((folder / name).iterdir())) for name in (self.images, self.masks)]
        except OSError as error:
            way_out = "data.root=FOLDER puts the set elsewhere"
            raise InputError(f"cannot use {root} ({error}); {way_out}") from error
        if counts != [self.count, self.count]:
            way_out = "delete it to have it drawn again, or give data.root=FOLDER"
            raise InputError(f"{folder} has lost files; {way_out}")
        return folder


DATASETS: dict[str, type[Source]] = {"kvasir_seg": KvasirSeg, "folder": Folder, "synthetic": Synthetic}
"""By the value of `data.dataset`."""

NAMED = [name for name, source in DATASETS.items() if source is not Folder]
"""What a command takes by name; any other text is a folder."""


def find_source(data: str, root: str | None, archive: str | None, images: str, masks: str) -> Source:
    """The data set that a command is given.

    Args:
        data: one of NAMED, or a folder.
        root, archive: as data.root and data.archive, of a named one.
        images, masks: the names of the two folders in a folder.

    Raises:
        InputError: an option does not fit the data set.
    """
    options = {key: value for key, value in (("root", root), ("archive", archive)) if value}
    if data not in NAMED:
        if options:
            raise InputError(f"--root and --archive are for {' and '.join(NAMED)}, and {data} is a folder")
        if not Path(data).expanduser().is_dir():
            raise InputError(f"{data} is not a folder; give a folder or one of {', '.join(NAMED)}")
        return Folder(data, images, masks)
    for key in options.keys() - {field.name for field in fields(DATASETS[data])}:
        raise InputError(f"--{key} is not for {data}, which has none")
    return DATASETS[data](**options)
