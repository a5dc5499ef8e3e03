"""The folder of predictions: the files of each image and video, and the tables of all."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from polyp import __version__, files
from polyp.commands.predict.inputs import Input, name_outputs
from polyp.commands.predict.options import Options
from polyp.errors import InputError, printable
from polyp.inference.polyps import Prediction
from polyp.report import tables
from polyp.report.pictures import overlay

JSON, TABLE, PAGE = "predictions.json", "polyps.csv", "index.html"

MASKS, OVERLAYS, PROBABILITIES, VIDEOS = FOLDERS = "masks", "overlays", "probabilities", "videos"

SINGLE = {
    MASKS: "_mask.png",
    OVERLAYS: "_overlay.jpg",
    PROBABILITIES: "_probabilities.png",
    VIDEOS: "_frames.csv",
}
"""The endings of the files of a single image or video, which are not written to these folders."""

DRAWINGS = (".jpg", ".webm")  # of a video's still and of the video with its polyps drawn
DECISIVE = ("models", "threshold", "tta", "backend")  # settings that all predictions of a folder share
SAVE_SECONDS, SAVE_SHARE = 2.0, 0.05  # least time between two saves, and largest share of the time for them

COLUMNS = dict.fromkeys(("left", "top", "width", "height", "pixels"), "d") | {
    "share": ".6f",
    "probability": ".4f",
    "x": ".1f",
    "y": ".1f",
}
"""The columns of polyps.csv and their formats."""

Record = dict[str, Any]  # of an image or a video in predictions.json


class Results:
    """A folder of predictions. predictions.json lists the finished inputs, so that a command that was killed
    can be continued.

    Args:
        folder: of the predictions: new, empty, or with those of an earlier command.
        settings: of the predictions; see `DECISIVE`.
        options: which files are written, and whether earlier predictions are replaced.
        inputs: the images and videos to predict; the predictions of all others are kept. The files of a
            single input are written to the folder itself.

    Attributes:
        records: the finished inputs by the path of the image or video.

    Raises:
        InputError: the folder holds something other than predictions, predictions with other settings, or
            predictions of other images or videos with the same names.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], options: Options, inputs: Sequence[Input]
    ) -> None:
        self.folder, self.settings, self.options = folder, dict(settings), options
        self.names, self.is_single = name_outputs(inputs), is_single(options.inputs)
        self.records: dict[str, Record] = {}
        self._load()
        paths = {str(item.path) for item in inputs}
        sources = {file: source for source, record in self.records.items() for file in record["files"]}
        for item in inputs:
            for file in self.files(item):
                source = sources.get(file)
                if source is not None and source not in paths:
                    raise InputError(
                        f"{printable(item.path)}: predictions named {printable(self.names[item])} are there, "
                        f"of {printable(source)}: give another --out"
                    )
        for item in inputs:
            if options.overwrite or not self._is_finished(item):
                self._remove(str(item.path))
        self.save()

    def _load(self) -> None:
        """Read the records of earlier predictions; with --overwrite, remove those with other settings."""
        file = self.folder / JSON
        if not file.is_file():
            if names := sorted(path.name for path in self.folder.iterdir() if not path.name.startswith(".")):
                reason = f"holds {printable(names[0])}, and no predictions"
                raise InputError(f"{printable(self.folder)} {reason}: give another --out")
            return
        try:
            content = files.read_json(file)
            self.records = {record["source"]: record for record in content["images"] + content["videos"]}
            paths = [PurePosixPath(path) for record in self.records.values() for path in record["files"]]
            if not all(map(_is_output, paths)):
                raise ValueError  # else `_remove` might delete other files
            changed = [key for key in DECISIVE if content[key] != self.settings[key]]
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{printable(file)} is damaged: give another --out") from error
        if not changed:
            return
        if not self.options.overwrite:
            key = changed[0]
            setting = f"{key} {content[key]}, and not {self.settings[key]}"
            if key == "models":
                setting = "other models"
            raise InputError(
                f"{printable(self.folder)} holds predictions made with {setting}: give another --out, or "
                "--overwrite to replace them"
            )
        for source in list(self.records):
            self._remove(source)

    def _is_finished(self, item: Input) -> bool:
        """Whether all files of an input exist, and the input has not changed since they were written."""
        record, names = self.records.get(str(item.path)), self.files(item)
        return (
            record is not None
            and record["stamp"] == list(item.stamp)
            and set(names) <= set(record["files"])
            and all((self.folder / name).is_file() for name in names)
        )

    def _remove(self, source: str) -> None:
        for name in self.records.pop(source, {"files": []})["files"]:
            (self.folder / name).unlink(missing_ok=True)

    def files(self, item: Input) -> list[str]:
        """The files of an input relative to the folder; if it is finished, in the places that they have."""
        name, record = self.names[item], self.records.get(str(item.path))
        in_folders = "/" in record["files"][0] if record else not self.is_single
        if item.is_video:
            start, table = (f"{VIDEOS}/{name}", ".csv") if in_folders else (name, SINGLE[VIDEOS])
            endings = (table, *DRAWINGS) if self.options.overlays else (table,)
            return [f"{start}{ending}" for ending in endings]
        kinds = [MASKS]
        if self.options.overlays:
            kinds.append(OVERLAYS)
        if self.options.probabilities:
            kinds.append(PROBABILITIES)
        if in_folders:
            return [f"{kind}/{name}{SINGLE[kind][-4:]}" for kind in kinds]
        return [f"{name}{SINGLE[kind]}" for kind in kinds]

    def write_image(self, item: Input, image: np.ndarray, probability: np.ndarray) -> tuple[Input, Record]:
        """Write the files of an image (H, W, 3) uint8 RGB with probabilities (H, W).

        Returns:
            The arguments of `add`, which is not called here, because several threads write images.
        """
        prediction = Prediction(probability, self.settings["threshold"])
        names = iter(self.files(item))
        files.write_bytes(self.folder / next(names), encode(prediction.mask.astype(np.uint8) * 255))
        if self.options.overlays:
            drawing = overlay(image, prediction.mask, labels=prediction.labels)
            write_jpeg(self.folder / next(names), drawing)
        if self.options.probabilities:
            content = encode(np.rint(probability * 65535).astype(np.uint16))
            files.write_bytes(self.folder / next(names), content)
        height, width = probability.shape
        polyps = [vars(polyp) for polyp in prediction.polyps]
        size = {"image": item.relative, "width": width, "height": height}
        return item, {**size, "uncertainty": prediction.uncertainty, "polyps": polyps}

    def add(self, item: Input, record: Record) -> None:
        """Add the record of an input whose files are all written."""
        self.records[str(item.path)] = record | {
            "source": str(item.path),
            "stamp": list(item.stamp),
            "name": self.names[item],
            "files": self.files(item),
        }
        if time.monotonic() > self._next_save:
            self.save()

    def save(self) -> None:
        """Write the tables of all finished inputs."""
        started = time.monotonic()
        images, videos = (
            sorted((r for r in self.records.values() if kind in r), key=lambda record: str(record[kind]))
            for kind in ("image", "video")
        )
        content = {"polyp": __version__, **self.settings, "images": images, "videos": videos}
        files.write_json(self.folder / JSON, content, indent=1)
        rows = [
            {"image": record["image"], "polyp": number}
            | {column: format(polyp[column], digits) for column, digits in COLUMNS.items()}
            for record in images
            for number, polyp in enumerate(record["polyps"], start=1)
        ]
        if images:  # a table without rows would say that a video has no polyps
            files.write_text(self.folder / TABLE, tables.to_csv(rows, ["image", "polyp", *COLUMNS]))
        else:
            (self.folder / TABLE).unlink(missing_ok=True)
        duration = time.monotonic() - started
        self._next_save = started + max(SAVE_SECONDS, duration / SAVE_SHARE)


def is_single(inputs: Sequence[str]) -> bool:
    """Whether the inputs of a command are a single file."""
    return len(inputs) == 1 and Path(inputs[0]).expanduser().is_file()


def _is_output(path: PurePosixPath) -> bool:
    """Whether a path in predictions.json can be one of `Results.files`, which may be deleted."""
    if len(path.parts) == 1:
        return path.name.endswith((*DRAWINGS, *SINGLE.values()))
    return path.parts[0] in FOLDERS and ".." not in path.parts


def write_jpeg(file: Path, picture: np.ndarray) -> None:
    """Write an RGB picture as JPEG; raises WriteError if the file cannot be written."""
    files.write_bytes(file, encode(picture, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 92]))


def encode(picture: np.ndarray, suffix: str = ".png", flags: Sequence[int] = ()) -> bytes:
    """An image file of a picture (H, W) or (H, W, 3) RGB, uint8 or for PNG uint16; see `cv2.imencode`."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(suffix, picture, flags)[1].tobytes()
