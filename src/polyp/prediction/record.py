"""The folder of predictions: what was made by which models, which of it is finished, and the tables of it all."""

import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyp import __version__, files
from polyp.errors import InputError, printable
from polyp.report.tables import to_csv

JSON, TABLE, JOURNAL, PARTS = "predictions.json", "polyps.csv", ".journal.jsonl", ".parts"

KINDS = MASKS, OVERLAYS, PROBABILITIES, VIDEOS = "masks", "overlays", "probabilities", "videos"

DECISIVE = ("models", "threshold", "tta", "backend")
"""Of the settings: predictions that differ in one of these are not mixed."""

Record = dict[str, Any]
"""What predictions.json says of an image or video."""


class Predictions:
    """A folder of predictions. Each image that is finished is noted in a journal at once, so that nothing is lost.

    Args:
        folder: new, empty, or of former predictions.
        settings: what all predictions of the folder are made with; see `DECISIVE`.
        overwrite: forget what is there; other files than predictions are never touched.

    Attributes:
        records: by the path of the image or video.

    Raises:
        InputError: the folder holds something else, or predictions made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
        self.folder, self.settings = folder, dict(settings)
        shutil.rmtree(folder / PARTS, ignore_errors=True)  # of one that was killed
        self.records: dict[str, Record] = {}
        made_with = self._load()
        if made_with is None:
            others = [path.name for path in folder.iterdir() if path.name != ".lock"]
            if others:
                raise InputError(
                    f"{printable(folder)} holds {printable(min(others))}, and no predictions: give another --out"
                )
        elif differing := [key for key in DECISIVE if made_with.get(key) != settings[key]]:
            if not overwrite:
                raise InputError(
                    f"{printable(folder)} holds predictions made with {_differs(made_with, settings, differing[0])}: "
                    "give another --out, or --overwrite to replace them"
                )
            self._clear()
        for source in [source for source, one in self.records.items() if not self.whole(one)]:
            self.forget(source)
        (folder / PARTS).mkdir()
        lines = [json.dumps(self.settings), *map(json.dumps, self.records.values()), ""]
        files.write_text(folder / JOURNAL, "\n".join(lines))
        self._journal = (folder / JOURNAL).open("a", encoding="utf-8")

    def _load(self) -> Mapping[str, Any] | None:
        """Take up what is there; returns what it was made with, None if nothing is."""
        made_with = None
        try:
            if (self.folder / JSON).is_file():
                made_with = json.loads((self.folder / JSON).read_text(encoding="utf-8"))
                self.records = {one["source"]: one for one in made_with.pop("images") + made_with.pop("videos")}
            if (self.folder / JOURNAL).is_file():
                first, *lines = (self.folder / JOURNAL).read_text(encoding="utf-8").split("\n")
                made_with = json.loads(first)
                # The last line was not written to its end if there is no empty one behind it.
                self.records = {one["source"]: one for one in map(json.loads, lines[:-1])}
            for file in (Path(file) for one in self.records.values() for file in one["files"]):
                if file.parts[0] not in KINDS or ".." in file.parts:  # which would be deleted one day
                    raise ValueError
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"{printable(self.folder / JSON)} or {JOURNAL} beside it is damaged: give another --out"
            ) from error
        return made_with

    def forget(self, source: str) -> None:
        """Delete what was made of an image or video once, if anything was: it is not of the file as it is now."""
        for file in self.records.pop(source, {"files": []})["files"]:
            (self.folder / file).unlink(missing_ok=True)

    def _clear(self) -> None:
        for source in list(self.records):
            self.forget(source)
        for name in (JOURNAL, TABLE, JSON):
            (self.folder / name).unlink(missing_ok=True)

    def whole(self, record: Record) -> bool:
        """Whether all files of a record are there."""
        return all((self.folder / file).is_file() for file in record["files"])

    def part(self, name: str) -> Path:
        """Where a thread may write a file that is not yet whole."""
        return self.folder / PARTS / f"{threading.get_ident()}_{name}"

    def keep(self, part: Path, file: str) -> None:
        """Put a file that is whole in its place."""
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, self.folder / file)

    def write(self, content: bytes, file: str) -> None:
        """Write a file in one piece."""
        files.write_bytes(self.folder / file, content)

    def add(self, record: Record) -> None:
        """Note that an image or video is finished: all its files are in their places."""
        self.records[record["source"]] = record
        self._journal.write(json.dumps(record) + "\n")
        self._journal.flush()

    def close(self) -> None:
        """Write the tables of everything that is finished."""
        self._journal.close()
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        ordered = sorted(self.records.values(), key=lambda record: str(record.get("image") or record["video"]))
        images = [record for record in ordered if "image" in record]
        files.write_text(self.folder / TABLE, _table(images))
        content = {"polyp": __version__, **self.settings, "images": images}
        content["videos"] = [record for record in ordered if "video" in record]
        files.write_json(self.folder / JSON, content, indent=1)
        (self.folder / JOURNAL).unlink()


def _differs(made_with: Mapping[str, Any], settings: Mapping[str, Any], key: str) -> str:
    if key == "models":
        return "other models"
    return f"{key} {made_with.get(key)}, and not {settings[key]}"


def _table(images: Sequence[Record]) -> str:
    """A row for each polyp, positions in pixels."""
    columns = {"left": "d", "top": "d", "width": "d", "height": "d", "pixels": "d"}
    columns |= {"share": ".6f", "probability": ".4f", "x": ".1f", "y": ".1f"}
    rows = [
        {"image": record["image"], "polyp": number}
        | {column: format(polyp[column], digits) for column, digits in columns.items()}
        for record in images
        for number, polyp in enumerate(record["polyps"], start=1)
    ]
    return to_csv(rows, ["image", "polyp", *columns])
