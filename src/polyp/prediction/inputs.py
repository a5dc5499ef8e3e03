"""What people want predictions of: images, videos, and folders of these, each with a name for what is made of it."""

import hashlib
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polyp.errors import InputError, describe_error, printable
from polyp.inference import image
from polyp.prediction import video

LONGEST = 240
"""Bytes of a name, so that an ending fits behind it."""


@dataclass(frozen=True)
class Input:
    """An image or a video.

    Attributes:
        path: absolute, links not followed.
        relative: below the folder that all inputs have in common, with `/`.
        is_video: or else an image.
    """

    path: Path
    relative: str
    is_video: bool

    @property
    def stamp(self) -> list[int]:
        """What is another when the file has been changed."""
        status = self.path.stat()
        return [status.st_size, status.st_mtime_ns]


@dataclass
class Inputs:
    """Everything that was found.

    Attributes:
        root: the folder that all have in common.
        each: the inputs, sorted.
        problems: what cannot be read, a line each.
    """

    root: Path
    each: list[Input] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find(given: Sequence[str]) -> Inputs:
    """All images and videos among files and in folders, these with everything below; hidden files are passed over.

    Raises:
        InputError: one is not there, is neither image nor video, or there is none at all.
    """
    paths = [Path(os.path.abspath(Path(one).expanduser())) for one in given]
    for one, path in zip(given, paths, strict=True):
        if not path.exists():
            raise InputError(f"{printable(one)} is not there: give images, videos, or folders of these")
        if not path.is_dir() and not path.is_file():
            raise InputError(f"{printable(one)} is not a file")
    found = Inputs(Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths])))
    for path in dict.fromkeys(inside for one in paths for inside in (_below(one, found) if one.is_dir() else [one])):
        suffix = path.suffix.lower()
        if suffix not in image.SUFFIXES | video.SUFFIXES:
            if path not in paths:
                continue
            is_video = _is_video(path)  # of any name, since it was asked for
        else:
            is_video = suffix in video.SUFFIXES
        if path.is_file():
            found.each.append(Input(path, path.relative_to(found.root).as_posix(), is_video))
        else:
            found.problems.append(f"{printable(path)}: a broken link, or not a file")
    if not found.each:
        where = ", ".join(printable(one) for one in given[:3])
        reason = f": {found.problems[0]}" if found.problems else f" ({' '.join(sorted(image.SUFFIXES))})"
        raise InputError(f"{where}: no images or videos there{reason}")
    return found


def _below(folder: Path, found: Inputs) -> Iterator[Path]:
    """The files of a folder and its subfolders, sorted; a link back to a folder above is not followed again."""

    def failed(error: OSError) -> None:
        found.problems.append(f"{printable(error.filename)}: the folder cannot be read ({describe_error(error)})")

    seen = set()
    for place, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def _is_video(path: Path) -> bool:
    """Whether a file whose name does not tell is a video.

    Raises:
        InputError: it is neither that nor an image.
    """
    try:
        image.read(path)
        return False
    except InputError as error:
        try:
            video.Video(path).close()
            return True
        except InputError:
            raise InputError(f"{error}; nor is it a video") from error


def named(inputs: Sequence[Input], known: Mapping[str, str]) -> dict[Input, str]:
    """A name for what is made of each input: its path without the ending, or with it where that is taken.

    Args:
        inputs: sorted.
        known: names that were given before, by the path of the input: they stay.

    Raises:
        InputError: a name belongs to an input of another folder.
    """
    owners = {_folded(name): path for path, name in known.items()}
    folders = {_folded(str(above)) for one in inputs for above in Path(one.relative).parents}
    names = {}
    for one in inputs:
        path = str(one.path)
        if path in known:
            names[one] = known[path]
        else:
            for name in _candidates(one.relative):
                owner = owners.get(_folded(name))
                if owner is not None and owner in known and Path(owner).parent != one.path.parent:
                    raise InputError(
                        f"{printable(path)}: predictions named {printable(name)} are there, of {printable(owner)}: "
                        "give another --out"
                    )
                clash = any(_folded(name + ending) in folders for ending in (".png", ".jpg", ".webm", ".csv"))
                if owner is None and not clash:
                    break
            owners[_folded(name)] = path
            names[one] = name
    return names


def _candidates(relative: str) -> Iterator[str]:
    """Names, the last of which nothing else has."""
    path = Path(relative)
    unique = hashlib.sha256(os.fsencode(relative)).hexdigest()[:12]
    for name in (path.stem, path.name):
        if len(os.fsencode(name)) <= LONGEST:
            yield path.with_name(name).as_posix()
    yield path.with_name(f"{path.stem[:50]}_{unique}").as_posix()


def _folded(name: str) -> str:
    """The same for names that some file systems hold to be the same."""
    return unicodedata.normalize("NFC", name).casefold()
