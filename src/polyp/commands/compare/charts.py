"""Charts of a comparison: differences, curves, images of two recipes, effects of settings, costs.

Charts of one kind have the same limits. Up to six recipes have a colour each; of more, only the best has one.
"""

import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

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
    label_rows,
    make_axes,
    styled,
    use_log,
)
from polyp.report.pictures import LEGEND
from polyp.report.tables import count

MIN_SPAN = 0.03  # least range of Dice of an axis, so that small differences look small
MAX_ROWS = 6  # a numeric setting with more values has an axis instead of a row for each value
MAX_LABEL = 24  # characters of a value at an axis; the name of an axis may be twice as long
MAX_TITLE = 26  # characters of a recipe's title at an axis; if one is longer, only numbers are shown
MAX_PAIRS = 3  # recipes whose images are plotted against the best one's

COSTS: dict[str, tuple[str, Callable[[Recipe], float | None]]] = {
    "parameters": ("parameters, millions", lambda recipe: recipe.parameters / 1e6),
    "gmacs": ("GMACs per image", lambda recipe: recipe.first.gmacs),
    "minutes": ("minutes of training", lambda recipe: recipe.means["minutes"]),
}
"""The costs of a recipe by a key for file names: the axis label and the value."""


def _colours(recipes: Sequence[Recipe]) -> dict[int, str]:
    """The colour of each recipe by its number."""
    if len(recipes) <= len(SERIES):
        return {recipe.number: colour for recipe, colour in zip(recipes, SERIES, strict=False)}
    return {recipe.number: SERIES[0] if recipe.number == 1 else FAINT for recipe in recipes}


@styled
def plot_differences(comparison: Comparison) -> list[Chart]:
    """The difference in test Dice of each recipe to the best; no chart if there are too few images."""
    recipes = comparison.comparable[1:]
    intervals = [d.interval for d in comparison.differences.values() if d.interval]
    if not intervals:
        return []
    figure, axes = make_axes("difference in test Dice", "", (SIZE[0], 0.6 + 0.2 * len(recipes)))
    axes.axvline(0, color=FAINT, lw=1)
    for index, (recipe, interval) in enumerate(zip(recipes, intervals, strict=True)):
        value, is_tie = comparison.differences[recipe.number].value, recipe.number in comparison.ties
        colour = FAINT if is_tie else SERIES[0] if value > 0 else SERIES[1]
        axes.plot(interval, [index, index], color=colour)
        axes.plot(value, index, "o", color=colour, mfc="none" if is_tie else colour, ms=5)
    is_short = all(len(recipe.title) <= MAX_TITLE for recipe in recipes)
    label_rows(axes, [recipe.title if is_short else f"#{recipe.number}" for recipe in recipes])
    limit = 1.1 * max(MIN_SPAN, np.abs(intervals).max())
    axes.set_xlim(-limit, limit)
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
    return [
        _plot_curve(comparison, "loss", "loss"),
        _plot_curve(comparison, "dice", "Dice at network resolution"),
    ]


def _plot_curve(comparison: Comparison, name: str, label: str) -> Chart:
    figure, axes = make_axes("epoch", label)
    recipes, colours = comparison.recipes, _colours(comparison.recipes)
    lines = [(run, LINE) for run in comparison.unfinished]
    lines += [(run, colours[recipe.number]) for recipe in reversed(recipes) for run in recipe.runs]
    stages: dict[str, dict[str, Any]] = {"train": {"ls": ":", "lw": 0.9}, "val": {}}
    for run, colour in lines:
        for stage, style in stages.items():
            points = run.curves.get(f"{stage}/{name}", [])
            marker = "o" if len(points) == 1 else None
            axes.plot(range(1, len(points) + 1), points, color=colour, marker=marker, ms=3, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    axes.set_ylim(axes.get_ylim())
    caption = f"{label[0].upper()}{label[1:]} by epoch: validation solid, training dotted"
    if comparison.unfinished:
        caption += ", unfinished runs pale"
    if len(recipes) > len(SERIES):
        recipes = recipes[:1]
        caption += f"; coloured: {recipes[0].title}"
    labels = []
    for recipe in recipes:
        if ends := recipe.first.curves.get(f"val/{name}", [])[-1:]:
            labels.append((ends[0], f"#{recipe.number}", colours[recipe.number]))
    label_right(axes, labels)
    return Chart(name, figure, f"{caption}.")


def _choose_side(point: tuple[float, float], places: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Where the letter of a point goes, right, left, above or below, farthest from points and letters."""

    def measure_room(side: tuple[float, float]) -> float:
        x, y = point[0] + 0.05 * side[0], point[1] + 0.05 * side[1]
        return min(0.1, *(np.hypot(x - other[0], y - other[1]) for other in places), 1.05 - x, 1.05 - y)

    return max(((1.0, 0.3), (-1.0, 0.3), (0.0, 1.1), (0.0, -1.1)), key=measure_room)


@styled
def plot_images(comparison: Comparison, anchors: Mapping[str, str], links: Mapping[str, str]) -> list[Chart]:
    """Dice of each test image by the best recipe and by another, for up to MAX_PAIRS others.

    The points of images in `anchors` (stem: letter) link to their pictures on the page, those in `links`
    (stem: address) to their files.
    """
    best, charts = comparison.reference, []
    for recipe in comparison.comparable[1 : 1 + MAX_PAIRS]:
        figure = _plot_pair(best, recipe, anchors, links)
        above, below = int((recipe.dice > best.dice).sum()), int((recipe.dice < best.dice).sum())
        caption = (
            f"Each test image with #{best.number} and #{recipe.number}. Better with #{recipe.number}: "
            f"{count(above, 'image')}; with #{best.number}: {below}."
        )
        if anchors:
            caption += " Letters lead to the pictures."
        if links:
            caption += " The other points open the image files."
        charts.append(Chart(f"images_{best.number}_{recipe.number}", figure, caption))
    return charts


def _plot_pair(best: Recipe, recipe: Recipe, anchors: Mapping[str, str], links: Mapping[str, str]) -> Figure:
    figure, axes = make_axes(f"Dice of #{best.number}", f"Dice of #{recipe.number}", (3, 3))
    axes.plot([0, 1], [0, 1], color=FAINT, lw=1)
    points = axes.scatter(best.dice, recipe.dice, 9, color=SERIES[0], alpha=0.5, lw=0)
    points.set_urls([links.get(stem) for stem in best.stems])
    dice = zip(best.stems, best.dice, recipe.dice, strict=True)
    marked = {anchors[stem]: (x, y) for stem, x, y in dice if stem in anchors}
    places = list(marked.values())
    for letter, (x, y) in marked.items():
        style: dict[str, Any] = {"color": SERIES[1], "url": f"#{letter}"}
        axes.plot(x, y, "o", ms=4, **style)
        side = _choose_side((x, y), places)
        places.append((x + 0.05 * side[0], y + 0.05 * side[1]))
        style |= {"ha": "center", "va": "center", "textcoords": "offset points"}
        axes.annotate(letter, (x, y), (6 * side[0], 6 * side[1]), **style)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    return figure


@styled
def plot_costs(comparison: Comparison) -> list[Chart]:
    """Validation Dice against each of COSTS that is known and differs, with the Pareto front."""
    charts = []
    has_seeds = any(recipe.deviations for recipe in comparison.recipes)
    bars = " Bars: standard deviation between seeds." if has_seeds else ""
    for key, (name, cost) in COSTS.items():
        points = [(value, recipe) for recipe in comparison.recipes if (value := cost(recipe)) is not None]
        if len({value for value, _ in points}) > 1:
            figure = _plot_cost(name, points, _colours(comparison.recipes))
            caption = f"Validation Dice against {name}. Line: nothing cheaper is better.{bars}"
            charts.append(Chart(f"dice_against_{key}", figure, caption))
    _share_limits([chart.figure.axes[0] for chart in charts], "y")
    return charts


def _plot_cost(name: str, points: Sequence[tuple[float, Recipe]], colours: Mapping[int, str]) -> Figure:
    figure, axes = make_axes(name, "validation Dice")
    for value, recipe in points:
        deviation, colour = recipe.deviations.get("val/dice"), colours[recipe.number]
        axes.errorbar(value, recipe.val, deviation, fmt="o", ms=5, color=colour, capsize=2)
    front = [points[index] for index in find_pareto_front([(value, recipe.val) for value, recipe in points])]
    for index, (value, recipe) in enumerate(points if len(points) <= len(SERIES) else front):
        offset = (4, -11) if index % 2 else (4, 5)  # labels of neighbours would often overlap
        style: dict[str, Any] = {"textcoords": "offset points", "color": colours[recipe.number]}
        axes.annotate(f"#{recipe.number}", (value, recipe.val), offset, **style)
    x, y = zip(*sorted((value, recipe.val) for value, recipe in front), strict=True)
    axes.plot(x, y, color=FAINT, lw=1, drawstyle="steps-post", zorder=0)
    values = [value for value, _ in points]
    if min(values) > 0 and max(values) / min(values) > 30:
        use_log(axes, "x")
    else:
        axes.locator_params("x", nbins=5)
    axes.margins(0.13)
    return figure


def _share_limits(charts: Sequence[Axes], name: Literal["x", "y"]) -> None:
    """Set the same limits, at least MIN_SPAN apart, for the x or y axes of several charts."""
    limits = [axes.get_xlim() if name == "x" else axes.get_ylim() for axes in charts]
    for axes in charts:
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        margin = max(0.0, MIN_SPAN - (high - low)) / 2
        axes.set(**{f"{name}lim": (low - margin, high + margin)})


def find_pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points (cost, gain) for which no different point costs no more and gains no less."""
    return [
        index
        for index, (cost, gain) in enumerate(points)
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
    ]


@styled
def plot_effects(comparison: Comparison) -> list[Chart]:
    """Validation Dice by the value of each setting that differs.

    Keys that always change together share a chart, since their effects cannot be separated.
    """
    names, charts = shorten_keys(comparison.keys), []
    for keys in comparison.key_groups:
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
    _share_limits([chart.figure.axes[0] for chart in charts], "x")
    return charts


def _is_balanced(comparison: Comparison, keys: Sequence[str]) -> bool:
    """Whether the other settings of the recipes are the same for each value of the keys."""
    groups: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for recipe in comparison.recipes:
        settings = tuple(str(recipe.values.get(key)) for key in comparison.keys if key not in keys)
        groups[str(recipe.values.get(keys[0]))].append(settings)
    return len({tuple(sorted(group)) for group in groups.values()}) == 1


def _plot_effect(recipes: Sequence[Recipe], key: str, title: str) -> tuple[Figure, bool]:
    """The figure, and whether the setting has an axis, not a row for each value."""
    groups: dict[Any, list[Recipe]] = defaultdict(list)
    for recipe in sorted(recipes, key=lambda recipe: _sort_key(recipe.values.get(key))):
        groups[recipe.values.get(key)].append(recipe)
    is_axis = len(groups) > MAX_ROWS and all(_sort_key(value)[0] == 0 for value in groups)
    height = SIZE[1] if is_axis else 0.75 + 0.3 * len(groups)
    figure, axes = make_axes("validation Dice", clip(title, MAX_LABEL) if is_axis else "", (SIZE[0], height))
    for index, (value, group) in enumerate(groups.items()):
        points = [run.val for recipe in group for run in recipe.runs]
        heights = [value if is_axis else index] * len(points)
        axes.plot(points, heights, "o", color=SERIES[0], ms=4, alpha=0.7, mew=0)
    if not is_axis:
        means = [np.mean([recipe.val for recipe in group]) for group in groups.values()]
        for index, mean in enumerate(means):
            axes.plot([mean, mean], [index - 0.3, index + 0.3], color=SERIES[1], lw=2)
        names = [clip(group[0].texts.get(key, "none"), MAX_LABEL) for group in groups.values()]
        label_rows(axes, names, [f"{mean:.3f}" for mean in means], SERIES[1])
        axes.set_title(clip(title, 2 * MAX_LABEL), fontsize=8, loc="left", color=TEXT)
    elif min(groups) > 0 and max(groups) / min(groups) >= 10:
        use_log(axes, "y")
    return figure, is_axis


def _sort_key(value: Any) -> tuple[int, float, str]:
    """Sorts numbers by size, then text, then None."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, value, ""
    return 2 if value is None else 1, 0, str(value)


@styled
def draw_tiles(tiles: Sequence[tuple[np.ndarray, str]], title: str) -> Figure:
    """Pictures (h, w, 3) uint8 RGB with captions, five in a row."""
    rows = -(-len(tiles) // 5)
    figure = Figure(figsize=(10, 2.3 * rows + 0.4), facecolor="white")
    figure.suptitle(title, fontsize=10)
    for index, (picture, caption) in enumerate(tiles, 1):
        axes = figure.add_subplot(rows, 5, index)
        axes.imshow(picture)
        axes.axis("off")
        axes.set_title("\n".join(textwrap.wrap(caption, 26)), fontsize=8)
    colours = [Patch(color=tuple(np.divide(colour, 255)), label=name) for name, colour in LEGEND.items()]
    figure.legend(handles=colours, loc="outside lower center", ncols=len(colours))
    return figure
