"""`polyp data`: a look at a data set before anything is trained on it, in the terminal and as a page."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from polyp.commands.data.options import Options
from polyp.commands.data.report import TITLE, build_page, print_summary
from polyp.data.duplicates import field_thumbnail, find_links, group_images, thumbnail
from polyp.data.pairs import Pair, find_pairs, map_pairs, read_pair
from polyp.data.sources import NAMED, find_source
from polyp.data.splits import SUBSETS, draw_split, read_split, repair_split
from polyp.data.traits import measure_traits
from polyp.errors import InputError, describe_error
from polyp.files import check_writable, write_text
from polyp.report.tables import to_csv

FEATURE_SIDE = 224  # pixels of the square that an encoder sees

Encode = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Image:
    """An image without a problem.

    Attributes:
        pair: its files.
        size: height and width in pixels.
        traits: see `polyp.data.traits.measure_traits`.
        thumbnail, field: (32, 32) uint8, see `polyp.data.duplicates`.
        features: (K,) of an encoder, or None.
    """

    pair: Pair
    size: tuple[int, int]
    traits: dict[str, float]
    thumbnail: np.ndarray
    field: np.ndarray
    features: np.ndarray | None


@dataclass(frozen=True)
class Survey:
    """The result of a look at every pair.

    Attributes:
        name: of the data set.
        images: those without a problem.
        problems: everything wrong, a line each.
        groups: of images that show the same, at least two each, with the reasons.
        split_name: of the split in use; None where there is none.
        split: the subsets in use, without images that have a problem; empty where there is none.
        suggestion: the suggested subsets; empty where there are too few images.
    """

    name: str
    images: list[Image]
    problems: list[str]
    groups: list[tuple[list[Image], list[str]]]
    split_name: str | None
    split: dict[str, list[str]]
    suggestion: dict[str, list[str]]


def run(options: Options) -> None:
    """Look at a data set; print a summary, write a page and the suggested split beside it.

    Raises:
        InputError: the data set is not there or has no pair that can be used, the split or the weights do not
            fit, or the page cannot be written.
    """
    try:
        source = find_source(options.data, options.root, options.archive, options.images, options.masks)
        encode = _load_encoder(options.encoder, options.weights)
        folder = source.prepare()
        name = options.data if options.data in NAMED else folder.name
        page = Path(options.out).expanduser() if options.out else Path("outputs", "data", f"{name}.html")
        _check_page(page)
        split = options.split or source.default_split
        pairs, problems = find_pairs(folder, source.images, source.masks)
        survey = _look(name, pairs, problems, split, options, encode)
        suggestion = _write_split(survey.suggestion, page) if survey.suggestion else None
        build_page(survey, suggestion).write(page)
    except InputError as error:
        raise InputError(_name_options(str(error))) from error
    print_summary(survey, page, suggestion)


def _look(
    name: str,
    pairs: Sequence[Pair],
    problems: Sequence[str],
    split: str | None,
    options: Options,
    encode: Encode | None,
) -> Survey:
    published: dict[str, list[str]] = {}
    if split is not None and split != "random":  # before long work
        published = read_split(split, [pair.stem for pair in pairs])

    def inspect(number: int, pair: Pair) -> Image | list[str]:
        """The image, or its problems."""
        arrays = read_pair(pair, options.allow_empty)
        if isinstance(arrays, list):
            return arrays
        image, mask = arrays
        looks = thumbnail(image), field_thumbnail(image), encode(image) if encode else None
        return Image(pair, (mask.shape[0], mask.shape[1]), measure_traits(mask), *looks)

    results = map_pairs(inspect, pairs, "checking images")
    images = [result for result in results if isinstance(result, Image)]
    root = os.path.commonpath([pairs[0].image, pairs[0].mask]) + os.sep
    texts = [text.removeprefix(root) for result in results if isinstance(result, list) for text in result]
    problems = sorted([*problems, *map(_name_options, texts)])
    if not images:
        raise InputError(f"{root}: none of its {len(pairs)} pairs can be used, the first: {problems[0]}")
    stems = [image.pair.stem for image in images]
    shares = np.array([image.traits["polyp_share"] for image in images], np.float32)
    thumbnails = np.stack([image.thumbnail for image in images])
    fields = np.stack([image.field for image in images])
    links = find_links(thumbnails, fields, np.array([image.features for image in images]) if encode else None)
    numbers = group_images(len(images), links)
    groups = []
    for number in np.flatnonzero(np.bincount(numbers) > 1):
        rows = np.flatnonzero(numbers == number).tolist()
        groups.append(([images[row] for row in rows], [link.why for link in links if link.first in rows]))
    if published:
        group_of = dict(zip(stems, numbers.tolist(), strict=True))
        subsets = {key: [stem for stem in members if stem in group_of] for key, members in published.items()}
        suggestion = repair_split(subsets, group_of)
        suggestion = suggestion if all(suggestion.values()) else {}
    else:
        suggestion = draw_split(stems, numbers, shares, options.seed)
        without_features = group_images(len(images), find_links(thumbnails, fields))  # as in training
        subsets = draw_split(stems, without_features, shares, options.seed) if split else {}
    return Survey(name, images, problems, groups, split, subsets, suggestion)


def _load_encoder(encoder: str | None, weights: str | None) -> Encode | None:
    """From images (H, W, 3) uint8 to features (K,), the means of an encoder's deepest layer."""
    if bool(encoder) != bool(weights):
        raise InputError(
            "--encoder NAME and --weights FILE go together: features of untrained weights tell nothing"
        )
    if not encoder or not weights:
        return None
    import segmentation_models_pytorch as smp
    import torch

    from polyp.model.fitting import check_encoder_name
    from polyp.model.weights import load_encoder_weights, normalisation

    check_encoder_name(encoder)
    network = smp.encoders.get_encoder(encoder, weights=None).eval()
    load_encoder_weights(network, encoder, weights)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation(encoder, weights))

    def encode(image: np.ndarray) -> np.ndarray:
        small = cv2.resize(image, (FEATURE_SIDE, FEATURE_SIDE), interpolation=cv2.INTER_AREA)
        with torch.inference_mode():
            pixels = (torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255 - mean) / std
            return network(pixels)[-1].mean(dim=(0, 2, 3)).numpy()

    return encode


def _name_options(text: str) -> str:
    """A message that names configuration keys, with the options of `polyp data` instead."""
    if text.startswith("data.root=") and " is not a folder" in text:
        return f"{text.removeprefix('data.root=')}; give a folder, {' or '.join(NAMED)}"
    if " has no folder '" in text:
        text = text.removeprefix("data.root=")
    text = text.replace("data.allow_empty=true", "--allow-empty").replace("encoder_weights", "weights")
    keys = r"\b(?:data|model)\.(root|archive|images|masks|split|encoder|weights)\b"
    return re.sub(keys, r"--\1", re.sub(keys + r"=(?=\S)", r"--\1 ", text))


def _check_page(page: Path) -> None:
    try:
        if page.exists() and f"<title>{TITLE}" not in page.read_text("utf-8", errors="replace")[:300]:
            raise InputError(f"{page} is there and is not a page of `polyp data`: give another --out")
        check_writable(page.parent)
    except OSError as error:
        raise InputError(f"cannot write {page}: {describe_error(error)}") from error


def _write_split(subsets: dict[str, list[str]], page: Path) -> Path:
    """Write NAME_split.csv, with a number if another split has that name, which may be in use."""
    rows = sorted((stem, name) for name in SUBSETS for stem in subsets[name])
    text = to_csv([{"stem": stem, "subset": name} for stem, name in rows], ("stem", "subset"))
    number, file = 1, page.with_name(f"{page.stem}_split.csv")
    while file.exists() and file.read_bytes() != text.encode():
        number += 1
        file = page.with_name(f"{page.stem}_split_{number}.csv")
    if not file.exists():
        write_text(file, text)
    return file


def survey(**options: Any) -> None:
    """Look at a data set as `run` does."""
    run(Options(**options))
