"""Compares the evaluations that `polyp evaluate` wrote to the compared folders, by test set.

Evaluations on the same images have paired differences: of runs, ensembles, flips and scales, or thresholds.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyp import files
from polyp.commands.compare.comparison import LEVEL, Comparison
from polyp.commands.compare.read_runs import RunRecord
from polyp.commands.compare.recipes import compute_interval
from polyp.errors import describe_error
from polyp.metrics.difference import sign_flip_tests
from polyp.report.tables import Column, Table, count, format_difference, format_mean, format_p
from polyp.runs.folder import RunFolder, check_metrics, read_rows

if TYPE_CHECKING:
    from pandas import DataFrame

PLAIN = "one model, one image"

KEYS = {
    **{"images": str, "normal": bool, "n": int, "models": list, "threshold": float},
    "tta": {"flips": bool, "scales": list},
}
"""The keys of an evaluation's metrics.json that are read, with their types."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of a run, or of the average of several, on a test set."""

    run: str  # of several runs, the folder that the evaluation is in
    images: str  # the name of the test set
    prediction: str  # how the images were predicted
    remark: str  # why the scores are too high, if they are
    scores: "DataFrame"  # see `polyp.runs.folder.read_rows`


def find_evaluations(folders: Sequence[Path]) -> tuple[list[Evaluation], list[str]]:
    """The evaluations of polyps at or below folders, and a line for each that cannot be read."""
    evaluations: dict[Any, Evaluation] = {}
    problems = []
    paths = {file.parent for folder in folders for file in folder.rglob("evaluations/[!.]*/metrics.json")}
    for path in sorted(paths):
        folder = RunFolder(path)
        try:
            metrics = files.read_json(folder.metrics_file)
            check_metrics(metrics, KEYS)
            if metrics["normal"]:
                continue
            scores = read_rows(folder.rows_file, metrics["n"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            problems.append(f"{path}: {describe_error(error)}")
            continue
        run, prediction = RunRecord(path.parents[1], {}, {}).name, _describe_prediction(metrics)
        number = (metrics.get("training_images") or {}).get("found", 0)
        remark = f"too good: trained on {number} of the images" if number else ""
        evaluation = Evaluation(run, metrics["images"], prediction, remark, scores)
        evaluations.setdefault((run, prediction, tuple(scores["dice"])), evaluation)
    return list(evaluations.values()), problems


def _describe_prediction(metrics: dict[str, Any]) -> str:
    models, tta, threshold = len(metrics["models"]), metrics["tta"], metrics["threshold"]
    parts = [f"{models} models"] * (models > 1) + ["flips"] * tta["flips"]
    if tta["scales"] != [1.0]:
        parts.append(f"scales {', '.join(map(str, tta['scales']))}")
    text = f"average over {' and '.join(parts)}" if parts else PLAIN
    return text if threshold == 0.5 else f"{text}, threshold {threshold:g}"


def build_evaluation_tables(comparison: Comparison, evaluations: Sequence[Evaluation]) -> dict[str, Table]:
    """A table for each test set of evaluations, by its name; differences are to the first row.

    The rows are in the order of the runs and include the runs' own tests.
    """
    tests = [
        Evaluation(run.name, "test", PLAIN, "", run.scores) for run in comparison.runs if run.fold_count == 1
    ]
    groups: dict[Any, list[Evaluation]] = defaultdict(list)
    for evaluation in (*evaluations, *tests):
        group = groups[frozenset((evaluation.scores["tp"] + evaluation.scores["fn"]).items())]
        if (evaluation.run, evaluation.prediction) not in [(e.run, e.prediction) for e in group]:
            group.append(evaluation)
    ranks = {run.name: rank for rank, run in enumerate(comparison.runs)}
    tables: dict[str, Table] = {}
    for images, group in groups.items():
        if all(evaluation in tests for evaluation in group):
            continue
        group.sort(key=lambda e: (ranks.get(e.run, len(ranks)), e.prediction != PLAIN, e.prediction))
        name = f"{group[0].images}, {count(len(images), 'image')}"
        tables[f"{name} ({len(tables) + 1})" if name in tables else name] = _build_table(group)
    return tables


def _build_table(evaluations: Sequence[Evaluation]) -> Table:
    stems = evaluations[0].scores.index.sort_values()
    dice = np.stack([evaluation.scores["dice"].reindex(stems) for evaluation in evaluations], axis=1)
    tests = sign_flip_tests(dice[:, 1:] - dice[:, :1], LEVEL) if len(evaluations) > 1 else []
    rows: list[dict[str, Any]] = []
    for index, evaluation in enumerate(evaluations):
        low, high = compute_interval(dice[:, index]) or (None, None)
        row = {"run": evaluation.run, "prediction": evaluation.prediction, "dice": dice[:, index].mean()}
        row |= {"dice_low": low, "dice_high": high, "remark": evaluation.remark}
        if index:
            test = tests[index - 1]
            row |= {"difference": test.value, "p": test.p}
            if test.interval:
                row |= dict(zip(("difference_low", "difference_high"), test.interval, strict=True))
                direction = "better" if test.value > 0 else "worse"
                row["verdict"] = "not distinguishable" if test.p >= LEVEL else direction
        rows.append(row)
    columns = [
        Column("run"),
        Column("prediction"),
        Column("dice", "Dice (95 %)", partial(format_mean, name="dice")),
        Column("difference", "difference to the first", _format_difference),
        Column("p", format=format_p),
        Column("verdict", align="left"),
        *[Column("remark")] * any(evaluation.remark for evaluation in evaluations),
    ]
    return Table(rows, columns)


def _format_difference(row: Mapping[str, Any]) -> str:
    if "difference_low" not in row:  # the first row, or too few images for an interval
        return f"{row['difference']:+.3f}" if "difference" in row else ""
    return format_difference(row["difference"], row["difference_low"], row["difference_high"])
