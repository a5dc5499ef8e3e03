"""Runs, found below folders and read as they are, whatever version made them."""

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from polyp import runs
from polyp.comparison import curves
from polyp.errors import InputError, describe_error
from polyp.runs import identity

OWN_PLACE = ("seed", "model.image_size")
"""Keys that are no setting of a recipe: the seed tells its runs apart, and model.image_size repeats data.image_size."""

NEEDED = {"definitions", "device", "epochs", "parameters", "peak_memory_mb", "precision", "versions"}
"""What else metrics.json has had since the first version."""


@dataclass(frozen=True)
class Run:
    """A run's folder and what it says.

    Attributes:
        folder: the run's.
        config: its configuration, as nested plain containers.
        metrics: what metrics.json holds; empty if the run is not finished.
        rows: the numbers of per_image.csv by the image's stem; empty if the run is not finished.
    """

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    rows: dict[str, dict[str, float]]

    @property
    def name(self) -> str:
        """The folder, as seen from here if it lies below."""
        relative = os.path.relpath(self.folder)
        return str(self.folder) if relative.startswith("..") else relative

    @property
    def seed(self) -> int:
        """Of the training."""
        return self.config["seed"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What may make a difference: the keys of the configuration, written with dots, and what the data were."""
        flat = dict(_flat(self.config))
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
            raise InputError(f"{self.name} went by {best['monitor']} and its curves are gone: it has no val/dice")
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
            names = [f"{one.get('_target_', '?').rpartition('.')[2]}({_arguments(one)})" for one in value]
            yield prefix.removesuffix("."), " ".join(names) or "none"
        elif isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str) and value.endswith((".safetensors", ".pt")):
            yield f"{prefix}{key}", Path(value).name  # wherever the file lies
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else value


def _arguments(transform: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in transform.items() if key != "_target_")


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run at or below the folders, each once.

    Raises:
        InputError: a folder is not there or cannot be read, or a run in it is damaged.
    """
    found: dict[Path, Path] = {}
    for top in folders:
        if not top.is_dir():
            raise InputError(f"{top} is not a folder: give a run, a sweep or outputs/")
        for path, names, files in os.walk(top, onerror=_refuse):
            names[:] = sorted(name for name in names if not name.startswith("."))
            if runs.CONFIG in files and ({runs.METRICS, runs.LOG} & set(files) or runs.CHECKPOINTS in names):
                names.clear()
                found.setdefault(Path(path).resolve(), Path(path))
    return [read(folder) for folder in found.values()]


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read ({describe_error(error)}): give a folder that can") from error


def read(folder: Path) -> Run:
    """One run.

    Raises:
        InputError: a file of it is missing or damaged; the message has its path.
    """
    try:
        config = runs.read_config(folder)
        assert not (lacks := {"seed", "data", "model"} - config.keys()), f"it lacks {', '.join(sorted(lacks))}"
    except InputError:
        raise
    except Exception as error:  # there is no end to what a damaged YAML file can raise
        raise InputError(
            f"{folder / runs.CONFIG} is damaged ({describe_error(error)}): move the run elsewhere"
        ) from error
    if not runs.finished(folder):
        return Run(folder, config, {}, {})
    way_out = f"train it again (python train.py {runs.resume_hint(folder)}) or move it elsewhere"
    try:
        metrics = runs.read_metrics(folder)
        assert metrics["test"]["dice"] >= 0 and metrics["best"]["monitor"] and metrics["data"]["fingerprint"]
        assert metrics["data"]["images"]["train"] and metrics["seconds"] > 0
        assert not (lacks := NEEDED - metrics.keys()), f"it lacks {', '.join(sorted(lacks))}"
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(
            f"{folder / runs.METRICS} is damaged ({describe_error(error)}): delete it and {way_out}"
        ) from error
    file = folder / runs.PER_IMAGE
    if not file.is_file():
        raise InputError(
            f"{folder} has no {runs.PER_IMAGE}, the scores that runs are compared by: put it back, or "
            f"delete {runs.METRICS} and {way_out}"
        )
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = {row.pop("stem"): _numbers(row) for row in csv.DictReader(stream)}
        assert len(rows) == metrics["test"]["n"] > 0, f"{len(rows)} images instead of {metrics['test']['n']}"
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{file} is damaged ({describe_error(error)}): delete {runs.METRICS} and {way_out}") from error
    return Run(folder, config, metrics, rows)


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in row.items() if value != ""}
    assert 0 <= numbers["dice"] <= 1, f"a Dice of {numbers['dice']}"
    return numbers
