"""MODEL_CARD.md: data, training, scores and failures of a run (Mitchell et al., FAT* 2019)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polyp import files
from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.read_runs import RunRecord
from polyp.commands.compare.recipes import compute_interval, format_setting, pool_scores
from polyp.data.sources import DATASETS, Folder
from polyp.data.traits import STRATA, group_by_stratum
from polyp.metrics.overlap import FAILURE
from polyp.report.markdown import format_code, render_markdown
from polyp.report.tables import Column, Table, count
from polyp.runs.folder import SCORES

if TYPE_CHECKING:
    from pandas import DataFrame


def write_card(file: Path, run: RunRecord, comparison: Comparison | None = None) -> None:
    """Write the model card of a finished run, which may be part of a comparison.

    Raises:
        WriteError: the file cannot be written.
    """
    recipe = next((r for r in comparison.recipes if run in r.runs), None) if comparison else None
    folds = recipe.one_seed(run.seed) if recipe and recipe.over_folds else [run]
    scores = pool_scores(folds)
    kinds = {
        f"{name}: {part} ({STRATA[name].meanings[part]})": [row["dice"] for row in rows]
        for name, bins in group_by_stratum(scores.to_dict("records")).items()
        for part, rows in bins.items()
    }
    if "source" in scores:
        kinds |= {f"source: {name}": list(dice) for name, dice in scores.groupby("source")["dice"]}
    weakest = min(((np.mean(d), kind, len(d)) for kind, d in kinds.items() if len(d) > 1), default=None)
    numbers = _build_number_table(run, scores, _pool(scores) if len(folds) > 1 else run.metrics["test"])
    dice, interval = numbers.rows[0]["value"], numbers.rows[0]["95 %"]
    has_polyp = scores["tp"] + scores["fn"] > 0
    normal = [fold.normal for fold in folds if fold.normal]
    settings = [{"key": format_code(k), "value": format_setting(v)} for k, v in run.settings.items()]
    values = {
        "run": run,
        "metrics": run.metrics,
        "checkpoint": format_code(f"{run.name}/checkpoints/best.ckpt"),
        "fingerprint": format_code(run.metrics["data"]["fingerprint"]),
        "licence": DATASETS.get(run.metrics["data"]["dataset"], Folder).licence,
        "scores": scores,
        "frames": sum(test["n"] for test in normal),
        "false_alarms": sum(test["n"] * test["false_alarms"] for test in normal),
        "pooled": len(folds) > 1,
        "answer": f"{dice} (95 % interval {interval})" if interval else dice,
        "test_images": count(len(scores), "test image"),
        "numbers": numbers.to_markdown(),
        "comparison": comparison,
        "recipe": recipe,
        "strata": _build_kind_table(kinds).to_markdown(),
        "failure": FAILURE,
        "failures": int((scores["dice"] < FAILURE).sum()),
        "misses": int((has_polyp & (scores["dice"] == 0)).sum()),
        "weakest": weakest,
        "mean_dice": scores["dice"].mean(),
        "all_have_polyps": has_polyp.all(),
        "worst": _build_worst_table(scores).to_markdown(),
        "settings": Table(settings).to_markdown(),
    }
    files.write_text(file, render_markdown("model_card.md", **values))


def _format_interval(values: Sequence[float]) -> str:
    interval = compute_interval(values)
    return "{:.3f} to {:.3f}".format(*interval) if interval else ""


def _pool(scores: "DataFrame") -> dict[str, float]:
    """The test numbers of all folds together, as metrics.json defines them."""
    areas = (2 * scores["tp"] + scores["fp"] + scores["fn"]).sum()
    pooled = 2 * scores["tp"].sum() / areas if areas else 1.0
    return {**scores[list(SCORES)].mean(), "pooled_dice": pooled}


def _build_number_table(run: RunRecord, scores: "DataFrame", values: Mapping[str, float]) -> Table:
    rows = []
    for name in (*SCORES, "pooled_dice"):
        interval = _format_interval(scores[name]) if name in SCORES else ""
        definition = run.metrics["definitions"].get(name, "")
        row = {"number": name, "value": f"{values[name]:.3f}", "95 %": interval, "definition": definition}
        rows.append(row)
    return Table(rows)


def _build_kind_table(kinds: Mapping[str, Sequence[float]]) -> Table:
    rows = [
        {"kind": kind, "images": len(dice), "Dice": f"{np.mean(dice):.3f}", "95 %": _format_interval(dice)}
        for kind, dice in kinds.items()
    ]
    return Table(rows)


def _build_worst_table(scores: "DataFrame") -> Table:
    worst = scores.sort_values("dice", kind="stable").head(5)
    share = Column("polyp_share", "polyp, share of the image", ".1%")
    rows = worst.reset_index().to_dict("records")
    return Table(rows, [Column("stem", "image"), Column("dice", "Dice", ".3f"), share])
