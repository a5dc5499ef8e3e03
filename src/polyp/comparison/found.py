"""Runs, found below folders and read as they are, whatever version made them."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from polyp import files, runs, tables
from polyp.comparison import curves
from polyp.errors import InputError, describe_error, printable, train_command
from polyp.runs import identity

OWN_PLACE = ("seed", "model.image_size")
"""Keys that are no setting of a recipe: the seed tells its runs apart, and model.image_size repeats data.image_size."""

MEANS = ("dice", "iou", "precision", "recall", "mae")
"""The numbers per image that every version has written."""

CONFIG_KEYS = {
    "seed": int,
    "monitor": str,
    "data": {"dataset": str},
    "model": {"arch": str, "encoder": str},
    "optim": dict,
    "trainer": dict,
}
"""What config.yaml has held since the first version, with the types."""


@dataclass(frozen=True)
class Run:
    """A run's folder and what it says.

    Attributes:
        folder: the run's.
        config: its configuration, as nested plain containers.
        metrics: what metrics.json holds; empty if the run is not finished.
        rows: the numbers of per_image.csv by the image's stem; empty if the run is not finished.
        damage: why the run is left out, in a line; empty if nothing is wrong with it.
    """

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    rows: dict[str, dict[str, float]]
    damage: str = ""

    @property
    def name(self) -> str:
        """The folder, as seen from here if it lies below."""
        relative = os.path.relpath(self.folder)
        return str(self.folder) if relative.startswith("..") else relative

    @property
    def seed(self) -> int:
        """Of the training."""
        return self.config["seed"]

    @property
    def split(self) -> str:
        """The split; of a random one also the seed that it was drawn with."""
        split = self.metrics["data"]["split"]
        return f"random (seed {self.split_seed})" if split == "random" else split

    @property
    def split_seed(self) -> Any:
        """What a random split was drawn with: data.split_seed, or the run's seed before there was one; else None."""
        data = self.config["data"]
        return data.get("split_seed", self.seed) if data.get("split") == "random" else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What may make a difference: the keys of the configuration, written with dots, and what the data were."""
        flat = dict(_flat(self.config))
        flat["data.split_seed"] = self.split_seed
        flat["data.fingerprint"] = self.metrics["data"]["fingerprint"] if self.metrics else None
        ignored = identity.NEUTRAL + OWN_PLACE
        return {key: value for key, value in flat.items() if value is not None and not identity.matches(key, ignored)}

    @cached_property
    def truth(self) -> frozenset[tuple[str, float]]:
        """What the test set is known by: stems, and how many pixels of each image are polyp."""
        return frozenset((stem, row["tp"] + row["fn"]) for stem, row in self.rows.items())

    @property
    def monitor(self) -> str:
        """The number by which the run chose its checkpoint."""
        return self.metrics["best"]["monitor"]

    @cached_property
    def val(self) -> float:
        """Dice on the validation images at network resolution, of the checkpoint that was tested.

        Raises:
            InputError: the run went by another number, and its curves are gone.
        """
        best = self.metrics["best"]
        if best["monitor"] == "val/dice":
            return best["value"]
        points = curves.read(self.folder).get("val/dice", [])
        if len(points) <= best["epoch"]:
            raise InputError(
                f"{self.name} went by {printable(best['monitor'])} and its curves are gone: it has no val/dice"
            )
        return points[best["epoch"]]

    @property
    def test(self) -> float:
        """Mean Dice per test image at original resolution."""
        return self.metrics["test"]["dice"]

    @property
    def images_per_second(self) -> float:
        """Training images seen per second of the whole run, its validation included."""
        return self.metrics["epochs"] * self.metrics["data"]["images"]["train"] / self.metrics["seconds"]

    @cached_property
    def progress(self) -> str:
        """How far an unfinished run is."""
        log = self.folder / runs.LOG
        said = re.findall(r"^epoch (\d+) of (\S+)", log.read_text(errors="replace"), re.M) if log.is_file() else []
        if said:
            return "epoch {} of {}".format(*said[-1])
        return "in its first epoch, saved" if runs.last_checkpoint(self.folder).exists() else "no epoch finished"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if key == "transforms" and isinstance(value, list):
            names = [_call(transform) for transform in value]
            yield prefix.removesuffix("."), " ".join(names) or "none"
        elif isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str) and value.endswith((".safetensors", ".pt")):
            yield f"{prefix}{key}", Path(value).name  # wherever the file lies
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str) if isinstance(value, list) else value


def _call(transform: Any) -> str:
    if not isinstance(transform, Mapping):
        return str(transform)
    arguments = ",".join(f"{key}={value}" for key, value in transform.items() if key != "_target_")
    return f"{str(transform.get('_target_', '?')).rpartition('.')[2]}({arguments})"


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run at or below the folders, each once.

    A damaged run below a folder is returned with its `damage`, so that it does not keep the others from being compared.

    Raises:
        InputError: a folder is not there or cannot be read, or is itself a damaged run.
    """
    found: dict[Path, Path] = {}
    damaged: dict[Path, str] = {}
    for top in folders:
        if not top.is_dir():
            raise InputError(f"{top} is not a folder: give a run, a sweep or outputs/")

        def refuse(error: OSError, top: Path = top) -> None:
            reason = f"{error.filename} cannot be read ({describe_error(error)})"
            if Path(error.filename) == top:
                raise InputError(f"{reason}: give a folder that can") from error
            damaged[Path(error.filename)] = reason

        for path, names, inside in os.walk(top, onerror=refuse):
            names[:] = sorted(name for name in names if not name.startswith("."))
            if runs.CONFIG in inside and ({runs.METRICS, runs.LOG} & set(inside) or runs.CHECKPOINTS in names):
                names.clear()
                found.setdefault(Path(path).resolve(), Path(path))
    named = {top.resolve() for top in folders}
    return [
        *(read(folder) if place in named else _read_or_leave_out(folder) for place, folder in found.items()),
        *(Run(folder, {}, {}, {}, reason) for folder, reason in damaged.items()),
    ]


def _read_or_leave_out(folder: Path) -> Run:
    try:
        run = read(folder)
        if run.metrics:
            run.val  # noqa: B018 - raises where the number that runs are ranked by is gone
        return run
    except InputError as error:
        return Run(folder, {}, {}, {}, str(error))


def read(folder: Path) -> Run:
    """One run.

    Raises:
        InputError: a file of it is missing or damaged; the message has its path.
    """
    config = runs.read_config(folder)
    try:
        runs.check_keys(config, CONFIG_KEYS)
    except ValueError as error:
        raise files.DamagedError(f"{folder / runs.CONFIG} is damaged ({error}): move the run elsewhere") from error
    if not (folder / runs.METRICS).exists():
        return Run(folder, config, {}, {})
    way_out = f"train it again ({train_command()} {runs.resume_hint(folder)}) or move it elsewhere"
    metrics = runs.read_metrics(folder)
    if not (metrics["test"]["n"] and metrics["parameters"] and metrics["seconds"]):
        raise files.DamagedError(f"{folder / runs.METRICS} is damaged (n, parameters or seconds is 0): {way_out}")
    file = folder / runs.PER_IMAGE
    if not file.is_file():
        raise files.DamagedError(
            f"{folder} has no {runs.PER_IMAGE}, the scores that runs are compared by: put it back, or "
            f"delete {runs.METRICS} and {way_out}"
        )
    try:
        rows = {row.pop("stem"): _numbers(row) for row in tables.read_csv(file)}
        if len(rows) != metrics["test"]["n"]:
            raise ValueError(f"{len(rows)} images instead of {metrics['test']['n']}")
    except (OSError, ValueError, KeyError) as error:
        reason = f"it lacks {error.args[0]}" if isinstance(error, KeyError) else describe_error(error)
        raise files.DamagedError(f"{file} is damaged ({reason}): delete {runs.METRICS} and {way_out}") from error
    return Run(folder, config, metrics, rows)


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in row.items() if value != ""}
    if not 0 <= numbers["dice"] <= 1:
        raise ValueError(f"a Dice of {numbers['dice']}")
    for name in ("tp", "fp", "fn", *MEANS):
        if not math.isfinite(numbers[name]):
            raise ValueError(f"{name} is {numbers[name]}")
    return numbers
