"""Polygons in place of masks: COCO's JSON, LabelMe's JSON files, and YOLO's text files.

They are drawn once, as masks of 0 and 255 in the user's cache folder, which are read like any other mask.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from platformdirs import user_cache_path

from polyp.data.layouts import Listing, list_images
from polyp.data.pairs import StemIndex
from polyp.errors import InputError, describe_error, override_word, printable, require
from polyp.files import atomic_folder
from polyp.images import SUFFIXES, open_image

FORMATS = {".json": "LabelMe", ".txt": "YOLO"}
"""The formats with a file for each image, by its ending; a single .json file is COCO's."""


@dataclass
class Annotation:
    """The outlines of one image.

    An outline is a flat list x1, y1, x2, y2, ... in pixels, or COCO's run lengths.
    """

    size: tuple[int, int] | None  # height and width in pixels; None: those of the image's file
    shapes: list[tuple[str, Any]] = field(default_factory=list)  # labels and outlines


def find_annotations(root: Path, masks: str | None) -> Path | None:
    """The file or folder of polygons that `data.masks`, a path below the root, names; None if it names masks.

    Raises:
        InputError: it names a JSON file that is not there.
    """
    if masks is None or "*" in masks:
        return None
    path = root / Path(masks).expanduser()
    if path.suffix.lower() == ".json":
        if not path.is_file():
            raise InputError(f"data.masks={masks}: there is no file {path}")
        return path
    if not path.is_dir():
        return None
    files = [file for file in path.rglob("*") if file.name[0] != "."]
    annotated = {file.with_suffix("") for file in files if file.suffix.lower() in FORMATS}
    images = {file.with_suffix("") for file in files if file.suffix.lower() in SUFFIXES}
    # Polygons have the names of the images beside them, if any; other text may lie beside masks.
    return path if annotated and (not images or annotated & images) else None


def draw_masks(
    root: Path,
    annotations: Path,
    images: str | None = None,
    labels: Sequence[Any] | None = None,
    missing_mask: str = "error",
    exclude: Path | None = None,
) -> Listing:
    """Draw the polygons of a data set, unless they have been drawn before.

    Args:
        root: the folder of the images.
        annotations: COCO's JSON file, or the folder of LabelMe's or YOLO's files.
        images: the folder of the images below `root`.
        labels: those that are polyps, COCO's names or YOLO's numbers; None: there is only one.
        missing_mask: `empty` takes an image without annotations for one without a polyp.
        exclude: a folder that is left out: it holds other images.

    Raises:
        InputError: a file is damaged, an outline is no polygon, several labels are not explained, or the
            cache cannot be written.
    """
    require("polygons", "pycocotools")
    listing = list_images(root / images if images else root, exclude)
    # Annotations name files from the root on, while stems leave out folders that all images share.
    index = StemIndex({_strip(pair.image.relative_to(root)): pair.stem for pair in listing.pairs})
    kind, by_stem = _read_annotations(annotations, index, listing.problems)
    if not by_stem:
        raise InputError(f"none of the images in {root} is in {annotations}")
    polyps = _choose_labels(root, by_stem, labels)
    folder = _draw_all(annotations, by_stem, polyps, {pair.stem: pair.image for pair in listing.pairs})
    pairs = []
    for pair in listing.pairs:
        if pair.stem in by_stem:
            pairs.append(replace(pair, mask=folder / f"{pair.stem}.png"))
        elif missing_mask == "empty":
            pairs.append(pair)
        else:
            reason = f"not in {annotations.name} (data.missing_mask=empty if it has no polyp)"
            listing.problems.append(f"{pair.image.relative_to(root)}: {reason}")
    count = sum(len(annotation.shapes) for annotation in by_stem.values())
    note = f"masks are drawn from {count} outlines in {annotations.name} ({kind})"
    return Listing(pairs, listing.problems, [*listing.notes, note])


def _read_annotations(path: Path, index: StemIndex, problems: list[str]) -> tuple[str, dict[str, Annotation]]:
    """The format's name, and the annotations by stem; what is of no image becomes a problem."""
    if path.is_file():
        return "COCO", _read_coco(path, index, problems)
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in FORMATS and f.name[0] != ".")
    kinds = [FORMATS[file.suffix.lower()] for file in files]
    [(main_kind, _)] = Counter(kinds).most_common(1)
    by_stem = {}
    for file, kind in zip(files, kinds, strict=True):
        if kind != main_kind:
            continue
        name = file.relative_to(path)
        if (stem := index.find(name.with_suffix("").as_posix())) is None:
            problems.append(f"{name}: no image")
        else:
            by_stem[stem] = _read_labelme(file) if kind == "LabelMe" else _read_yolo(file)
    return main_kind, by_stem


def _strip(path: Path) -> str:
    """A file's name without its ending and folders called images."""
    return Path(*(part for part in path.parent.parts if part != "images"), path.stem).as_posix()


@contextmanager
def _report_damage(path: Path, kind: str) -> Iterator[None]:
    """Turn what a file of another content raises into one line; lines that are more precise stay."""
    try:
        yield
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as {kind} ({describe_error(error)} is wrong)") from error


def _read_coco(path: Path, index: StemIndex, problems: list[str]) -> dict[str, Annotation]:
    by_stem, stem_of = {}, {}
    with _report_damage(path, "COCO's JSON of polygons"):
        content = json.loads(path.read_bytes())
        labels = {category["id"]: str(category["name"]) for category in content.get("categories", [])}
        for image in content["images"]:
            name = Path(str(image["file_name"])).with_suffix("").as_posix()
            if (stem := index.find(name)) is None:
                problems.append(f"{path.name}: there is no image {printable(image['file_name'])}")
                continue
            stem_of[image["id"]] = stem
            by_stem[stem] = Annotation((int(image["height"]), int(image["width"])))
        for shape in content["annotations"]:
            if shape["image_id"] not in stem_of:
                continue
            label = labels.get(shape["category_id"], str(shape["category_id"]))
            outline = shape["segmentation"]
            outlines = outline if isinstance(outline, list) else [outline]
            if not outlines:
                raise InputError(f"{path}: annotation {shape.get('id')} has a box only and no polygon")
            by_stem[stem_of[shape["image_id"]]].shapes += [(label, part) for part in outlines]
    return by_stem


def _read_labelme(path: Path) -> Annotation:
    with _report_damage(path, "LabelMe's JSON of polygons"):
        content = json.loads(path.read_bytes())
        annotation = Annotation((int(content["imageHeight"]), int(content["imageWidth"])))
        for shape in content["shapes"]:
            points = np.asarray(shape["points"], np.float64).reshape(-1, 2)
            kind = shape.get("shape_type") or "polygon"
            if kind == "rectangle":
                (left, top), (right, bottom) = points
                points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
            elif kind == "circle":
                centre, edge = points
                angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
                circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
                points = centre + np.linalg.norm(edge - centre) * circle
            elif kind != "polygon":
                raise InputError(f"{path}: a shape is a {kind}, which is no area: polygons are needed")
            annotation.shapes.append((str(shape["label"]), points.ravel().tolist()))
    return annotation


def _read_yolo(path: Path) -> Annotation:
    """Lines of a class and the corners x, y of a polygon, as shares of width and height."""
    annotation = Annotation(None)
    with _report_damage(path, "YOLO's segmentation"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not (words := line.split()):
                continue
            corners = [float(word) for word in words[1:]]
            if len(corners) == 4:
                reason = "is a box and no polygon: YOLO's segmentation is needed"
                raise InputError(f"{path}, line {number}: {reason}")
            if len(corners) < 6 or len(corners) % 2 or not all(-0.01 <= value <= 1.01 for value in corners):
                reason = "needs a class and three or more corners from 0 to 1"
                raise InputError(f"{path}, line {number}: {reason}")
            annotation.shapes.append((words[0], corners))
    return annotation


def _choose_labels(root: Path, by_stem: dict[str, Annotation], labels: Sequence[Any] | None) -> set[str]:
    """The labels that are polyps.

    Raises:
        InputError: there are several and none is named, or a named one does not occur.
    """
    counts = Counter(label for annotation in by_stem.values() for label, _ in annotation.shapes)
    listed = ", ".join(f"{printable(label)} ({count})" for label, count in counts.most_common(12))
    if labels is not None:
        polyps = {str(label) for label in labels}
        if absent := sorted(polyps - counts.keys()):
            raise InputError(
                f"data.polyp_labels={absent[0]} does not occur in {root}; its labels are {listed}"
            )
        return polyps
    if len(counts) > 1:
        raise InputError(
            f"{root}: the outlines have several labels, so that it is not clear what is polyp: {listed}. Add "
            f"{override_word('data.polyp_labels', sorted(counts))} or name only those that are polyps"
        )
    return set(counts)


def _draw_all(
    annotations: Path, by_stem: dict[str, Annotation], labels: set[str], images: dict[str, Path]
) -> Path:
    """The folder with a mask for each stem of the annotations, which is made if it is not there yet."""

    def describe_size(stem: str) -> Any:
        """The size, or the state of the image's file: an image is opened only where its mask is drawn."""
        status = images[stem].stat()
        return by_stem[stem].size or (status.st_size, status.st_mtime_ns)

    source = json.dumps([os.fspath(annotations), sorted(labels)])
    content = json.dumps(sorted((stem, describe_size(stem), a.shapes) for stem, a in by_stem.items()))
    location, state = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (source, content))
    home = user_cache_path("polyp") / "masks"
    folder = home / f"{location}-{state}"
    if folder.is_dir():
        return folder
    try:
        with atomic_folder(folder) as temporary:
            for stem, annotation in by_stem.items():
                size = annotation.size
                if size is None:
                    with open_image(images[stem]) as image:
                        size = image.height, image.width
                mask = _draw(annotation, size, labels, f"{annotations}: {stem}")
                file = temporary / f"{stem}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(cv2.imencode(".png", mask * 255)[1].tobytes())
        for outdated in set(home.glob(f"{location}-*")) - {folder}:
            shutil.rmtree(outdated, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {folder} ({describe_error(error)}): free some space") from error
    return folder


def _draw(annotation: Annotation, size: tuple[int, int], labels: set[str], name: str) -> np.ndarray:
    """The mask (H, W) uint8 in {0, 1} of the outlines with one of the labels."""
    from pycocotools import mask as coco

    height, width = size
    codes = []
    for label, outline in annotation.shapes:
        if label not in labels:
            continue
        try:
            if isinstance(outline, dict):
                is_list = isinstance(outline["counts"], list)
                if list(outline["size"]) != [*size] or (is_list and sum(outline["counts"]) != height * width):
                    raise ValueError("its run lengths are not of the image's size")
                code = coco.frPyObjects(outline, height, width) if is_list else outline
            else:
                corners = np.asarray(outline, np.float64)
                is_pairs = corners.ndim == 1 and len(corners) >= 6 and len(corners) % 2 == 0
                if not (is_pairs and np.isfinite(corners).all()):
                    raise ValueError("it has fewer than three corners, or others than numbers")
                if annotation.size is None:  # YOLO's shares
                    corners = corners * np.tile([width, height], len(corners) // 2)
                (code,) = coco.frPyObjects([corners.tolist()], height, width)
            codes.append(coco.decode(code))
        except Exception as error:  # damaged run lengths can raise anything
            raise InputError(f"{name}: an outline is damaged ({describe_error(error)})") from error
    return np.any(codes, axis=0).astype(np.uint8) if codes else np.zeros(size, np.uint8)
