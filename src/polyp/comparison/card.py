"""MODEL_CARD.md: what a run is, what it was trained on, how good it is and where it fails (Mitchell et al., FAT* 2019).

Nothing is claimed that the run's own numbers do not show.
"""

import html
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from polyp.comparison.differences import LEVEL, Comparison
from polyp.comparison.found import MEANS, Run
from polyp.comparison.recipes import Recipe, plain
from polyp.data.sources import DATASETS, Folder
from polyp.data.traits import STRATA, group_by_stratum
from polyp.errors import printable
from polyp.metrics.intervals import bootstrap_interval
from polyp.metrics.overlap import FAILURE


def card(run: Run, gmacs: float | None, comparison: Comparison | None = None) -> str:
    """The model card of a run, in Markdown.

    Args:
        run: a finished one.
        gmacs: 10^9 multiply-accumulates for one image, if known.
        comparison: what the run was compared with.
    """
    metrics, model, data = run.metrics, run.config["model"], run.metrics["data"]
    recipe = next((r for r in comparison.recipes if run in r.runs), None) if comparison else None
    size = "x".join(map(str, data["image_size"]))
    cost = f", {gmacs:.2f} GMACs for an image" if gmacs is not None else ""
    definitions = {name: escape(text) for name, text in metrics["definitions"].items()}
    parts = [
        f"# Model card: {escape(model['arch'])} with {escape(model['encoder'])}",
        "Finds polyps in colonoscopy images: an RGB image in, for each pixel the probability that it belongs to a "
        "polyp out. **For research; not a medical device, and not for diagnosis.**",
        _table(
            ("", ""),
            {
                "weights": Code(f"{run.name}/checkpoints/best.ckpt"),
                "size": f"{metrics['parameters'] / 1e6:.2f} M parameters{cost} at {size}",
                "trained": f"{metrics['epochs']} epochs, {metrics['seconds'] / 60:.0f} minutes on {metrics['device']}, "
                f"{metrics['precision']}, seed {run.seed}",
                "made by": ", ".join(f"{name} {number}" for name, number in metrics["versions"].items()),
            }.items(),
        ),
        "## Intended use",
        "Research on polyp segmentation: experiments, teaching, comparison with other methods. It must not be used to "
        "find, rule out or treat disease, nor be shown to those who do as if it could.",
        "## Data",
        _table(
            ("", ""),
            {
                "data set": data["dataset"],
                "fingerprint of all images and masks": Code(data["fingerprint"]),
                "split": data["split"],
                "images": ", ".join(f"{count} {name}" for name, count in data["images"].items()),
                "licence": DATASETS.get(data["dataset"], Folder).licence,
            }.items(),
        ),
        "## Numbers",
        f"On the {len(run.rows)} test images, with 95 % bootstrap intervals over these images; "
        f"{definitions.get('test', '')}.",
        _table(("number", "value", "95 %", "definition"), _numbers(run)),
        f"Chosen by {escape(run.monitor)}, {metrics['best']['value']:.3f} in epoch {metrics['best']['epoch']}: "
        f"{definitions.get('best', '')}.",
        _chosen_among(run, recipe, comparison),
        "## By kind of image",
        _table(("kind", "images", "Dice", "95 %"), _strata(run)),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(run, recipe, comparison)),
        "Worst test images:",
        _table(("image", "Dice", "polyp, share of the image"), _worst(run)),
        "## Recipe",
        _table(("key", "value"), ((Code(key), plain(value)) for key, value in run.settings.items())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


class Code(str):
    """Text that is set as code, where no character of it needs an escape."""


def escape(value: Any) -> str:
    """A value as one line of text in Markdown: nothing in it is HTML, a link, markup or the end of a table's cell."""
    line = " ".join(printable(word) for word in str(value).split())
    if isinstance(value, Code) and not re.search(r"[`<>&|\\]", line):
        return f"`{line}`"
    line = re.sub(r"[\\`*\[\]|~@]|\b_|_\b|:(?=//)|(?<=www)\.", r"\\\g<0>", line)
    return html.escape(line, quote=False)  # entities, since not every reader of Markdown knows \\< for <


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _span(values: Sequence[float] | np.ndarray) -> str:
    low, high = bootstrap_interval(values)
    return "" if np.isnan(low) else f"{low:.3f} to {high:.3f}"


def _numbers(run: Run) -> list[tuple[str, ...]]:
    test, definitions = run.metrics["test"], run.metrics["definitions"]
    spans = {name: _span([row[name] for row in run.rows.values()]) for name in MEANS}
    names = [*MEANS, "pooled_dice"]
    return [(name, f"{test[name]:.3f}", spans.get(name, ""), definitions.get(name, "")) for name in names]


def _chosen_among(run: Run, recipe: Recipe | None, comparison: Comparison | None) -> str:
    if comparison is None or recipe is None:
        return ""
    rank = f"number {recipe.number} by validation of {len(comparison.recipes)} configurations"
    alike = sum(difference.p >= LEVEL for difference in comparison.differences.values())
    if recipe is not comparison.reference:
        return f"It is {rank}; against the best of them: {comparison.verdict(recipe)}."
    return (
        f"It is {rank}. {alike or 'None'} of the {len(comparison.differences)} others that were tested on the same "
        "images cannot be told from it."
    )


def _by_stratum(run: Run) -> dict[str, list[float]]:
    """Dice of the images of each bin of each stratum, in the order of STRATA."""
    return {
        f"{name}: {part} ({STRATA[name].meanings[part]})": [row["dice"] for row in rows]
        for name, parts in group_by_stratum(list(run.rows.values())).items()
        for part, rows in parts.items()
    }


def _strata(run: Run) -> list[tuple[str, ...]]:
    return [(kind, str(len(dice)), f"{np.mean(dice):.3f}", _span(dice)) for kind, dice in _by_stratum(run).items()]


def _worst(run: Run) -> list[tuple[str, ...]]:
    rows = sorted(run.rows.items(), key=lambda item: (item[1]["dice"], item[0]))[:5]
    return [
        (stem, f"{row['dice']:.3f}", f"{row['polyp_share']:.1%}" if "polyp_share" in row else "") for stem, row in rows
    ]


def _limits(run: Run, recipe: Recipe | None, comparison: Comparison | None) -> list[str]:
    dice = np.array([row["dice"] for row in run.rows.values()])
    shown = np.array([row["tp"] + row["fn"] > 0 for row in run.rows.values()])
    limits = []
    if missed := int((dice < FAILURE).sum()):
        limits.append(
            f"On {missed} of the {len(dice)} test images Dice is below {FAILURE}, on "
            f"{int((shown & (dice == 0)).sum())} of them the polyp is not found at all."
        )
    known = {kind: values for kind, values in _by_stratum(run).items() if len(values) > 1}
    if known:
        kind, values = min(known.items(), key=lambda item: np.mean(item[1]))
        limits.append(
            f"Weakest on {kind}: mean Dice {np.mean(values):.3f} on {len(values)} images, {dice.mean():.3f} on all."
        )
    if shown.all():
        limits.append("Every test image shows a polyp: false alarms on normal images are not measured.")
    limits.append(
        f"Tested on images of the data set that it was trained on ({escape(run.metrics['data']['dataset'])}): other "
        "hospitals, devices and patients are not measured."
    )
    if len(dice) == 1:
        limits.append("A single test image: there are no intervals, and nothing is known of other images.")
    spread = recipe.deviation(lambda one: one.test) if recipe else None
    if recipe and spread is not None:
        limits.append(
            f"Another seed gives another model: over {len(recipe.seeds)} seeds test Dice is "
            f"{recipe.mean(lambda one: one.test):.3f} ± {spread:.3f}."
        )
    elif comparison and comparison.noise:
        limits.append(
            f"A single seed; test Dice of such runs has a standard deviation of {comparison.noise[0]:.3f} "
            "between seeds."
        )
    else:
        limits.append("A single seed: how far another one moves the result is not measured.")
    if run.monitor.startswith("test/"):
        limits.append("The test set was used to choose the checkpoint: all its numbers are too high.")
    return limits
