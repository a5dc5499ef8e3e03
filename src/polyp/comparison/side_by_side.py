"""The same test images under several runs: image, truth, and what each run finds."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from polyp.comparison.differences import Comparison
from polyp.comparison.found import Run
from polyp.comparison.recipes import Recipe
from polyp.data.pairs import Pair, read_image, read_mask
from polyp.errors import InputError
from polyp.inference.predictor import load_predictor
from polyp.report.pictures import PREDICTION, TRUTH, contour
from polyp.runs.data import load_run_data

SHOWN = 8
"""Recipes at most; more would be too small to see."""

VARIED, DISPUTED = 6, 4
"""How many images are chosen for their variety, and for what the runs disagree on."""

SIDE = 320
"""The longer side of a picture, in pixels."""


@dataclass(frozen=True)
class Row:
    """One test image.

    Attributes:
        stem: its name.
        why: what it was chosen for.
        tiles: pictures (h, w, 3) uint8 RGB with their captions: image, truth (green), and each run's outline (yellow).
    """

    stem: str
    why: str
    tiles: list[tuple[np.ndarray, str]]


def shown(comparison: Comparison) -> list[Recipe]:
    """The recipes to show, all on the reference's test images: the best by validation, and others over the ranks."""
    able = [r for r in comparison.recipes if r is comparison.reference or r.number in comparison.differences]
    if len(able) <= SHOWN:
        return able
    places = [*range(SHOWN // 2), *np.linspace(SHOWN // 2, len(able) - 1, SHOWN - SHOWN // 2).round().astype(int)]
    return [able[place] for place in places]


def chosen(comparison: Comparison) -> dict[str, str]:
    """The stems to show and why: spread over size and shape, then those whose Dice differs most over recipes."""
    able = [r for r in comparison.recipes if r is comparison.reference or r.number in comparison.differences]
    rows, stems = comparison.reference.first.rows, comparison.reference.stems
    why = {stem: f"polyp {rows[stem].get('polyp_share', 0):.1%} of the image" for stem in _varied(rows, stems)}
    spread = np.std([recipe.dice for recipe in able], axis=0)
    for place in np.argsort(-spread, kind="stable"):
        if len(why) >= min(VARIED + DISPUTED, len(stems)) or spread[place] == 0:
            break
        why.setdefault(stems[place], f"the runs disagree: Dice has a standard deviation of {spread[place]:.2f}")
    return why


def _varied(rows: dict[str, dict[str, float]], stems: Sequence[str]) -> list[str]:
    """Stems far apart in what is known of the polyps, from the middle on (farthest point first)."""
    known = [name for name in ("polyp_share", "irregularity", "polyps") if all(name in rows[stem] for stem in stems)]
    if not known:
        return list(stems[:VARIED])
    ranks = np.array([np.argsort(np.argsort([rows[stem][name] for stem in stems])) for name in known]).T / len(stems)
    taken = [int(np.argmin(np.abs(ranks - 0.5).sum(axis=1)))]
    while len(taken) < min(VARIED, len(stems)):
        taken.append(int(np.argmax(np.min([((ranks - ranks[one]) ** 2).sum(axis=1) for one in taken], axis=0))))
    return sorted((stems[place] for place in taken), key=lambda stem: rows[stem][known[0]])


def rows(comparison: Comparison, root: str | None = None) -> list[Row]:
    """The pictures of the chosen images.

    Args:
        comparison: whose reference's test images.
        root: a folder with images/ and masks/, where the data are no longer where the runs found them.

    Raises:
        InputError: data or a checkpoint are no longer there, or no longer what they were.
    """
    why = chosen(comparison)
    pairs = _pairs(comparison.reference.first, root)
    if missing := [stem for stem in why if stem not in pairs]:
        raise InputError(f"the image {missing[0]} is no longer there")
    images = {stem: (read_image(pairs[stem].image), read_mask(pairs[stem].mask)) for stem in why}
    for stem, (_, mask) in images.items():
        row = comparison.reference.first.rows[stem]
        if mask.sum() != row["tp"] + row["fn"]:
            raise InputError(f"the mask of {stem} is no longer what the runs were tested on")
    tiles = {
        stem: [(_small(image), "image"), (_small(contour(image.copy(), mask, TRUTH)), "truth")]
        for stem, (image, mask) in images.items()
    }
    for recipe in shown(comparison):
        predictor = load_predictor([str(recipe.first.folder)])
        for stem, (image, mask) in images.items():
            found = predictor.predict(image) >= predictor.threshold
            outlined = contour(contour(image.copy(), mask, TRUTH), found, PREDICTION)
            dice = recipe.first.rows[stem]["dice"]
            seed = f", seed {recipe.first.seed}" if len(recipe.seeds) > 1 else ""
            tiles[stem].append((_small(outlined), f"{recipe.title}{seed}: {dice:.2f}"))
    return [Row(stem, why[stem], tiles[stem]) for stem in why]


def _pairs(run: Run, root: str | None) -> dict[str, Pair]:
    data = load_run_data(run.folder, run.config, root, needed=False)
    return {pair.stem: pair for pair in data.get_pairs("test")}


def _small(picture: np.ndarray) -> np.ndarray:
    scale = SIDE / max(picture.shape[:2])
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
