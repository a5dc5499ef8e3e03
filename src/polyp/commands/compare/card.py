"""MODEL_CARD.md: what a run is, what it was trained on, how good it is and where it fails (Mitchell et al.,
FAT* 2019).

Nothing is claimed that the run's own numbers do not show.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polyp import files
from polyp.commands.compare.comparison import Comparison
from polyp.commands.compare.read_runs import RunRecord
from polyp.commands.compare.recipes import format_setting, pool_scores
from polyp.data.sources import DATASETS, Folder
from polyp.data.traits import STRATA, group_by_stratum
from polyp.metrics.intervals import bootstrap_interval
from polyp.metrics.overlap import FAILURE
from polyp.report.markdown import format_code, render_markdown
from polyp.report.tables import Column, Table, count
from polyp.runs.folder import SCORES

if TYPE_CHECKING:
    from pandas import DataFrame


def write_card(file: Path, run: RunRecord, comparison: Comparison | None = None) -> None:
    """Write the model card of a run.

    Args:
        file: where, a Markdown file.
        run: a finished one.
        comparison: of the run with others.

    Raises:
        WriteError: it cannot be written.
    """
    recipe = next((r for r in comparison.recipes if run in r.runs), None) if comparison else None
    folds = recipe.one_seed(run.seed) if recipe and recipe.over_folds else [run]
    scores, settings = pool_scores(folds), run.settings.items()
    strata = {
        f"{name}: {part} ({STRATA[name].meanings[part]})": [row["dice"] for row in rows]
        for name, parts in group_by_stratum(scores.to_dict("records")).items()
        for part, rows in parts.items()
    }
    if "source" in scores:
        strata |= {f"source: {name}": list(dice) for name, dice in scores.groupby("source")["dice"]}
    numbers = _numbers_table(run, scores, _pool(scores) if len(folds) > 1 else run.metrics["test"])
    interval = numbers.rows[0]["95 %"]
    has_polyp = scores["tp"] + scores["fn"] > 0
    values = {
        "run": run,
        "metrics": run.metrics,
        "checkpoint": format_code(f"{run.name}/checkpoints/best.ckpt"),
        "fingerprint": format_code(run.metrics["data"]["fingerprint"]),
        "licence": DATASETS.get(run.metrics["data"]["dataset"], Folder).licence,
        "scores": scores,
        "frames": sum(fold.normal["n"] for fold in folds if fold.normal),
        "false_alarms": sum(fold.normal["n"] * fold.normal["false_alarms"] for fold in folds if fold.normal),
        "pooled": len(folds) > 1,
        "answer": f"{numbers.rows[0]['value']}{f' (95 % interval {interval})' if interval else ''}",
        "test_images": count(len(scores), "test image"),
        "numbers": numbers.to_markdown(),
        "comparison": comparison,
        "recipe": recipe,
        "strata": _strata_table(strata).to_markdown(),
        "failure": FAILURE,
        "failures": int((scores["dice"] < FAILURE).sum()),
        "misses": int((has_polyp & (scores["dice"] == 0)).sum()),
        "weakest": min(
            ((np.mean(dice), kind, len(dice)) for kind, dice in strata.items() if len(dice) > 1), default=None
        ),
        "mean_dice": scores["dice"].mean(),
        "all_have_polyps": has_polyp.all(),
        "worst": _worst_table(scores).to_markdown(),
        "settings": Table(
            [{"key": format_code(k), "value": format_setting(v)} for k, v in settings]
        ).to_markdown(),
    }
    files.write_text(file, render_markdown("model_card.md", **values))


def _format_interval(values: Sequence[float]) -> str:
    low, high = bootstrap_interval(values)
    return "" if np.isnan(low) else f"{low:.3f} to {high:.3f}"


def _pool(scores: "DataFrame") -> dict[str, float]:
    """The numbers of a test on the images of several folds, by the definitions of metrics.json."""
    areas = (2 * scores["tp"] + scores["fp"] + scores["fn"]).sum()
    pooled = 2 * scores["tp"].sum() / areas if areas else 1.0
    return {**scores[list(SCORES)].mean(), "pooled_dice": pooled}


def _numbers_table(run: RunRecord, scores: "DataFrame", values: Mapping[str, float]) -> Table:
    return Table(
        [
            {
                "number": name,
                "value": f"{values[name]:.3f}",
                "95 %": _format_interval(scores[name]) if name in SCORES else "",
                "definition": run.metrics["definitions"].get(name, ""),
            }
            for name in (*SCORES, "pooled_dice")
        ]
    )


def _strata_table(strata: Mapping[str, Sequence[float]]) -> Table:
    rows = [
        {"kind": kind, "images": len(dice), "Dice": np.mean(dice), "95 %": _format_interval(dice)}
        for kind, dice in strata.items()
    ]
    return Table(rows, [Column("kind"), Column("images"), Column("Dice", format=".3f"), Column("95 %")])


def _worst_table(scores: "DataFrame") -> Table:
    worst = scores.sort_values("dice", kind="stable").head(5)
    share = Column("polyp_share", "polyp, share of the image", ".1%")
    rows = worst.reset_index().to_dict("records")
    return Table(rows, [Column("stem", "image"), Column("dice", "Dice", ".3f"), share])
