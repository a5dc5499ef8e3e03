"""Whether the files and folders of a run's data are there; nothing is read, drawn or downloaded."""

from pathlib import Path

from polyp.data.sources import Source
from polyp.data.split_files import find_files
from polyp.settings import collect, raise_together


def check_locations(source: Source, split: str | None, normal: str | None) -> None:
    """Check where the images, the split and the frames without polyps are.

    Args:
        source: of the images.
        split: a name or a path, see `find_files`; None if it is recorded elsewhere.
        normal: the folder of frames without polyps, if any.

    Raises:
        InputError: a folder, the archive or the split's file is not there; all of them.
    """
    problems: list[str] = []
    with collect(problems):
        source.check()
    with collect(problems):
        if split is not None:
            find_files(split)
    if normal is not None and not Path(normal).expanduser().is_dir():
        problems.append(f"data.normal={normal} is not a folder")
    raise_together(problems)
