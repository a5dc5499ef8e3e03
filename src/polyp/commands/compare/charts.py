"""Charts of a comparison: differences, curves, images of two recipes, effects of settings, costs.

Charts of one kind have the same axes. Few recipes have a colour each; of many the best alone has one.
"""

import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.recipes import Recipe, clip, shorten_keys
from polyp.report.charts import (
    FAINT,
    LINE,
    SERIES,
    SIZE,
    TEXT,
    Chart,
    label_right,
    make_axes,
    styled,
    use_log,
)
from polyp.report.pictures import LEGEND
from polyp.report.tables import count

MIN_SPAN = 0.03
"""Of Dice, that an axis shows at least, so that small differences look small."""

MAX_TICKS = 6
"""Values of a number that have a line each; more have an axis."""

MAX_LABEL = 24
"""Characters of a value at an axis; the name of an axis may be twice as long."""

MAX_TITLE = 26
"""Characters of a recipe's name at an axis; its number stands for a longer one."""

MAX_OTHERS = 3
"""Recipes whose images are plotted against the best one's."""

COSTS: dict[str, tuple[str, Callable[[Recipe], float | None]]] = {
    "parameters": ("parameters, millions", lambda recipe: recipe.parameters / 1e6),
    "gmacs": ("GMACs per image", lambda recipe: recipe.first.gmacs),
    "minutes": ("minutes of training", lambda recipe: recipe.means["minutes"]),
}
"""What a recipe costs, by a key for files: the name with its unit, and the number."""


def _colours(recipes: Sequence[Recipe]) -> dict[int, str]:
    """A colour by recipe's number."""
    if len(recipes) <= len(SERIES):
        return {recipe.number: colour for recipe, colour in zip(recipes, SERIES, strict=False)}
    return {recipe.number: SERIES[0] if recipe.number == 1 else FAINT for recipe in recipes}


@styled
def plot_differences(comparison: Comparison) -> list[Chart]:
    """The difference in test Dice of each recipe to the best, where the images are enough to judge it."""
    rows = [
        (recipe, difference.value, difference.interval)
        for recipe in comparison.comparable[1:]
        if (difference := comparison.differences[recipe.number]).interval
    ]
    if not rows:
        return []
    figure, axes = make_axes("difference in test Dice", "", (SIZE[0], 0.6 + 0.2 * len(rows)))
    axes.axvline(0, color=FAINT, lw=1)
    for place, (recipe, value, (low, high)) in enumerate(rows):
        alike = recipe.number in comparison.alike
        colour = FAINT if alike else SERIES[0] if value > 0 else SERIES[1]
        axes.plot([low, high], [place, place], color=colour)
        axes.plot(value, place, "o", color=colour, mfc="none" if alike else colour, ms=5)
    is_short = all(len(recipe.title) <= MAX_TITLE for recipe, *_ in rows)
    axes.set_yticks(range(len(rows)), [r.title if is_short else f"#{r.number}" for r, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    widest = max(abs(end) for *_, interval in rows for end in interval)
    axes.set_xlim(-1.1 * max(widest, MIN_SPAN), 1.1 * max(widest, MIN_SPAN))
    caption = (
        f"Test Dice minus that of {comparison.reference.title}, on the same images. Lines: 95 % intervals of "
        "all comparisons together. Hollow and grey: not distinguishable."
    )
    return [Chart("differences", figure, caption)]


@styled
def plot_curves(comparison: Comparison) -> list[Chart]:
    """Loss and Dice by epoch: a curve of training and validation for each run; unfinished runs are grey."""
    if not any(run.curves for run in (*comparison.runs, *comparison.unfinished)):
        return []
    names = {"loss": "loss", "dice": "Dice at network resolution"}
    return [Chart(name, *_plot_curve(comparison, name, label)) for name, label in names.items()]


def _plot_curve(comparison: Comparison, name: str, label: str) -> tuple[Figure, str]:
    figure, axes = make_axes("epoch", label)
    colours = _colours(comparison.recipes)
    lines = [(run, LINE) for run in comparison.unfinished]
    lines += [(run, colours[recipe.number]) for recipe in reversed(comparison.recipes) for run in recipe.runs]
    stages: dict[str, dict[str, Any]] = {"train": {"ls": ":", "lw": 0.9}, "val": {}}
    for run, colour in lines:
        for stage, style in stages.items():
            points = run.curves.get(f"{stage}/{name}", [])
            marker = "o" if len(points) == 1 else None
            axes.plot(range(1, len(points) + 1), points, color=colour, marker=marker, ms=3, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    axes.set_ylim(axes.get_ylim())
    few = len(comparison.recipes) <= len(SERIES)
    ends = [
        (recipe, recipe.first.curves.get(f"val/{name}"))
        for recipe in comparison.recipes[: None if few else 1]
    ]
    label_right(axes, [(points[-1], f"#{r.number}", colours[r.number]) for r, points in ends if points])
    caption = f"{label[0].upper()}{label[1:]} by epoch: validation solid, training dotted"
    caption += ", unfinished runs pale" * bool(comparison.unfinished)
    return figure, f"{caption}{'' if few else f'; coloured: {comparison.recipes[0].title}'}."


@styled
def plot_images(comparison: Comparison, anchors: Mapping[str, str]) -> list[Chart]:
    """Dice of each test image by the best recipe and by another, for the first others.

    Args:
        comparison: the recipes.
        anchors: by stem, the letter of the images that the page shows, below the anchor of that name.
    """
    best, *others = comparison.comparable
    charts = []
    for other in others[:MAX_OTHERS]:
        figure, axes = make_axes(f"Dice of #{best.number}", f"Dice of #{other.number}", (3, 3))
        axes.plot([0, 1], [0, 1], color=FAINT, lw=1)
        axes.plot(best.dice, other.dice, "o", color=SERIES[0], ms=3, alpha=0.5, mew=0)
        for stem, x, y in zip(best.stems, best.dice, other.dice, strict=True):
            if letter := anchors.get(stem):
                url, side = f"#{letter}", -1 if x > 0.9 else 1
                axes.plot(x, y, "o", color=SERIES[1], ms=4).pop().set_url(url)
                axes.annotate(
                    letter, (x, y), (4 * side, 3), textcoords="offset points", color=SERIES[1], url=url,
                    ha="left" if side > 0 else "right",
                )  # fmt: skip
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        above, below = int((other.dice > best.dice).sum()), int((other.dice < best.dice).sum())
        caption = (
            f"Each test image with #{best.number} and #{other.number}. Better with #{other.number}: "
            f"{count(above, 'image')}; with #{best.number}: {below}."
        )
        caption += " Letters lead to the pictures." * bool(anchors)
        charts.append(Chart(f"images_{best.number}_{other.number}", figure, caption))
    return charts


@styled
def plot_costs(comparison: Comparison) -> list[Chart]:
    """For each of COSTS that is known and differs, validation Dice against it, with the Pareto front."""
    charts = []
    bars = " Bars: standard deviation between seeds." * any(
        recipe.deviations for recipe in comparison.recipes
    )
    for key, (name, cost) in COSTS.items():
        points = [(value, recipe) for recipe in comparison.recipes if (value := cost(recipe)) is not None]
        if len({value for value, _ in points}) > 1:
            figure = _plot_cost(name, points, _colours(comparison.recipes))
            caption = f"Validation Dice against {name}. Line: nothing cheaper is better.{bars}"
            charts.append(Chart(f"dice_against_{key}", figure, caption))
    _share_dice([chart.figure.axes[0].yaxis.axes for chart in charts], "y")
    return charts


def _plot_cost(name: str, points: Sequence[tuple[float, Recipe]], colours: Mapping[int, str]) -> Figure:
    figure, axes = make_axes(name, "validation Dice")
    for value, recipe in points:
        deviation, colour = recipe.deviations.get("val/dice"), colours[recipe.number]
        axes.errorbar(value, recipe.val, deviation, fmt="o", ms=5, color=colour, capsize=2)
    front = [points[place] for place in find_pareto_front([(value, recipe.val) for value, recipe in points])]
    for place, (value, recipe) in enumerate(points if len(points) <= len(SERIES) else front):
        offset, colour = (4, -11 if place % 2 else 5), colours[recipe.number]  # neighbours often overlap
        axes.annotate(
            f"#{recipe.number}", (value, recipe.val), offset, textcoords="offset points", color=colour
        )
    x, y = zip(*sorted((value, recipe.val) for value, recipe in front), strict=True)
    axes.plot(x, y, color=FAINT, lw=1, drawstyle="steps-post", zorder=0)
    values = [value for value, _ in points]
    if min(values) > 0 and max(values) / min(values) > 30:
        use_log(axes, "x")
    else:
        axes.locator_params("x", nbins=5)
    axes.margins(0.13)
    return figure


def _share_dice(every: Sequence[Axes], name: str) -> None:
    """Give axes, x or y, the same limits, at least MIN_SPAN apart."""
    if every:
        lows, highs = zip(*(getattr(axes, f"get_{name}lim")() for axes in every), strict=True)
        low, high = min(lows), max(highs)
        margin = max(0.0, MIN_SPAN - (high - low)) / 2
        for axes in every:
            axes.set(**{f"{name}lim": (low - margin, high + margin)})


def find_pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points (cost, gain) that no other beats.

    A point beats another if it costs no more and gains no less, and one of both is better.
    """
    return [
        place
        for place, (cost, gain) in enumerate(points)
        if not any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in points)
    ]


@styled
def plot_effects(comparison: Comparison) -> list[Chart]:
    """For each setting that varies, validation Dice by its value.

    Keys that always change together share a chart, since their effects cannot be separated.
    """
    names, charts = shorten_keys(comparison.keys), []
    for keys in comparison.varying:
        title = " and ".join(names[key] for key in keys)
        if len(keys) > 2:
            title = f"{names[keys[0]]} and {len(keys) - 1} more"
        figure, is_axis = _plot_effect(comparison.recipes, keys[0], title)
        caption = f"A point for each run{'' if is_axis else ', a line for the mean'}."
        if len(keys) > 1:
            caption += f" The effects of {', '.join(names[key] for key in keys)} cannot be separated: "
            caption += "they always change together."
        if not _is_balanced(comparison, keys):
            caption += " The runs also differ in other settings, which may be the reason."
        charts.append(Chart(f"effect_{names[keys[0]]}", figure, caption))
    _share_dice([chart.figure.axes[0] for chart in charts], "x")
    return charts


def _is_balanced(comparison: Comparison, keys: Sequence[str]) -> bool:
    """Whether the recipes of each value have the same other settings."""
    others: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for recipe in comparison.recipes:
        rest = tuple(str(recipe.values.get(key)) for key in comparison.keys if key not in keys)
        others[str(recipe.values.get(keys[0]))][rest] += 1
    return len({frozenset(counts.items()) for counts in others.values()}) == 1


def _plot_effect(recipes: Sequence[Recipe], key: str, title: str) -> tuple[Figure, bool]:
    groups: dict[Any, list[Recipe]] = defaultdict(list)
    for recipe in sorted(recipes, key=lambda recipe: _order(recipe.values.get(key))):
        groups[recipe.values.get(key)].append(recipe)
    is_axis = len(groups) > MAX_TICKS and all(_order(value)[0] == 0 for value in groups)
    height = SIZE[1] if is_axis else 0.75 + 0.3 * len(groups)
    figure, axes = make_axes("validation Dice", clip(title, MAX_LABEL) if is_axis else "", (SIZE[0], height))
    for place, (value, group) in enumerate(groups.items()):
        points = [run.val for recipe in group for run in recipe.runs]
        axes.plot(
            points, [value if is_axis else place] * len(points), "o", color=SERIES[0], ms=4, alpha=0.7, mew=0
        )
        if not is_axis:
            mean = np.mean([recipe.val for recipe in group])
            axes.plot([mean, mean], [place - 0.3, place + 0.3], color=SERIES[1], lw=2)
            axes.annotate(
                f"{mean:.3f}", (1.02, place), xycoords=("axes fraction", "data"), va="center", color=SERIES[1]
            )
    if not is_axis:
        labels = [clip(group[0].texts.get(key, "none"), MAX_LABEL) for group in groups.values()]
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(clip(title, 2 * MAX_LABEL), fontsize=8, loc="left", color=TEXT)
        axes.grid(visible=False, axis="y")
    elif min(groups) > 0 and max(groups) / min(groups) >= 10:
        use_log(axes, "y")
    return figure, is_axis


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then text, then None."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, value, ""
    return 2 if value is None else 1, 0, str(value)


@styled
def draw_tiles(tiles: Sequence[tuple[np.ndarray, str]], title: str) -> Figure:
    """Pictures (h, w, 3) uint8 RGB with captions, five in a row."""
    rows = -(-len(tiles) // 5)
    figure = Figure(figsize=(10, 2.3 * rows + 0.4), facecolor="white")
    figure.suptitle(title, fontsize=10)
    for place, (picture, caption) in enumerate(tiles, 1):
        axes = figure.add_subplot(rows, 5, place)
        axes.imshow(picture)
        axes.axis("off")
        axes.set_title("\n".join(textwrap.wrap(caption, 26)), fontsize=8)
    colours = [Patch(color=tuple(np.divide(colour, 255)), label=name) for name, colour in LEGEND.items()]
    figure.legend(handles=colours, loc="outside lower center", ncols=len(colours))
    return figure
