"""Evaluations side by side: what `polyp evaluate` has left in the compared folders, by test set.

Those of the same images have paired differences: other runs, ensembles, flips and scales, or thresholds.
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
from polyp.errors import describe_error
from polyp.metrics.difference import sign_flip_tests
from polyp.metrics.intervals import bootstrap_interval
from polyp.report.tables import Column, Table, count, format_difference, format_mean, format_p
from polyp.runs.folder import RunFolder, check_metrics, read_rows

if TYPE_CHECKING:
    from pandas import DataFrame

PLAIN = "one model, one image"

KEYS = {
    **{"images": str, "normal": bool, "n": int, "models": list, "threshold": float},
    "tta": {"flips": bool, "scales": list},
}
"""What the metrics.json of an evaluation holds, with the types."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A test of a run, or of several runs together.

    Attributes:
        run: the run, or the folder that the evaluation lies in if it is of several.
        images: the name of the test set.
        way: how the images were predicted.
        remark: why the numbers are too good, if they are.
        scores: see `polyp.runs.folder.read_rows`.
    """

    run: str
    images: str
    way: str
    remark: str
    scores: "DataFrame"


def find_evaluations(folders: Sequence[Path]) -> tuple[list[Evaluation], list[str]]:
    """The evaluations with polyps at or below folders, and the reason for each that cannot be read."""
    found: dict[Any, Evaluation] = {}
    damaged = []
    for file in sorted(
        {file for folder in folders for file in folder.rglob("evaluations/[!.]*/metrics.json")}
    ):
        try:
            metrics = files.read_json(file)
            check_metrics(metrics, KEYS)
            if metrics["normal"]:
                continue
            scores = read_rows(RunFolder(file.parent).rows_file, metrics["n"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            damaged.append(f"{file.parent}: {describe_error(error)}")
            continue
        run = RunRecord(file.parents[2], {}, {}).name
        trained = (metrics.get("training_images") or {}).get("found", 0)
        remark = f"too good: trained on {trained} of the images" * bool(trained)
        evaluation = Evaluation(run, metrics["images"], _describe_way(metrics), remark, scores)
        found.setdefault((run, evaluation.way, tuple(scores["dice"])), evaluation)
    return list(found.values()), damaged


def _describe_way(metrics: dict[str, Any]) -> str:
    models, tta, threshold = len(metrics["models"]), metrics["tta"], metrics["threshold"]
    averaged = [f"{models} models"] * (models > 1) + ["flips"] * tta["flips"]
    averaged += [f"scales {', '.join(map(str, tta['scales']))}"] * (tta["scales"] != [1.0])
    way = f"average over {' and '.join(averaged)}" if averaged else PLAIN
    return way if threshold == 0.5 else f"{way}, threshold {threshold:g}"


def build_evaluation_tables(comparison: Comparison, evaluations: Sequence[Evaluation]) -> dict[str, Table]:
    """A table for each test set of evaluations, by its name; the first row is what the others differ from.

    The rows are in the order of the runs, their own tests included.
    """
    tests = [
        Evaluation(run.name, "test", PLAIN, "", run.scores) for run in comparison.runs if run.fold_count == 1
    ]
    sets: dict[Any, list[Evaluation]] = defaultdict(list)
    for evaluation in (*evaluations, *tests):
        images = frozenset((evaluation.scores["tp"] + evaluation.scores["fn"]).items())
        if all((evaluation.run, evaluation.way) != (other.run, other.way) for other in sets[images]):
            sets[images].append(evaluation)
    order = {run.name: number for number, run in enumerate(comparison.runs)}
    tables: dict[str, Table] = {}
    for images, members in sets.items():
        if any(member in evaluations for member in members):
            members.sort(
                key=lambda member: (order.get(member.run, len(order)), member.way != PLAIN, member.way)
            )
            name = f"{members[0].images}, {count(len(images), 'image')}"
            tables[f"{name} ({len(tables) + 1})" if name in tables else name] = _build_table(members)
    return tables


def _build_table(members: Sequence[Evaluation]) -> Table:
    first = members[0].scores["dice"].sort_index()
    dice = np.stack([member.scores["dice"].reindex(first.index) for member in members], axis=1)
    tests = sign_flip_tests(dice[:, 1:] - dice[:, :1], LEVEL) if len(members) > 1 else []
    rows: list[dict[str, Any]] = []
    for member, values in zip(members, dice.T, strict=True):
        low, high = (None if np.isnan(end) else end for end in bootstrap_interval(values))
        rows.append({"run": member.run, "prediction": member.way, "dice": values.mean()})
        rows[-1] |= {"dice_low": low, "dice_high": high, "remark": member.remark}
    for row, test in zip(rows[1:], tests, strict=True):
        row |= {"difference": test.value, "p": test.p}
        if test.interval:
            row |= dict(zip(("difference_low", "difference_high"), test.interval, strict=True))
            alike = test.p >= LEVEL
            row["verdict"] = "not distinguishable" if alike else "better" if test.value > 0 else "worse"
    columns = [
        Column("run"),
        Column("prediction"),
        Column("dice", "Dice (95 %)", partial(format_mean, name="dice")),
        Column("difference", "difference to the first", _format_difference),
        Column("p", format=format_p),
        Column("verdict", align="left"),
        *[Column("remark")] * any(member.remark for member in members),
    ]
    return Table(rows, columns)


def _format_difference(row: Mapping[str, Any]) -> str:
    if "difference_low" not in row:  # the first row, or too few images for a test
        return f"{row['difference']:+.3f}" if "difference" in row else ""
    return format_difference(row["difference"], row["difference_low"], row["difference_high"])
