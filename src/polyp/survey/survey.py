"""`polyp data`: a look at a data set before anything is trained on it, in the terminal and as a page."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from polyp.data.datamodule import DATASETS
from polyp.data.duplicates import Link, field_thumbnail, find_links, group_images, thumbnail
from polyp.data.folder import Inspection, Pair, find_pairs, map_pairs, read_pair
from polyp.data.splits import SUBSETS, draw_split, read_split, repair_split, split_stems
from polyp.data.traits import measure_traits
from polyp.errors import InputError, describe_error
from polyp.files import check_writable, write_text
from polyp.report.tables import to_csv
from polyp.survey.report import TITLE, build_page, print_summary

FEATURE_SIDE = 224  # pixels of the square that an encoder sees

OPTIONS = {
    "data.allow_empty=true": "--allow-empty",
    "model.encoder_weights=": "--weights ",
    "model.encoder=": "--encoder ",
}
"""The options of this command for the configuration keys that messages name."""

Encode = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Options:
    """The options of `polyp data`."""

    data: str = next(iter(DATASETS))
    """folder that holds images/ and masks/, or the name of a known data set"""
    root: str | None = None
    """folder where a known data set is or shall be"""
    archive: str | None = None
    """zip file of a known data set"""
    images: str = "images"
    """name of the folder's subfolder of images"""
    masks: str = "masks"
    """name of the folder's subfolder of masks"""
    split: str | None = None
    """official, pranet, random or a CSV, to see which near-duplicates straddle it (the data set's published split)"""
    allow_empty: bool = False
    """a mask without a polyp is no problem"""
    encoder: str | None = None
    """an encoder of smp whose features help to find near-duplicates, with --weights"""
    weights: str | None = None
    """its weights, a .safetensors or .pt file"""
    seed: int = 0
    """seed of the suggested split, and of --split random"""
    out: str | None = None
    """the page, with the suggested split beside it (outputs/data/NAME.html)"""


@dataclass(frozen=True)
class Survey:
    """The result of a look at every pair; arrays and lists are in the order of `pairs`.

    Attributes:
        name: of the data set.
        pairs: those without a problem.
        problems: everything wrong, a line each.
        sizes: (N, 2) int, height and width in pixels.
        traits: of each image, see `polyp.data.traits.measure_traits`.
        links: pairs of images that show the same.
        groups: (N,) int, the group of each image.
        split_name: of the split in use; None where there is none.
        split: the subsets in use, without images that have a problem; empty where there is none.
        suggestion: the suggested subsets; empty where there are too few images.
    """

    name: str
    pairs: list[Pair]
    problems: list[str]
    sizes: np.ndarray
    traits: list[dict[str, float]]
    links: list[Link]
    groups: np.ndarray
    split_name: str | None
    split: dict[str, list[str]]
    suggestion: dict[str, list[str]]

    @property
    def duplicates(self) -> list[list[int]]:
        """The groups of more than one image, as rows of `pairs`."""
        return [
            np.flatnonzero(self.groups == g).tolist() for g in np.flatnonzero(np.bincount(self.groups) > 1)
        ]

    @property
    def straddling(self) -> list[list[int]]:
        """The groups that are in more than one subset of the split in use."""
        subset = self.subset_of()
        return [
            rows
            for rows in self.duplicates
            if len({subset.get(self.pairs[row].stem, "") for row in rows} - {""}) > 1
        ]

    def subset_of(self) -> dict[str, str]:
        """The subset of each stem in the split in use."""
        return {stem: name for name, stems in self.split.items() for stem in stems}


def run(options: Options) -> None:
    """Look at a data set; print a summary, write a page and the suggested split beside it.

    Raises:
        InputError: the data set is not there or has no pair that can be used, the split or the weights do not fit, or
            the page cannot be written.
    """
    try:
        source = _find_source(options)
        encode = _load_encoder(options.encoder, options.weights)
        folder = source.prepare()
        name = options.data if options.data in DATASETS else folder.name
        page = Path(options.out).expanduser() if options.out else Path("outputs", "data", f"{name}.html")
        _check_page(page)
        split = options.split or getattr(source, "published_split", None)
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

    def inspect(number: int, pair: Pair) -> tuple[Any, ...] | list[str]:
        """The pair with its size, traits, thumbnails and features, or its problems."""
        arrays = read_pair(pair, options.allow_empty)
        if isinstance(arrays, list):
            return arrays
        image, mask = arrays
        features = encode(image) if encode else None
        return pair, mask.shape, measure_traits(mask), thumbnail(image), field_thumbnail(image), features

    results = map_pairs(inspect, pairs, "checking images")
    root = os.path.commonpath([pairs[0].image, pairs[0].mask]) + os.sep
    texts = [text.removeprefix(root) for result in results if isinstance(result, list) for text in result]
    problems = sorted([*problems, *map(_name_options, texts)])
    usable = [result for result in results if not isinstance(result, list)]
    if not usable:
        raise InputError(
            f"{root}: none of its {len(pairs)} pairs can be used; the first problem: {problems[0]}"
        )
    good, sizes, traits, *arrays = map(list, zip(*usable, strict=True))
    thumbnails, fields, features = (np.array(array) for array in arrays)
    stems = [pair.stem for pair in good]
    shares = np.array([row["polyp_share"] for row in traits], np.float32)
    links = find_links(thumbnails, fields, features if encode else None)
    groups = group_images(len(good), links)
    if published:
        group_of = dict(zip(stems, groups.tolist(), strict=True))
        subsets = {key: [stem for stem in members if stem in group_of] for key, members in published.items()}
        suggestion = repair_split(subsets, group_of)
        suggestion = suggestion if all(suggestion.values()) else {}
    else:
        inspection = Inspection(np.array(sizes), shares, thumbnails, "", fields)
        subsets = split_stems("random", stems, inspection, options.seed) if split else {}
        suggestion = draw_split(stems, groups, shares, options.seed)
    return Survey(name, good, problems, np.array(sizes), traits, links, groups, split, subsets, suggestion)


def _find_source(options: Options) -> Any:
    """The data set: a known one with the options that it has, or a folder."""
    kinds: Mapping[str, Any] = DATASETS
    if options.data not in kinds:
        if options.root or options.archive:
            raise InputError(f"--root and --archive are for known data sets, and {options.data} is a folder")
        return kinds["folder"](options.data, options.images, options.masks)
    kind = kinds[options.data]
    keys = {field.name for field in dataclasses.fields(kind)}
    given = {key: value for key in ("root", "archive") if (value := getattr(options, key)) is not None}
    if unknown := given.keys() - keys:
        raise InputError(f"--{unknown.pop()} means nothing for {options.data}")
    return kind(**given)


def _load_encoder(encoder: str | None, weights: str | None) -> Encode | None:
    """From images (H, W, 3) uint8 to features (K,): the mean over all places of an encoder's deepest layer."""
    if bool(encoder) != bool(weights):
        raise InputError(
            "--encoder NAME and --weights FILE go together: features of untrained weights tell nothing"
        )
    if not encoder or not weights:
        return None
    import segmentation_models_pytorch as smp
    import torch

    from polyp.model.network import check_encoder_name
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
        known = ", ".join(name for name in DATASETS if name != "folder")
        return f"{text.removeprefix('data.root=')}; give a folder or one of {known}"
    if " has no folder '" in text:
        text = text.removeprefix("data.root=")
    for key, option in OPTIONS.items():
        text = text.replace(key, option)
    text = re.sub(r"\bdata\.(root|archive|images|masks|split)=(?=\S)", r"--\1 ", text)
    return re.sub(r"\bdata\.(root|archive|images|masks|split)\b=?", r"--\1", text)


def _check_page(page: Path) -> None:
    try:
        if page.exists() and f"<title>{TITLE}" not in page.read_text("utf-8", errors="replace")[:300]:
            raise InputError(f"{page} is there and is not a page of `polyp data`: give another --out")
        check_writable(page.parent)
    except OSError as error:
        raise InputError(f"cannot write {page}: {describe_error(error)}") from error


def _write_split(subsets: dict[str, list[str]], page: Path) -> Path:
    """Write a split as NAME_split.csv, or with a number where another split has that name: it may be in use."""
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
