"""What a comparison looks like: a table in the terminal and as CSV, and a page with charts and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyp import runs
from polyp.comparison.differences import Comparison
from polyp.comparison.recipes import Recipe, plain, short
from polyp.errors import InputError
from polyp.report.tables import to_csv

if TYPE_CHECKING:
    from polyp.report.html import Page

WIDEST = 205

METHOD = (
    "Validation ranks the runs and chooses the best; the test set only tells how large a difference is. Test Dice is "
    "the mean over images of the Dice per image at original resolution, its interval a 95 % bootstrap over the test "
    "images. Validation Dice is at network resolution.",
    "Differences are paired: the mean over the same test images of a run's Dice minus that of the best. Their p-value "
    "is that of a sign-flip permutation test over images, and their interval holds the differences which that test "
    "does not reject; both are corrected for the number of comparisons (Bonferroni), so that the interval excludes 0 "
    "exactly if that p-value is below 0.05. Where seed noise is known, there is a second p-value, of Student's t with "
    "the pooled standard deviation between seeds, corrected alike; the larger of the two is shown, since a difference "
    "must be more than chance in both. A run is called worse or better if p < 0.05. Not distinguishable is not the "
    "same as equal: the interval tells how large a difference may be.",
    "Images/s are training images per second of the whole run, validation included. GMACs are 10^9 "
    "multiply-accumulates of convolutions, matrix products and attention for one image at the network's size.",
)


def table(comparison: Comparison, costs: dict[int, float | None]) -> list[dict[str, str]]:
    """The table as people read it: a row for each recipe."""
    seeds = any(len(recipe.seeds) > 1 for recipe in comparison.recipes)
    rows = []
    for recipe in comparison.recipes:
        difference, cost = comparison.differences.get(recipe.number), costs[recipe.number]
        row = {"": f"#{recipe.number}"}
        row |= {name: plain(recipe.values.get(key)) for key, name in short(comparison.varying).items()}
        if seeds:
            row["seeds"] = str(len(recipe.seeds))
        row["val Dice"] = _with_deviation(recipe, "val")
        row["test Dice (95 %)"] = f"{_with_deviation(recipe, 'test')}{_span(recipe.interval)}"
        row["p"] = _p(difference.p) if difference else ""
        row["verdict"] = comparison.verdict(recipe)
        row["parameters"] = f"{recipe.first.metrics['parameters'] / 1e6:.2f} M"
        row["GMACs"] = f"{cost:.2f}" if cost is not None else ""
        row["memory, MB"] = f"{recipe.mean(lambda run: run.metrics['peak_memory_mb']):.0f}"
        row["minutes"] = f"{recipe.mean(lambda run: run.metrics['seconds']) / 60:.1f}"
        row["images/s"] = f"{recipe.mean(lambda run: run.images_per_second):.1f}"
        rows.append(row)
    return rows


def _with_deviation(recipe: Recipe, name: str) -> str:
    spread = recipe.deviation(lambda run: getattr(run, name))
    return f"{recipe.mean(lambda run: getattr(run, name)):.3f}" + (f" ± {spread:.3f}" if spread is not None else "")


def _span(interval: tuple[float, float] | None) -> str:
    return " ({:.3f} to {:.3f})".format(*interval) if interval else ""


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _records(comparison: Comparison, costs: dict[int, float | None]) -> list[dict[str, Any]]:
    """The table as programs read it: unrounded, an empty cell where there is nothing."""
    records = []
    for recipe in comparison.recipes:
        difference = comparison.differences.get(recipe.number)
        low, high = recipe.interval or (None, None)
        to_low, to_high = (difference.interval if difference else None) or (None, None)
        records.append(
            {
                "rank": recipe.number,
                **{key: recipe.values.get(key) for key in comparison.varying},
                "seeds": " ".join(map(str, recipe.seeds)),
                "val/dice": recipe.val,
                "val/dice_sd": recipe.deviation(lambda run: run.val),
                "test/dice": recipe.mean(lambda run: run.test),
                "test/dice_sd": recipe.deviation(lambda run: run.test),
                "test/dice_low": low,
                "test/dice_high": high,
                "n": len(recipe.stems),
                "difference": difference and difference.value,
                "difference_low": to_low,
                "difference_high": to_high,
                "p_images": difference and difference.images_p,
                "p": difference and difference.p,
                "seed_margin": difference and difference.margin,
                "verdict": comparison.verdict(recipe),
                "parameters": recipe.first.metrics["parameters"],
                "gmacs": costs[recipe.number],
                "peak_memory_mb": recipe.mean(lambda run: run.metrics["peak_memory_mb"]),
                "minutes": recipe.mean(lambda run: run.metrics["seconds"]) / 60,
                "images_per_second": recipe.mean(lambda run: run.images_per_second),
                "epochs": recipe.mean(lambda run: run.metrics["epochs"]),
                "runs": " ".join(run.name for run in recipe.runs),
            }
        )
    return records


def as_csv(comparison: Comparison, costs: dict[int, float | None]) -> str:
    """The table as programs read it."""
    records = _records(comparison, costs)
    return to_csv(records, list(records[0]))


def tell(comparison: Comparison, rows: Sequence[dict[str, str]]) -> None:
    """The table and what to know about it, in the terminal."""
    console = Console(highlight=False, soft_wrap=True)
    grid = Table(box=None, pad_edge=False)
    for name in rows[0]:
        grid.add_column(escape(name), justify="left" if name == "verdict" else "right", no_wrap=name != "verdict")
    for row in rows:
        grid.add_row(
            *(escape(cell) for cell in row.values()), style="bold" if row["verdict"].startswith("best") else ""
        )
    Console(width=max(console.width, WIDEST)).print(grid)  # a file has no width that a table must be squeezed into
    console.print(f"\n[bold]{escape(comparison.headline)}[/]")
    for text in comparison.warnings:
        console.print(f"[bold yellow]warning[/] {escape(text)}")
    for text in comparison.notes:
        console.print(escape(text))
    for run in comparison.unfinished:
        console.print(f"unfinished {escape(run.name)}: {escape(run.progress)}")
    for run in comparison.damaged:
        console.print(f"[bold yellow]left out[/] {escape(run.damage)}")


def write_page(
    comparison: Comparison,
    rows: Sequence[dict[str, str]],
    costs: dict[int, float | None],
    file: Path,
    root: str | None,
    pictures: bool,
) -> None:
    """The page, and its pictures as files beside it.

    Args:
        comparison: what it is about.
        rows: of the table.
        costs: GMACs by the recipe's number.
        file: where to write it.
        root: where the data are if they have moved.
        pictures: draw charts and predictions.
    """
    from polyp.report.html import Page

    count, images = len(comparison.runs), len(comparison.reference.stems)
    page = Page("Runs compared", comparison.headline)
    page.section(
        "Table", f"{count} finished runs of {len(rows)} configurations, best validation first; {images} test images."
    )
    for text in comparison.warnings:
        page.text(text, "warning")
    page.table(rows)
    for text in comparison.notes:
        page.text(text)
    if comparison.unfinished:
        page.heading("Unfinished")
        page.table([{"run": run.name, "how far": run.progress} for run in comparison.unfinished])
    if comparison.damaged:
        page.heading("Left out")
        page.table([{"run": run.name, "why": run.damage} for run in comparison.damaged])
    if pictures:
        _draw_charts(page, comparison, costs, file.parent / runs.PICTURES)
        _draw_images(page, comparison, file.parent / runs.PICTURES, root)
    page.section("How to read it")
    for text in METHOD:
        page.text(text)
    page.heading("Runs")
    page.table(
        [
            {
                "": f"#{recipe.number}",
                "run": run.name,
                "seed": run.seed,
                "val Dice": f"{run.val:.3f}",
                "test Dice": f"{run.test:.3f}",
            }
            for recipe in comparison.recipes
            for run in recipe.runs
        ]
    )
    page.write(file)


def _draw_charts(page: "Page", comparison: Comparison, costs: dict[int, float | None], folder: Path) -> None:
    from polyp.comparison import charts, curves

    page.section("Curves")
    if any(curves.read(run.folder) for run in (*comparison.runs, *comparison.unfinished)):
        page.charts(
            [
                (
                    charts.curve(comparison, what),
                    f"{name} by epoch: training dotted, validation solid.",
                    folder / f"{what}.png",
                )
                for what, name in (("loss", "Loss"), ("dice", "Dice"))
            ]
        )
    else:
        page.text("No run has TensorBoard files any more.", "faint")
    page.section("Dice and what it costs")
    bars = " Bars: sd between seeds." if any(len(recipe.seeds) > 1 for recipe in comparison.recipes) else ""
    axes = {
        "parameters": (lambda recipe: recipe.first.metrics["parameters"] / 1e6, "parameters, millions"),
        "gmacs": (lambda recipe: costs[recipe.number], "GMACs per image"),
        "minutes": (lambda recipe: recipe.mean(lambda run: run.metrics["seconds"]) / 60, "minutes of training"),
    }
    page.charts(
        [
            (
                charts.against(comparison, x, name),
                f"Validation Dice against {name}. Line: the Pareto front, which none beats in both.{bars}",
                folder / f"dice_against_{key}.png",
            )
            for key, (x, name) in axes.items()
            if any(x(recipe) is not None for recipe in comparison.recipes)
        ]
    )
    if effects := charts.effects(comparison):
        page.section("What each hyperparameter does")
        page.charts(
            [
                (
                    figure,
                    f"Validation Dice by {name}: a point for each run, a bar for the mean of the configurations.",
                    folder / f"effect_{name.replace(' ', '_')}.png",
                )
                for name, figure in effects
            ]
        )
    if len(effects) > 1:
        page.chart(
            charts.parallel(comparison),
            "Parallel coordinates: a line for each configuration, bright where validation Dice is high.",
            folder / "parallel.png",
        )


def _draw_images(page: "Page", comparison: Comparison, folder: Path, root: str | None) -> None:
    from polyp.comparison import charts, side_by_side

    page.section(
        "The same test images",
        "Chosen for the variety of their polyps, then for what the runs disagree on. Green: "
        "truth. Yellow: prediction. The number is the Dice of the image.",
    )
    try:
        drawn = side_by_side.rows(comparison, root)
    except InputError as error:
        told = f"No pictures of test images: {error}. --root FOLDER says where images/ and masks/ are."
        page.text(told, "warning")
        Console(highlight=False, soft_wrap=True).print(f"[bold yellow]note[/] {escape(told)}")
        return
    shown = len(side_by_side.shown(comparison))
    if shown < len(comparison.recipes):
        page.text(f"{shown} of {len(comparison.recipes)}: the best by validation, and others spread over the ranking.")
    for number, row in enumerate(drawn, 1):
        page.heading(title := f"{row.stem}: {row.why}")
        page.gallery(row.tiles, small=True)
        charts.tiles(row.tiles, title).savefig(folder / f"image_{number}_{row.stem}.png", dpi=144)
