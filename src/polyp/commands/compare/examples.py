"""Example test images with the predictions of several runs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.recipes import Recipe, clip
from polyp.data.pairs import Pair
from polyp.data.split_files import SUBSETS
from polyp.errors import InputError
from polyp.inference.predictor import load_predictor
from polyp.metrics.overlap import FAILURE
from polyp.report.pictures import PREDICTION, TRUTH, contour
from polyp.runs.data import load_run_data

MAX_RECIPES = 8  # predictions side by side
FAILURES, DISAGREEMENTS, VARIETY = 4, 4, 4  # how many images are chosen for each reason
SIDE = 480  # the longer side of a picture in pixels


class Example(NamedTuple):
    """A test image with predictions."""

    stem: str
    title: str  # the stem and the reason for the choice of the image
    tiles: list[tuple[np.ndarray, str]]  # pictures (h, w, 3) uint8 RGB with captions


def choose_recipes(comparison: Comparison) -> list[Recipe]:
    """The comparable recipes with pictures: the best by validation, and others spread over the ranking."""
    recipes, half = comparison.comparable, MAX_RECIPES // 2
    if len(recipes) <= MAX_RECIPES:
        return recipes
    spread = np.linspace(half, len(recipes) - 1, MAX_RECIPES - half).round().astype(int)
    return [recipes[index] for index in (*range(half), *spread)]


def choose_images(comparison: Comparison) -> dict[str, str]:
    """The reason for each chosen stem: failures of the best, disagreement between runs, then variety."""
    best, stems = comparison.reference, comparison.reference.stems
    reasons = {}
    for index in np.argsort(best.dice, kind="stable")[:FAILURES]:
        if best.dice[index] < FAILURE:
            reasons[stems[index]] = f"a failure of #{best.number}"
    dice = np.array([recipe.dice for recipe in comparison.comparable])
    low, high = dice.min(axis=0), dice.max(axis=0)
    order = np.argsort(low - high, kind="stable")
    for index in [index for index in order if stems[index] not in reasons][:DISAGREEMENTS]:
        if low[index] < high[index]:
            reasons[stems[index]] = f"the runs disagree, Dice from {low[index]:.2f} to {high[index]:.2f}"
    for stem in _choose_variety(best):
        share = best.rows["polyp_share"][stem] if "polyp_share" in best.rows else None
        reasons.setdefault(stem, "chosen for variety" if share is None else f"polyp {share:.1%} of the image")
    return reasons


def _choose_variety(recipe: Recipe) -> list[str]:
    """Stems with very different polyps, chosen by farthest point sampling from the median one."""
    traits = recipe.rows.reindex(columns=["polyp_share", "irregularity", "polyps"])
    ranks = traits.dropna(axis="columns").rank(method="first", pct=True)
    if ranks.empty:
        return recipe.stems[:VARIETY]
    stems = [(ranks - 0.5).abs().sum(axis="columns").idxmin()]
    while len(stems) < min(VARIETY, len(ranks)):
        distances = [((ranks - ranks.loc[stem]) ** 2).sum(axis="columns") for stem in stems]
        stems.append(ranks.index[np.argmax(np.min(distances, axis=0))])
    return sorted(stems, key=lambda stem: traits.loc[stem, ranks.columns[0]])


def find_pairs(comparison: Comparison, root: str | None = None) -> dict[str, Pair]:
    """The images and masks of the best run by stem; `root` has images/ and masks/ if the data have moved.

    Raises:
        InputError: the data are missing or have changed.
    """
    run = comparison.reference.first
    data = load_run_data(run.folder, run.config, root, needed=False)
    return {pair.stem: pair for subset in SUBSETS for pair in data.get_pairs(subset)}


def draw_examples(
    comparison: Comparison, recipes: Sequence[Recipe], pairs: Mapping[str, Pair]
) -> list[Example]:
    """The chosen images of `find_pairs` with predictions of recipes.

    Raises:
        InputError: an image or a checkpoint is missing or has changed.
    """
    rows = comparison.reference.rows
    images, examples = {}, {}
    for stem, reason in choose_images(comparison).items():
        if stem not in pairs:
            raise InputError(f"the image {stem} is no longer there")
        image, mask = pairs[stem].read()
        if np.sum(mask == 1) != rows["tp"][stem] + rows["fn"][stem]:
            raise InputError(f"the mask of {stem} is no longer what the runs were tested on")
        images[stem] = image, contour(image.copy(), mask == 1, TRUTH)
        tiles = [(_shrink(image), "image"), (_shrink(images[stem][1]), "truth")]
        examples[stem] = Example(stem, f"{stem}: {reason}", tiles)
    for recipe in recipes:
        seed = f", seed {recipe.first.seed}" * (len(recipe.seeds) > 1)
        for run in recipe.one_seed(recipe.first.seed):
            stems = [stem for stem in images if stem in run.scores.index]
            if not stems:
                continue  # a fold without any of the images
            predictor = load_predictor([str(run.folder)])
            for stem in stems:
                image, truth = images[stem]
                mask = predictor.predict(image) >= predictor.threshold
                caption = f"#{recipe.number} {clip(recipe.label, 30)}{seed}: {run.scores['dice'][stem]:.2f}"
                examples[stem].tiles.append((_shrink(contour(truth.copy(), mask, PREDICTION)), caption))
    return list(examples.values())


def _shrink(picture: np.ndarray) -> np.ndarray:
    scale = SIDE / max(picture.shape[:2])
    size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
