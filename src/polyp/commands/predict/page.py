"""The page of a folder of predictions: what is in the images and videos, the least certain first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from polyp.commands.predict.results import PAGE
from polyp.errors import printable
from polyp.images import read_image
from polyp.report.html import Page
from polyp.report.tables import Column, Table, count

PICTURES = 100  # on a page at most
WIDTH = 480  # of a picture in pixels


def write_page(folder: Path, settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Write index.html with the settings and records of predictions.json; raises WriteError on failure."""
    page = Page(
        f"Predictions: {folder.absolute().name}",
        f"{', '.join(settings['runs'])}, {settings['backend']}, threshold {settings['threshold']:g}. "
        "For research, not for diagnosis.",
    )
    videos = [record for record in records if "video" in record]
    if videos:
        page.section("Videos", "The pictures are the frames with the largest share of polyp.")
        page.table(Table(sorted(videos, key=lambda record: str(record["video"])), VIDEO_COLUMNS))
        _add_pictures(page, folder, videos[:PICTURES])
    images = sorted(
        (record for record in records if "image" in record),
        # Records that older versions wrote have no uncertainty.
        key=lambda record: (-record.get("uncertainty", 0), str(record["image"])),
    )
    if images:
        text = "The least certain first. " if len(images) > 1 else ""
        text += "Uncertainty is 1 less the probability of the least certain polyp, or without polyps the "
        text += "largest probability of a pixel. Polyps are numbered as in polyps.csv."
        text += f" Pictures of the first {PICTURES}." if len(images) > PICTURES else ""
        page.section("Images", text)
        _add_pictures(page, folder, images[:PICTURES])
        page.section("Table")
        page.table(Table(images, IMAGE_COLUMNS))
    page.write(folder / PAGE)


def _add_pictures(page: Page, folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Add the overlays of images, or the stills of videos."""
    pictures = []
    for record in records:
        drawings = [folder / name for name in record["files"] if name.endswith(".jpg")]
        for file in filter(Path.is_file, drawings):  # the user may have removed those of earlier commands
            picture = read_image(file)
            scale = min(1, WIDTH / picture.shape[1])
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            pictures.append((picture, _describe(record)))
    page.gallery(pictures)


def _describe(record: Mapping[str, Any]) -> str:
    if "video" in record:
        return printable(record["video"])
    polyps = count(len(record["polyps"]), "polyp") if record["polyps"] else "no polyps"
    uncertainty = f", uncertainty {record['uncertainty']:.2f}" if "uncertainty" in record else ""
    return f"{printable(record['image'])}: {polyps}{uncertainty}"


IMAGE_COLUMNS = [
    Column("image", format=lambda row: printable(row["image"])),
    Column("uncertainty", format=".2f"),
    Column("polyps", format=lambda row: str(len(row["polyps"]))),
    Column(
        "probability",
        "probabilities",
        lambda row: ", ".join(f"{polyp['probability']:.2f}" for polyp in row["polyps"]),
        align="left",
    ),
    Column("share", "share of the image", lambda row: f"{sum(p['share'] for p in row['polyps']):.1%}"),
]

VIDEO_COLUMNS = [
    Column("video", format=lambda row: printable(row["video"])),
    Column("frames"),
    Column("seconds", format=lambda row: f"{row['frames'] / row['rate']:.1f}"),
    Column("with_polyps", "frames with polyps"),
    Column("most_polyps", "polyps in a frame, at most"),
    Column("share", "largest share of a frame", ".1%"),
    Column("max_probability", "largest probability", ".2f"),
]
