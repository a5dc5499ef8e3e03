"""The data sets. A new one is a subclass of `Source` in DATASETS and a file of its fields in conf/data."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock
from platformdirs import user_cache_path

from polyp.data import kvasir
from polyp.data.drawing import draw_dataset
from polyp.data.layouts import Listing, list_pairs
from polyp.data.masks import MaskCoding, Value
from polyp.data.polygons import draw_masks, find_annotations
from polyp.errors import InputError, describe_error, nearest, override_word
from polyp.files import atomic_folder

MINIMA = {"count": 10, "size": 32, "drawing_seed": 0}  # fewer cannot be split, smaller ones show nothing


@dataclass(frozen=True)
class Source:
    """Where the images and masks of a data set come from.

    Attributes:
        root: the folder that holds the data set, or where it is put.
        default_split: the split that `polyp data` reports on if none is given.
        licence: terms of use and whom to cite, for model cards.
    """

    root: str | None = None

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
            The folder that holds images/ and masks/.

        Raises:
            InputError: as `check`, or the data set cannot be made or is incomplete.
        """
        raise NotImplementedError

    def find(self, exclude: Path | None = None) -> Listing:
        """Find the images and masks, after `prepare`, outside the folder `exclude`.

        Raises:
            InputError: as `prepare`, or the images and masks cannot be told apart.
        """
        return list_pairs(self.prepare(), "images", "masks")


@dataclass(frozen=True)
class Folder(Source):
    """Folders of the user's, in any layout that `polyp.data.layouts` knows.

    Attributes:
        root: a folder, a list of folders, or a mapping from names to folders or to these attributes of one.
        images, masks, image_name, mask_name, missing_mask: see `polyp.data.layouts.list_pairs`; `masks` may
            also name polygons, see `polyp.data.polygons`, whose `polyp_labels` are polyps.
        polyp_values, ignore_value: see `polyp.data.masks.MaskCoding`.
    """

    root: Any = None
    images: str | None = None
    masks: str | None = None
    image_name: str | None = None
    mask_name: str | None = None
    missing_mask: str = "error"
    polyp_values: Sequence[Value] | str | None = None
    polyp_labels: Sequence[Any] | None = None
    ignore_value: Value | None = None

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        _ = self.coding
        if self.missing_mask not in ("error", "empty"):
            raise InputError(f"data.missing_mask={self.missing_mask} is unknown: choose error or empty")

    @property
    def coding(self) -> MaskCoding:
        """Which values of the masks are polyp."""
        return MaskCoding(self.polyp_values, self.ignore_value)  # type: ignore[arg-type]

    @property
    def parts(self) -> dict[str, "Folder"]:
        """The folders by name; the name of a single one is empty.

        Raises:
            InputError: no root is given, or it is neither a folder nor a list nor a mapping.
        """
        root = self.root
        if isinstance(root, str) and root:
            return {"": self}
        if isinstance(root, Sequence) and root and all(isinstance(folder, str) for folder in root):
            names = [_name_folder(folder) for folder in root]
            if duplicate := next((name for name in names if names.count(name) > 1), None):
                raise InputError(
                    f"data.root: two folders are named {duplicate}: give names, {{a: FOLDER, b: FOLDER}}"
                )
            return {name: replace(self, root=folder) for name, folder in zip(names, root, strict=True)}
        if isinstance(root, Mapping) and root:
            if "" in root:
                raise InputError(f"data.root: the folder {root['']} needs a name, {{NAME: FOLDER}}")
            return {str(name): self._make_part(str(name), options) for name, options in root.items()}
        if not root:
            raise InputError(
                "data.root=FOLDER is needed: the folder of the images and masks, or a list of folders"
            )
        raise InputError(
            f"data.root={root} must be a folder, a list of folders, or a mapping NAME: FOLDER; a name that "
            f"is a number needs quotes, such as {override_word('data.root', '2024')}"
        )

    def _make_part(self, name: str, options: Any) -> "Folder":
        """The folder that a mapping of roots has by this name."""
        if isinstance(options, str):
            return replace(self, root=options)
        keys = [field.name for field in fields(self)]
        if not isinstance(options, Mapping) or not isinstance(options.get("root"), str):
            raise InputError(f"data.root.{name}={options} must be a folder, or a mapping with root: FOLDER")
        for key in options:
            if key not in keys:
                raise InputError(f"data.root.{name}.{key} is unknown: {nearest(str(key), keys)}")
        return replace(self, **options)

    def check(self) -> None:
        """Check that every folder is there."""
        for part in self.parts.values():
            if not Path(part.root).expanduser().is_dir():
                raise InputError(f"data.root={part.root} is not a folder")

    def prepare(self) -> Path:
        """The first root as an absolute path."""
        self.check()
        return Path(next(iter(self.parts.values())).root).expanduser().absolute()

    def find(self, exclude: Path | None = None) -> Listing:
        """The images and masks of all folders; of several, stems and sources begin with the folder's name."""
        self.check()
        if isinstance(self.root, str):
            return self._find_part(exclude)
        listing = Listing([])
        for name, part in self.parts.items():
            part_listing = part._find_part(exclude)
            for pair in part_listing.pairs:
                source = f"{name}/{pair.source}" if pair.source else name
                listing.pairs.append(replace(pair, stem=f"{name}/{pair.stem}", source=source))
            listing.problems += part_listing.problems
            listing.notes += [f"{name}: {note}" for note in part_listing.notes]
        listing.pairs.sort(key=lambda pair: pair.stem)
        return listing

    def _find_part(self, exclude: Path | None) -> Listing:
        """The images and masks of a single folder."""
        root = Path(self.root).expanduser().absolute()
        if annotations := find_annotations(root, self.masks):
            listing = draw_masks(
                root, annotations, self.images, self.polyp_labels, self.missing_mask, exclude
            )
        else:
            names = self.images, self.masks, self.image_name, self.mask_name
            listing = list_pairs(root, *names, self.missing_mask, self.coding, exclude)
        if (root / "train.txt").is_file() and (root / "test.txt").is_file():
            listing.lists = root
        return listing


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
        """The folder that holds it, or that it is unpacked into."""
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
        setting, advice = f"data.root={self.root}", "give a folder"
        if self.archive:
            setting = f"data.archive={self.archive}"
            advice = "give the path of the zip file; a folder goes to data.root="
        is_used = False
        try:
            if self.archive:
                Path(self.archive).expanduser().open("rb").close()
            elif self.root and self._home.exists():
                is_used = any(path.name[0] != "." for path in self._home.iterdir())
        except OSError as error:
            raise InputError(f"{setting} cannot be read ({describe_error(error)}): {advice}") from error
        if is_used:
            advice = "give the folder that has them, an empty one to download into, or data.archive=PATH.zip"
            raise InputError(f"{setting} has no images/ and masks/: {advice}")

    def prepare(self) -> Path:
        """Find, unpack or download the data set, and compare it with the owners' files."""
        try:
            self.check()
            folder = self._find() or self._make()
            kvasir.verify(folder)
        except OSError as error:
            raise InputError(
                f"cannot use the folder {self._home} ({describe_error(error)}): a folder that can be "
                "written, with 100 MiB free, is needed as data.root=, or a zip file as data.archive="
            ) from error
        return folder

    def _make(self) -> Path:
        """Unpack or download it, unless another process does."""
        is_new, lock = not self._home.exists(), self._home / ".lock"
        self._home.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock):
                return self._find() or self._unpack(self._home / "Kvasir-SEG")
        except InputError:
            if is_new:
                lock.unlink(missing_ok=True)
                with suppress(OSError):  # another process has made it meanwhile
                    self._home.rmdir()
            raise

    def _unpack(self, folder: Path) -> Path:
        if folder.exists():
            raise InputError(
                f"{folder} lacks images/ or masks/: delete it, or give another folder as data.root="
            )
        if not self.archive:
            kvasir.download(folder)
            return folder
        try:
            kvasir.unpack(Path(self.archive).expanduser(), folder)
        except kvasir.ArchiveError as error:
            raise InputError(
                f"data.archive={self.archive} {error}: delete it and download {kvasir.OWNERS} again"
            ) from error
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
        """Refuse values that are too small."""
        for key, minimum in MINIMA.items():
            value = getattr(self, key)
            if not isinstance(value, int) or value < minimum:
                raise InputError(f"data.{key}={value}: give a whole number, at least {minimum}")

    def prepare(self) -> Path:
        """Draw images/synthetic_0000.jpg, ... (RGB) and masks/synthetic_0000.png, ... (0 and 255)."""
        root = Path(self.root).expanduser() if self.root else user_cache_path("polyp") / "synthetic"
        folder = root / f"{self.count}x{self.size}_seed{self.drawing_seed}_v{self.version}"
        try:
            if not folder.exists():
                with atomic_folder(folder) as temporary:
                    draw_dataset(temporary, self.count, self.size, self.drawing_seed)
            counts = [len(list((folder / name).iterdir())) for name in ("images", "masks")]
        except OSError as error:
            raise InputError(
                f"cannot use {root} ({error}); data.root=FOLDER puts the set elsewhere"
            ) from error
        if counts != [self.count, self.count]:
            raise InputError(
                f"{folder} has lost files; delete it to have it drawn again, or give data.root=FOLDER"
            )
        return folder


DATASETS: dict[str, type[Source]] = {"kvasir_seg": KvasirSeg, "folder": Folder, "synthetic": Synthetic}
"""By the value of `data.dataset`."""

NAMED = [name for name, source in DATASETS.items() if source is not Folder]
"""Those that a command takes by name; any other text is a folder."""


def _name_folder(folder: str) -> str:
    return Path(os.path.abspath(Path(folder).expanduser())).name


def find_source(
    data: Sequence[str], root: str | None = None, archive: str | None = None, **options: Any
) -> tuple[str, Source]:
    """The data set that a command is given, and its name.

    Args:
        data: one of NAMED, or folders.
        root, archive: as data.root and data.archive, of a named one.
        options: the other fields of `Folder`, of folders.

    Raises:
        InputError: an option does not fit the data set.
    """
    options = {key: value for key, value in options.items() if value is not None}
    names = ", ".join(data)
    if names in NAMED:
        options |= {key: value for key, value in (("root", root), ("archive", archive)) if value}
        kind = DATASETS[names]
        for key in options.keys() - {field.name for field in fields(kind)}:
            raise InputError(f"--{key.replace('_', '-')} is not for {names}, which has none")
        return names, kind(**options)
    if root or archive:
        raise InputError(f"--root and --archive are for {' and '.join(NAMED)}, and {names} is a folder")
    for folder in data:
        if not Path(folder).expanduser().is_dir():
            raise InputError(f"{folder} is not a folder; give a folder or one of {', '.join(NAMED)}")
    name = "+".join(map(_name_folder, data))
    return name, Folder(root=data[0] if len(data) == 1 else list(data), **options)
