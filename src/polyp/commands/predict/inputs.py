"""The images and videos to predict, and the names of what is written for each."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from polyp.commands.predict.video import SUFFIXES as VIDEOS
from polyp.commands.predict.video import open_video
from polyp.errors import InputError, printable
from polyp.files import walk_files
from polyp.images import SUFFIXES as IMAGES

MAX_NAME_BYTES = 240  # so that an ending still fits a file system's 255 bytes
ENDINGS = (".png", ".jpg", ".csv", ".webm")  # of the files that are written for an input


@dataclass(frozen=True)
class Input:
    """An image or a video."""

    path: Path  # absolute, links not followed
    relative: str  # the path relative to the folder that all inputs have in common, with `/`
    is_video: bool
    stamp: tuple[int, int]  # size in bytes and modification time in nanoseconds, by which changes are noticed


def find_inputs(names: Sequence[str]) -> tuple[Path, list[Input], list[str]]:
    """Find images and videos among files and below folders; hidden files are left out.

    Returns:
        The folder that all have in common, the inputs, and a line for each that cannot be read.

    Raises:
        InputError: a path does not exist, is no file or folder, or there is nothing to predict.
    """
    paths = [Path(os.path.abspath(Path(name).expanduser())) for name in names]
    for name, path in zip(names, paths, strict=True):
        if not path.exists():
            raise InputError(f"{printable(name)} is not there: give images, videos, or folders of these")
        if not path.is_dir() and not path.is_file():
            raise InputError(f"{printable(name)} is not a file")
    root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths]))
    problems: list[str] = []
    files: list[Path] = []
    for path in paths:
        files += walk_files(path, IMAGES | VIDEOS, problems) if path.is_dir() else [path]
    inputs = []
    for file in dict.fromkeys(files):
        if file.is_file():
            status = file.stat()
            stamp = status.st_size, status.st_mtime_ns
            inputs.append(Input(file, file.relative_to(root).as_posix(), _is_video(file), stamp))
        else:
            problems.append(f"{printable(file)}: a broken link, or not a file")
    if not inputs:
        reason = f": {problems[0]}" if problems else f" ({' '.join(sorted(IMAGES))})"
        raise InputError(f"{', '.join(map(printable, names[:3]))}: no images or videos there{reason}")
    return root, inputs, problems


def _is_video(file: Path) -> bool:
    """Whether a file is a video: by its ending, or by its content if the ending is unknown."""
    suffix = file.suffix.lower()
    if suffix in IMAGES | VIDEOS:
        return suffix in VIDEOS
    try:
        with open_video(file):
            return True
    except InputError:
        return False


def name_outputs(inputs: Sequence[Input]) -> dict[Input, str]:
    """A name for the output files of each input; it depends on the inputs alone.

    It is the relative path without the ending. If two names are equal but for upper and lower case, they get
    the ending; if they are still equal, or too long for a file's name, a hash.
    """
    paths = {item: PurePosixPath(item.relative) for item in inputs}
    names = {item: path.with_suffix("").as_posix() for item, path in paths.items()}
    # Beside a folder x.png/ an image cannot be named x: its mask would be the file x.png.
    folders = {folder for path in paths.values() for folder in path.parents if folder.suffix in ENDINGS}
    for with_hash in (False, True):
        counts = Counter(name.casefold() for name in names.values())
        counts.update(folder.with_suffix("").as_posix().casefold() for folder in folders)
        for item, name in list(names.items()):
            if counts[name.casefold()] > 1 or len(os.fsencode(PurePosixPath(name).name)) > MAX_NAME_BYTES:
                unique = hashlib.sha256(os.fsencode(item.relative)).hexdigest()[:12]
                short = paths[item].with_name(f"{paths[item].stem[:50]}_{unique}").as_posix()
                names[item] = short if with_hash else item.relative
    return names
