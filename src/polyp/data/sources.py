"""The data sets that polyp knows. A new one is a class here and a YAML file in conf/data with the class's fields."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from polyp.data.kvasir import KvasirSeg
from polyp.data.synthetic import Synthetic
from polyp.errors import InputError


class Source(Protocol):
    """Where the images and masks of a data set come from. The fields of the class are the keys of its YAML file."""

    default_split: ClassVar[str | None]
    """The split that `polyp data` reports on if none is named."""
    licence: ClassVar[str]
    """Terms of use and whom to cite, for model cards."""

    @property
    def images(self) -> str:
        """The name of the folder of images."""

    @property
    def masks(self) -> str:
        """The name of the folder of masks."""

    def check(self) -> None:
        """Check the arguments, before anything is read, unpacked, drawn or downloaded; raises InputError."""

    def available(self) -> bool:
        """Whether `prepare` needs no download."""

    def prepare(self) -> Path:
        """Make the data set unless it is there; returns the folder that holds the two, or raises InputError."""


@dataclass(frozen=True)
class Folder:
    """A folder of the user's that holds images and masks of equal stems, see `Source`; it is only read."""

    root: str | None = None
    images: str = "images"
    masks: str = "masks"

    default_split: ClassVar[str | None] = None
    licence: ClassVar[str] = "Not known here: ask whoever gave the data."

    def check(self) -> None:
        """Check that the root and both subfolders are there, as `prepare`."""
        self.prepare()

    def available(self) -> bool:
        """Nothing is ever downloaded."""
        return True

    def prepare(self) -> Path:
        """The root as an absolute path.

        Raises:
            InputError: the root is not given, or it or a subfolder is not there.
        """
        if not self.root:
            raise InputError(f"data.root=FOLDER is needed: the folder that holds {self.images}/ and {self.masks}/")
        root = Path(self.root).expanduser().absolute()
        if not root.is_dir():
            raise InputError(f"data.root={self.root} is not a folder")
        for key, name in (("images", self.images), ("masks", self.masks)):
            if not (root / name).is_dir():
                folders = ", ".join(sorted(f"'{path.name}'" for path in root.iterdir() if path.is_dir())) or "none"
                way_out = f"its folders are {folders}: say which with data.images= and data.masks="
                raise InputError(f"data.root={self.root} has no folder '{name}' (data.{key}); {way_out}")
        if (root / self.images).samefile(root / self.masks):
            raise InputError(f"data.images and data.masks are the same folder: {root / self.images}")
        return root


DATASETS: dict[str, type[Source]] = {"kvasir_seg": KvasirSeg, "folder": Folder, "synthetic": Synthetic}
"""By the value of `data.dataset`."""

NAMED = [name for name in DATASETS if name != "folder"]
"""Those that a command takes by name; anything else that it is given is a folder."""


def find_source(data: str, root: str | None, archive: str | None, images: str, masks: str) -> Source:
    """The data set that a command is given.

    Args:
        data: one of NAMED, or a folder.
        root, archive: as data.root and data.archive, for a named one that has them.
        images, masks: the names of the subfolders, for a folder.

    Raises:
        InputError: an option does not fit the data set.
    """
    options: dict[str, Any] = {key: value for key, value in (("root", root), ("archive", archive)) if value}
    if data not in NAMED:
        if options:
            raise InputError(f"--root and --archive are for {' and '.join(NAMED)}, and {data} is a folder")
        return Folder(data, images, masks)
    source = DATASETS[data]
    for key in options.keys() - {field.name for field in fields(source)}:  # type: ignore[arg-type]
        raise InputError(f"--{key} is not for {data}, which has none")
    return source(**options)
