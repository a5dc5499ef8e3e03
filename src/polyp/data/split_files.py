"""Splits that have a file: a CSV with the columns stem and subset, or lists of names.

Two are shipped. `official` (the owners' 880/120) is of Kvasir-SEG; `pranet` (the literature's) is of
Kvasir-SEG (900/100) and of CVC-ClinicDB (550/62). Their test sets are as published; validation (80 and 90
images) was drawn from the rest of Kvasir-SEG with a fixed seed, spread evenly over the polyps' sizes, and
without images whose whole frame has a near-duplicate; `polyp data` also finds frames that are in the set
twice, cut differently.
"""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from polyp.data.pairs import StemIndex
from polyp.errors import InputError, nearest, printable
from polyp.report.tables import unescape_formula

log = logging.getLogger(__name__)

SUBSETS = ("train", "val", "test")
SHIPPED = ("official", "pranet")
AUTO, RANDOM, FOLDERS, LEAVE_ONE_OUT = "auto", "random", "folders", "leave-one-group-out"
DRAWN = (AUTO, RANDOM, FOLDERS, LEAVE_ONE_OUT)
"""The splits that have no file."""


def find_files(split: str, stems: Sequence[str] = ()) -> list[Path]:
    """The files of a split, given by its name or path; what is drawn has none.

    A shipped split has a file for each of several data sets: those without any of the stems are left out.

    Raises:
        InputError: the split is unknown.
    """
    if split in DRAWN:
        return []
    if split in SHIPPED:
        index = StemIndex(stems)
        shipped = sorted(Path(__file__).with_name("splits").glob(f"*_{split}.csv"))
        files = [file for file in shipped if any(index.find(row["stem"]) for _, row in _read_rows(file))]
        return files or shipped
    path = Path(split).expanduser()
    if path.is_dir():
        lists = [path / f"{name}.txt" for name in SUBSETS]
        if not (lists[0].is_file() and lists[2].is_file()):
            raise InputError(f"data.split={split} is a folder without train.txt and test.txt")
        return [file for file in lists if file.is_file()]
    if not path.is_file():
        raise InputError(
            f"data.split={split} is neither a file nor known: {nearest(split, [*SHIPPED, *DRAWN])}"
        )
    return [path]


def check_stems(split: str, subsets: Mapping[str, Sequence[str]], stems: Sequence[str]) -> None:
    """Raise an InputError if images of a split are not in the data."""
    used = [stem for members in subsets.values() for stem in members]
    if absent := sorted(set(used) - set(stems)):
        raise _describe_absence(split, absent, len(used))
    if unused := len(stems) - len(used):
        log.info("data.split=%s uses %d images and leaves %d out", split, len(used), unused)


def _describe_absence(split: str, absent: Sequence[str], count: int) -> InputError:
    names = [printable(name) for name in absent[:5]] + ["..."] * (len(absent) > 5)
    advice = " is a split of Kvasir-SEG: for other data give data.split=random;" if split in SHIPPED else ":"
    return InputError(
        f"data.split={split}{advice} {len(absent)} of its {count} images are not in the data "
        f"({', '.join(names)})"
    )


def read_split(
    split: str, stems: Sequence[str], needs_subset: bool = True
) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
    """The subsets of a split that has a file, and the file's other columns by stem.

    Args:
        split: official, pranet, the path of a CSV with the columns stem and subset, which may have others, or
            of a folder with train.txt, test.txt and perhaps val.txt.
        stems: of the data set; the file's may have endings, and may leave out folders that make no
            difference.
        needs_subset: whether a CSV must have the column subset; without, it gives groups only.

    Returns:
        The subsets, of which `val` may be empty, are empty themselves if the file gives groups only.

    Raises:
        InputError: the split is unknown or malformed, or it names images that are not there.
    """
    files = find_files(split, stems)
    index = StemIndex(stems)
    subsets: dict[str, list[str]] = {name: [] for name in SUBSETS}
    columns: dict[str, dict[str, str]] = {}
    absent = []
    places: dict[str, str] = {}
    for file in files:
        for number, row in _read_rows(file, needs_subset):
            name, subset = row.pop("stem"), row.pop("subset", None)
            if subset is not None and subset not in subsets:
                reason = f"the subset '{subset}' is unknown: {nearest(subset, SUBSETS)}"
                raise InputError(f"{file}, line {number}: {reason}")
            if (stem := index.find(name)) is None:
                absent.append(name)
                continue
            if stem in places:
                raise InputError(f"{file}, line {number}: {name} was given in {places[stem]} already")
            places[stem] = f"line {number}" if len(files) == 1 else f"{file.name}, line {number}"
            columns[stem] = row
            if subset is not None:
                subsets[subset].append(stem)
    if absent:
        raise _describe_absence(split, sorted(absent), len(absent) + len(columns))
    if not any(subsets.values()):
        return {}, columns
    if empty := [name for name in ("train", "test") if not subsets[name]]:
        raise InputError(
            f"{files[0]}: no image is given for {' and '.join(empty)}; train and test are needed, and "
            "validation is drawn from train if it is not given"
        )
    check_stems(split, subsets, stems)
    return subsets, columns


def _read_rows(file: Path, needs_subset: bool = True) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV with their line numbers, or the lines of train.txt, val.txt or test.txt as rows."""
    try:
        text = file.read_text("utf-8-sig")  # spreadsheets begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    lines = [(number, line) for number, line in lines if not line.startswith("#")]
    if file.suffix == ".txt":
        return [(number, {"stem": line.strip(), "subset": file.stem}) for number, line in lines]
    rows = []
    for number, line in lines:
        rows.append((number, [unescape_formula(cell.strip()) for cell in next(csv.reader([line]))]))
    first, header = rows.pop(0) if rows else (1, [])
    columns = ["stem", "subset"] if needs_subset else ["stem"]
    if not set(columns) <= set(header) or len(set(header)) < len(header):
        raise InputError(
            f"{file}, line {first}: the first line must name the columns {' and '.join(columns)}"
        )
    for number, row in rows:
        if len(row) != len(header):
            reason = f"has {len(row)} columns instead of the {len(header)} of {','.join(header)}"
            raise InputError(f"{file}, line {number}: {reason}")
    return [(number, dict(zip(header, row, strict=True))) for number, row in rows]
