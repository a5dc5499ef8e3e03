"""Charts of a comparison: curves, Dice against cost, the effect of each hyperparameter.

Each function returns charts by the name of their file: matplotlib figures, legible at half a page's width and
in black and white, with their captions.
"""

import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.recipes import Recipe, format_setting, shorten_keys

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, whose colours people with colour blindness can distinguish."""

SIZE = (4.4, 3.3)
"""Of a chart, in inches: two stand side by side on a page, and the letters are legible on a phone."""

MIN_SPAN = 0.03
"""Of Dice, that an axis shows at least, so that small differences look small."""

MAX_TICKS = 6
"""Values of a number that have a tick each; more have an axis."""


Charts = dict[str, tuple[Figure, str]]

COSTS: dict[str, tuple[str, Callable[[Recipe], float | None]]] = {
    "parameters": ("parameters, millions", lambda recipe: recipe.parameters / 1e6),
    "gmacs": ("GMACs per image", lambda recipe: recipe.first.gmacs),
    "minutes": ("minutes of training", lambda recipe: recipe.means["minutes"]),
}
"""What a recipe costs, by a key for files: the name with its unit, and the number."""


def _axes(x: str, y: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _colours(recipes: Sequence[Recipe]) -> tuple[dict[int, Any], ScalarMappable | None]:
    """A colour by recipe's number: of the palette if they are few, else of a scale of validation Dice."""
    numbers, values = [recipe.number for recipe in recipes], [recipe.val for recipe in recipes]
    if len(recipes) <= len(COLOURS):
        return dict(zip(numbers, COLOURS, strict=False)), None
    scale = ScalarMappable(Normalize(min(values), max(values)), colormaps["viridis"])
    return dict(zip(numbers, scale.to_rgba(np.array(values)), strict=True)), scale


def plot_curves(comparison: Comparison) -> Charts:
    """Loss and Dice by epoch: a curve of training and validation for each run; unfinished runs are grey."""
    if not any(run.curves for run in (*comparison.runs, *comparison.unfinished)):
        return {}
    caption = "by epoch: training dotted, validation solid."
    return {name: (_plot_curve(comparison, name), f"{name.title()} {caption}") for name in ("loss", "dice")}


def _plot_curve(comparison: Comparison, name: str) -> Figure:
    figure, axes = _axes("epoch", {"loss": "loss", "dice": "Dice at network resolution"}[name])
    colours, scale = _colours(comparison.recipes)
    lines = [(run, "0.6") for run in comparison.unfinished]
    lines += [(run, colours[recipe.number]) for recipe in reversed(comparison.recipes) for run in recipe.runs]
    stages: dict[str, dict[str, Any]] = {"train": {"ls": ":", "lw": 0.9, "alpha": 0.8}, "val": {"lw": 1.6}}
    for run, colour in lines:
        for stage, style in stages.items():
            points = run.curves.get(f"{stage}/{name}", [])
            marker = "o" if len(points) == 1 else None
            axes.plot(range(1, len(points) + 1), points, color=colour, marker=marker, ms=3, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.plot([], [], color="0.3", label="validation", **stages["val"])
    axes.plot([], [], color="0.3", label="training", **stages["train"])
    if scale is not None:
        figure.colorbar(scale, ax=axes, label="validation Dice in the end")
    else:
        for recipe in comparison.recipes:
            axes.plot([], [], color=colours[recipe.number], lw=3, label=recipe.title)
    if comparison.unfinished:
        axes.plot([], [], color="0.6", lw=3, label="unfinished")
    axes.legend(fontsize=8, frameon=False)
    return figure


def plot_costs(comparison: Comparison) -> Charts:
    """For each of COSTS that is known, validation Dice against it, with the Pareto front."""
    charts: Charts = {}
    bars = " Bars: sd between seeds." * any(recipe.deviations for recipe in comparison.recipes)
    for key, (name, cost) in COSTS.items():
        points = [(value, recipe) for recipe in comparison.recipes if (value := cost(recipe)) is not None]
        if points:
            figure = _plot_cost(name, points, _colours(comparison.recipes)[0])
            caption = f"Validation Dice against {name}. Line: the Pareto front, which none beats in both."
            charts[f"dice_against_{key}"] = figure, caption + bars
    return charts


def _plot_cost(name: str, points: Sequence[tuple[float, Recipe]], colours: Mapping[int, Any]) -> Figure:
    figure, axes = _axes(name, "validation Dice")
    for value, recipe in points:
        deviation, colour = recipe.deviations.get("val/dice"), colours[recipe.number]
        axes.errorbar(value, recipe.val, deviation, fmt="o", ms=7, color=colour, mec="0.2", capsize=3)
    front = [points[place] for place in find_pareto_front([(value, recipe.val) for value, recipe in points])]
    for value, recipe in points if len(points) <= len(COLOURS) else front:
        place = value, recipe.val
        axes.annotate(f"#{recipe.number}", place, (5, 7), textcoords="offset points", fontsize=9)
    x, y = zip(*sorted((value, recipe.val) for value, recipe in front), strict=True)
    axes.plot(x, y, color="0.3", lw=1.2, drawstyle="steps-post", zorder=0)
    values = [value for value, _ in points]
    if min(values) > 0 and max(values) / min(values) > 30:
        axes.set_xscale("log")
    else:
        axes.locator_params("x", nbins=5)
    axes.margins(0.13)
    _widen(axes)
    return figure


def _widen(axes: Axes) -> None:
    low, high = axes.get_ylim()
    margin = max(0.0, MIN_SPAN - (high - low)) / 2
    axes.set_ylim(low - margin, high + margin)


def find_pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points (cost, gain) that no other beats.

    A point beats another if it costs no more and gains no less, and one of both is better.
    """
    return [
        place
        for place, (cost, gain) in enumerate(points)
        if not any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in points)
    ]


def plot_effects(comparison: Comparison) -> Charts:
    """For each hyperparameter that varies, validation Dice by its value.

    Keys that always change together share a chart.
    """
    charts: Charts = {}
    names = shorten_keys(comparison.keys)
    for keys in comparison.varying:
        name = " and ".join(names[key] for key in keys)
        caption = (
            f"Validation Dice by {name}: a point for each run, a bar for the mean of the configurations."
        )
        charts[f"effect_{name.replace(' ', '_')}"] = _plot_effect(comparison.recipes, keys, name), caption
    return charts


def _plot_effect(recipes: Sequence[Recipe], keys: Sequence[str], title: str) -> Figure:
    figure, axes = _axes(title, "validation Dice", (4.4, 2.9))
    groups: dict[Any, list[Recipe]] = defaultdict(list)
    for recipe in sorted(recipes, key=lambda recipe: _order(recipe.values.get(keys[0]))):
        groups[recipe.values.get(keys[0])].append(recipe)
    labels = [
        " / ".join(_clip(format_setting(group[0].values.get(key))) for key in keys)
        for group in groups.values()
    ]
    is_axis = len(groups) > MAX_TICKS and all(_order(value)[0] == 0 for value in groups)
    for place, (value, group) in enumerate(groups.items()):
        points = [run.val for recipe in group for run in recipe.runs]
        if is_axis:
            axes.plot([value] * len(points), points, "o", color=COLOURS[0], alpha=0.7, mew=0)
            continue
        mean = np.mean([recipe.val for recipe in group])
        offsets = np.linspace(-0.12, 0.12, len(points)) if len(points) > 1 else np.zeros(1)
        axes.plot([place - 0.25, place + 0.25], [mean, mean], color=COLOURS[1], lw=3)
        axes.plot(place + offsets, points, "o", color=COLOURS[0], alpha=0.7, mew=0)
        axes.annotate(f"{mean:.3f}", (place + 0.28, mean), fontsize=9, va="center", color=COLOURS[1])
    if not is_axis:
        axes.set_xticks(range(len(labels)), labels, rotation=20 if sum(map(len, labels)) > 45 else 0)
        axes.set_xlim(-0.5, len(labels) - 0.3)
    elif min(groups) > 0 and max(groups) / min(groups) >= 10:
        axes.set_xscale("log")
    _widen(axes)
    return figure


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then text, then None."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, value, ""
    return 2 if value is None else 1, 0, str(value)


def _clip(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:17]}…"


def draw_tiles(tiles: Sequence[tuple[np.ndarray, str]], title: str) -> Figure:
    """Pictures (h, w, 3) uint8 RGB with captions, five in a row."""
    rows = -(-len(tiles) // 5)
    figure = Figure(figsize=(10, 2.3 * rows + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)  # a name with two $ is no formula
    for place, (picture, caption) in enumerate(tiles, 1):
        axes = figure.add_subplot(rows, 5, place)
        axes.imshow(picture)
        axes.axis("off")
        axes.set_title("\n".join(textwrap.wrap(caption, 26)), fontsize=8, parse_math=False)
    return figure
