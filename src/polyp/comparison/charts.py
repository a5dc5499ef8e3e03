"""Charts of a comparison: curves, Dice against cost, what each hyperparameter does. No number is made here.

Each function returns a matplotlib figure that is legible at half a page's width and in black and white.
"""

import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from polyp.comparison import curves
from polyp.comparison.differences import Comparison
from polyp.comparison.recipes import Recipe, plain, short

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which those who see fewer colours can tell apart."""

SIZE = (4.4, 3.3)
"""Of a chart, in inches: two stand side by side on a page, and its letters are still read on a phone."""

BOX = {"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.8}
"""Behind text that may lie on lines."""

LEAST = 0.03
"""Of Dice, that an axis spans."""

MANY = 6
"""Values of a number from which on it has an axis of its own instead of a place for each value."""


def _figure(size: tuple[float, float] = SIZE) -> Figure:
    return Figure(figsize=size, layout="constrained")


def _axes(figure: Figure, x: str, y: str) -> Axes:
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def _colours(recipes: Sequence[Recipe]) -> tuple[list[Any], ScalarMappable | None]:
    """A colour for each recipe: its own if they are few, else from dark to light by validation Dice."""
    if len(recipes) <= len(COLOURS):
        return list(COLOURS[: len(recipes)]), None
    scale = _scale(recipes)
    return list(scale.to_rgba(np.array([recipe.val for recipe in recipes]))), scale


def _scale(recipes: Sequence[Recipe]) -> ScalarMappable:
    values = [recipe.val for recipe in recipes]
    return ScalarMappable(Normalize(min(values), max(values)), colormaps["viridis"])


def curve(comparison: Comparison, what: str) -> Figure:
    """A curve of training (thin, dashed) and validation (solid) for each run; what is unfinished is grey.

    Args:
        comparison: whose runs.
        what: loss or dice.
    """
    figure = _figure()
    axes = _axes(figure, "epoch", {"loss": "loss", "dice": "Dice at network resolution"}[what])
    colours, scale = _colours(comparison.recipes)
    drawn = [(run, "0.6") for run in comparison.unfinished]
    drawn += [(run, c) for r, c in zip(comparison.recipes, colours, strict=True) for run in r.runs][::-1]
    for run, colour in drawn:
        for stage, style in (("train", {"ls": ":", "lw": 0.9, "alpha": 0.8}), ("val", {"lw": 1.6})):
            points = curves.read(run.folder).get(f"{stage}/{what}", [])
            marker = "o" if len(points) < 2 else None
            axes.plot(range(1, len(points) + 1), points, color=colour, marker=marker, ms=3, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.plot([], [], color="0.3", lw=1.6, label="validation")
    axes.plot([], [], color="0.3", lw=0.9, ls=":", label="training")
    if scale is not None:
        figure.colorbar(scale, ax=axes, label="validation Dice in the end")
    else:
        for recipe, colour in zip(comparison.recipes, colours, strict=True):
            axes.plot([], [], color=colour, lw=3, label=recipe.title)
    if comparison.unfinished:
        axes.plot([], [], color="0.6", lw=3, label="unfinished")
    axes.legend(fontsize=8, frameon=False)
    return figure


def against(comparison: Comparison, x: Callable[[Recipe], float | None], name: str) -> Figure:
    """Validation Dice against what it costs, with the Pareto front: the recipes that none beats in both.

    Args:
        comparison: whose recipes.
        x: the cost; None leaves a recipe out.
        name: the cost's, with its unit.
    """
    figure = _figure()
    axes = _axes(figure, name, "validation Dice")
    points = [(cost, recipe) for recipe in comparison.recipes if (cost := x(recipe)) is not None]
    front = pareto([(cost, recipe.val) for cost, recipe in points])
    colours = dict(zip((r.number for r in comparison.recipes), _colours(comparison.recipes)[0], strict=True))
    for cost, recipe in points:
        spread = recipe.deviation(lambda run: run.val)
        axes.errorbar(
            cost, recipe.val, spread, fmt="o", ms=7, color=colours[recipe.number], mec="0.2", mew=0.6, capsize=3
        )
    corners = sorted((points[place][0], points[place][1].val) for place in front)
    axes.plot(*zip(*corners, strict=True), color="0.3", lw=1.2, drawstyle="steps-post", zorder=0)
    named = front if len(points) > len(COLOURS) else range(len(points))
    spans = float(np.ptp([cost for cost, _ in points])) or 1.0, max(LEAST, np.ptp([r.val for _, r in points]))
    several = any(len(recipe.seeds) > 1 for recipe in comparison.recipes)  # a bar stands above a point
    for (cost, dice), numbers in _near([points[place] for place in named], spans).items():
        place: dict[str, Any] = {"xytext": (5 if several else 0, 7), "ha": "left" if several else "center"}
        axes.annotate(", ".join(numbers), (cost, dice), fontsize=9, textcoords="offset points", **place)
    costs = [cost for cost, _ in points]
    if min(costs) > 0 and max(costs) / min(costs) > 30:
        axes.set_xscale("log")
    axes.margins(0.13)
    _widen(axes)
    return figure


def _widen(axes: Axes) -> None:
    """Show a span of Dice of LEAST, so that trifles look like trifles."""
    low, high = axes.get_ylim()
    beside = max(0.0, LEAST - (high - low)) / 2
    axes.set_ylim(low - beside, high + beside)


def _near(points: Sequence[tuple[float, Recipe]], spans: Sequence[float]) -> dict[tuple[float, float], list[str]]:
    """The numbers of recipes by their place; those that lie too near to each other share one."""
    found: dict[tuple[float, float], list[str]] = {}
    for x, recipe in points:
        near = (p for p in found if abs(p[0] - x) < 0.15 * spans[0] and abs(p[1] - recipe.val) < 0.06 * spans[1])
        found.setdefault(next(near, (x, recipe.val)), []).append(f"#{recipe.number}")
    return found


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points (cost, gain) that no other beats: none costs no more and gains more, or the reverse."""
    return [
        place
        for place, (cost, gain) in enumerate(points)
        if not any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in points)
    ]


def effects(comparison: Comparison) -> list[tuple[str, Figure]]:
    """For each hyperparameter that varies, validation Dice by its value: a point for each run, a bar for the mean.

    Keys that always change together share a chart.
    """
    return [(name, _effect(comparison.recipes, keys, name)) for name, keys in _together(comparison).items()]


def _together(comparison: Comparison) -> dict[str, list[str]]:
    """The keys that vary, those that always change together under one name."""
    groups = defaultdict(list)
    for key in comparison.varying:
        values = [str(recipe.values.get(key)) for recipe in comparison.recipes]
        groups[tuple(values.index(value) for value in values)].append(key)
    names = short(comparison.varying)
    return {" and ".join(names[key] for key in keys): keys for keys in groups.values()}


def _effect(recipes: Sequence[Recipe], keys: Sequence[str], name: str) -> Figure:
    figure = _figure((4.4, 2.9))
    axes = _axes(figure, name, "validation Dice")
    values = [recipe.values.get(keys[0]) for recipe in recipes]
    found = [recipe.val for recipe in recipes]
    if _is_axis(values):
        axes.plot(np.array(values, dtype=float), found, "o", color=COLOURS[0], alpha=0.8)
        if _is_log(values):
            axes.set_xscale("log")
        _widen(axes)
        return figure
    kinds = _ordered(values)
    for place, kind in enumerate(kinds):
        group = [recipe for recipe, value in zip(recipes, values, strict=True) if str(value) == str(kind)]
        points = [run.val for recipe in group for run in recipe.runs]
        beside = np.linspace(-0.12, 0.12, len(points)) if len(points) > 1 else np.zeros(1)
        mean = float(np.mean([recipe.val for recipe in group]))
        axes.plot([place - 0.25, place + 0.25], [mean, mean], color=COLOURS[1], lw=3)
        axes.plot(place + beside, points, "o", color=COLOURS[0], alpha=0.7, mew=0)
        axes.annotate(f"{mean:.3f}", (place + 0.28, mean), fontsize=9, va="center", color=COLOURS[1])
    ticks = [next(r for r, value in zip(recipes, values, strict=True) if str(value) == str(kind)) for kind in kinds]
    labels = [" / ".join(_clipped(plain(recipe.values.get(key))) for key in keys) for recipe in ticks]
    axes.set_xticks(range(len(kinds)), labels, rotation=20 if sum(map(len, labels)) > 45 else 0)
    axes.set_xlim(-0.5, len(kinds) - 0.3)
    _widen(axes)
    return figure


def parallel(comparison: Comparison) -> Figure:
    """Parallel coordinates: a line for each recipe through its hyperparameters to its validation Dice."""
    recipes, keys = comparison.recipes, _together(comparison)
    figure = _figure((max(SIZE[0], 1.5 * (len(keys) + 1)), SIZE[1]))
    axes = figure.add_subplot()
    axes.axis("off")
    names = [*(name.replace(" and ", "\n") for name in keys), "val Dice"]
    columns: list[np.ndarray] = []
    for place, group in enumerate(keys.values()):
        heights, ticks = _heights([recipe.values.get(group[0]) for recipe in recipes])
        columns.append(heights)
        _upright(axes, place, ticks)
    found = np.array([recipe.val for recipe in recipes])
    low, span = found.min(), np.ptp(found) or 1.0
    columns.append((found - low) / span)
    _upright(axes, len(keys), {f"{low + share * span:.3f}": share for share in (0, 0.25, 0.5, 0.75, 1)})
    colours = _scale(recipes).to_rgba(found)
    path = np.linspace(0, 1, 30)
    ease = path * path * (3 - 2 * path)  # level at both ends, so that lines can be followed through an axis
    for row in reversed(range(len(recipes))):
        heights = np.array([column[row] for column in columns])
        steps = heights[:-1, None] + np.diff(heights)[:, None] * ease
        across = np.arange(len(keys))[:, None] + path
        axes.plot(across.ravel(), steps.ravel(), color=colours[row], lw=1.6, alpha=0.85)
    for place, name in enumerate(names):
        axes.text(place, 1.08 + 0.14 * (place % 2), name, ha="center", va="bottom", fontsize=9, weight="bold")
    axes.set_xlim(-0.35, len(keys) + 0.35)
    axes.set_ylim(-0.08, 1.36)
    return figure


def _upright(axes: Axes, place: int, ticks: dict[str, float]) -> None:
    axes.plot([place, place], [-0.03, 1.03], color="0.5", lw=1, zorder=0)
    for text, height in ticks.items():
        axes.text(place + 0.04, height, _clipped(text), fontsize=8, va="center", bbox=BOX, zorder=5)


def _heights(values: Sequence[Any]) -> tuple[np.ndarray, dict[str, float]]:
    """Where on an axis from 0 to 1 each value stands, and what is written beside it."""
    if _is_axis(values):
        numbers = np.log10(values) if _is_log(values) else np.array(values, dtype=float)
        low, span = numbers.min(), np.ptp(numbers)
        ends = {share: low + share * span for share in (0.0, 0.5, 1.0)}
        told = {plain(float(f"{10**end if _is_log(values) else end:.2g}")): share for share, end in ends.items()}
        return (numbers - low) / span, told
    kinds = [str(kind) for kind in _ordered(values)]
    ticks = {plain(kind): place / max(1, len(kinds) - 1) for place, kind in enumerate(_ordered(values))}
    # Recipes of one value a little apart, so that their lines can be told apart.
    places = np.array([kinds.index(str(value)) for value in values]) / max(1, len(kinds) - 1)
    return places + np.linspace(0.02, -0.02, len(values)), ticks


def _is_axis(values: Sequence[Any]) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and len(set(values)) > MANY


def _is_log(values: Sequence[Any]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= 10


def _ordered(values: Sequence[Any]) -> list[Any]:
    """Each value once: numbers by size, then texts, then none."""
    kinds = list({str(value): value for value in values}.values())
    return sorted(kinds, key=lambda v: (v is None, isinstance(v, str), v if isinstance(v, int | float) else 0, str(v)))


def _clipped(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:17]}…"


def tiles(pictures: Sequence[tuple[np.ndarray, str]], title: str) -> Figure:
    """Pictures (h, w, 3) uint8 RGB with captions, five in a row."""
    rows = -(-len(pictures) // 5)
    figure = _figure((10, 2.3 * rows + 0.4))
    figure.suptitle(title, fontsize=10, parse_math=False)  # a name with two $ is no formula
    for place, (picture, caption) in enumerate(pictures, 1):
        axes = figure.add_subplot(rows, 5, place)
        axes.imshow(picture)
        axes.axis("off")
        axes.set_title("\n".join(textwrap.wrap(caption, 26)), fontsize=8, parse_math=False)
    return figure
