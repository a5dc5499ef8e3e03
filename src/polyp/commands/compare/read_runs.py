"""Finds runs in folders and reads them, whatever version of polyp wrote them."""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyp.errors import InputError, describe_error, printable, train_command
from polyp.files import DamagedError
from polyp.runs import identity
from polyp.runs.configuration import find_choice
from polyp.runs.folder import RunFolder, check_metrics

if TYPE_CHECKING:
    from pandas import DataFrame

NOT_COMPARED = (
    *identity.NEUTRAL,
    *("seed", "model.image_size", "data.images", "data.masks", "data.missing_mask"),
)
"""Keys that are not settings: seeds are runs of one configuration, data.image_size is the same as
model.image_size, and the data's fingerprint stands for its files.
"""

# The keys of config.yaml since the first version, with their types.
CONFIG_KEYS = {"seed": int, "monitor": str, "data": {"dataset": str}, "model": {"arch": str, "encoder": str}}


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The files of a run; a run without folds is fold 0 of 1."""

    folder: Path
    config: dict[str, Any]  # nested plain containers
    metrics: dict[str, Any]  # empty if the run is not finished
    scores: "DataFrame" = None  # see `RunFolder.read_scores`; None if the run is not finished
    damage: str = ""  # why the run is left out, in one line

    @property
    def name(self) -> str:
        """The folder, relative to the current folder if it is in that one."""
        relative = os.path.relpath(self.folder)
        return str(self.folder) if relative.startswith("..") else relative

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.config["seed"]

    @property
    def fold_count(self) -> int:
        """The number of folds that the images are divided into."""
        return self.metrics["data"].get("folds", 1)

    @property
    def fold(self) -> int:
        """The fold that is the run's test set."""
        return self.metrics["data"].get("fold", 0)

    @property
    def split_is_drawn(self) -> bool:
        """Whether the test images depend on data.split_seed."""
        return bool(self.config["data"].get("folds")) or self.metrics["data"]["split"] == "random"

    @property
    def split(self) -> str:
        """The split, such as `official`, `5 folds (seed 0)` or `random (seed 0)`."""
        data = self.config["data"]
        split = f"{data['folds']} folds" if data.get("folds") else self.metrics["data"]["split"]
        return f"{split} (seed {data['split_seed']})" if self.split_is_drawn else split

    @property
    def image_size(self) -> str:
        """Height and width of the network's input, such as 352x352."""
        return "x".join(map(str, self.metrics["data"]["image_size"]))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that may affect the result, with dotted keys, and the data's fingerprint."""
        config = self.config | {"model": _format_loss(self.config["model"])}
        if name := find_choice("augment", config["augment"]):
            config["augment"] = name
        settings = dict(_format_leaf(key, value) for key, value in identity.flatten(config))
        if settings.get("data.folds"):
            settings.pop("data.split", None)  # has no effect
        if not self.split_is_drawn:
            settings.pop("data.split_seed", None)
        if self.fold_count > 1 or not settings.get("data.fold"):
            settings.pop("data.fold", None)  # the folds are runs of one configuration
        settings["data.fingerprint"] = self.metrics["data"]["fingerprint"]
        return {
            key: value
            for key, value in settings.items()
            if value not in (None, {}) and not identity.matches(key, NOT_COMPARED)
        }

    @cached_property
    def test_set(self) -> frozenset[tuple[str, float]]:
        """The stems of the test images, and the number of polyp pixels of each."""
        return frozenset((self.scores["tp"] + self.scores["fn"]).items())

    def shares_division(self, run: "RunRecord") -> bool:
        """Whether both test sets may come from the same division of the images into folds."""
        if self.fold == run.fold:
            return self.test_set == run.test_set
        return self.test_set.isdisjoint(run.test_set)

    @property
    def monitor(self) -> str:
        """The metric that chose the run's checkpoint."""
        return self.metrics["best"]["monitor"]

    @cached_property
    def val(self) -> float:
        """Dice on the validation images at network resolution, of the checkpoint that was tested.

        Raises:
            InputError: another metric chose the checkpoint, and the curves are gone.
        """
        best = self.metrics["best"]
        if best["monitor"] == "val/dice":
            return best["value"]
        points = self.curves.get("val/dice", [])
        if len(points) <= best["epoch"]:
            monitor = printable(best["monitor"])
            raise InputError(f"{self.name} went by {monitor} and its curves are gone: it has no val/dice")
        return points[best["epoch"]]

    @property
    def normal(self) -> dict[str, Any]:
        """The numbers of the normal frames; empty without any."""
        return self.metrics["test"].get("normal", {})

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The numbers that are averaged over seeds, by their column in table.csv."""
        metrics = self.metrics
        images = metrics["epochs"] * metrics["data"]["images"]["train"]
        return {
            "val/dice": self.val,
            "test/dice": metrics["test"]["dice"],
            **({"test/false_alarms": self.normal["false_alarms"]} if self.normal else {}),
            "peak_memory_mb": metrics["peak_memory_mb"],
            "minutes": metrics["seconds"] / 60,
            "images_per_second": images / metrics["seconds"],
            "epochs": metrics["epochs"],
        }

    @cached_property
    def gmacs(self) -> float | None:
        """10^9 multiply-accumulates for an image; None for a network that this version cannot build."""
        from polyp.model.cost import multiply_accumulates  # imports torch

        try:
            return multiply_accumulates(self.config["model"]) / 1e9
        except InputError:
            return None

    @cached_property
    def curves(self) -> dict[str, list[float]]:
        """The values of each epoch by name (train/loss, val/dice, ...), from the TensorBoard files.

        Of a damaged file, the values before the damage are used, as by TensorBoard.
        """
        from tensorboard.backend.event_processing import event_accumulator as events

        logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of each run that was resumed
        # All scalars are read, but only one picture of each name, since many would fill the memory.
        limits = dict.fromkeys(events.DEFAULT_SIZE_GUIDANCE, 1) | {events.SCALARS: 0}
        accumulator = events.EventAccumulator(str(self.folder), size_guidance=limits)
        try:
            accumulator.Reload()
        except OSError:  # runs can be compared without curves
            return {}
        names = accumulator.Tags()[events.SCALARS]
        return {name: [event.value for event in accumulator.Scalars(name)] for name in names}

    @cached_property
    def progress(self) -> str:
        """The progress of an unfinished run, such as `epoch 3 of 10`."""
        for line in reversed(RunFolder(self.folder).read_log()):
            if match := re.match(r"epoch \d+ of \S+", line):
                return match[0]
        is_saved = RunFolder(self.folder).last_checkpoint.exists()
        return "in its first epoch, saved" if is_saved else "no epoch finished"


def _format_loss(model: Mapping[str, Any]) -> dict[str, Any]:
    """The section `model`, with a weighted sum of losses as text: bce 0.5 + dice 1."""
    loss = model.get("loss")
    if not isinstance(loss, Mapping):
        return dict(model)
    return {**model, "loss": " + ".join(sorted(f"{name} {weight}" for name, weight in loss.items()))}


def _format_leaf(key: str, value: Any) -> tuple[str, Any]:
    """A key and its value for a comparison: lists as text, weight files without their folder."""
    if isinstance(value, list):
        if key.endswith(".transforms"):
            return key.removesuffix(".transforms"), " ".join(map(_format_transform, value)) or "none"
        return key, json.dumps(value, default=str)
    if isinstance(value, str) and value.endswith((".safetensors", ".pt")):
        return key, Path(value).name
    return key, value


def _format_transform(transform: Any) -> str:
    if not isinstance(transform, Mapping):
        return str(transform)
    arguments = ",".join(f"{key}={value}" for key, value in transform.items() if key != "_target_")
    return f"{str(transform.get('_target_', '?')).rpartition('.')[2]}({arguments})"


def find_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """The runs in the folders and their subfolders, each once.

    A damaged run in a subfolder is returned with its `damage`, so that the other runs can be compared.

    Raises:
        InputError: a folder does not exist, cannot be read, or is itself a damaged run.
    """
    paths: dict[Path, Path] = {}
    errors: list[OSError] = []
    for top in folders:
        if not top.is_dir():
            raise InputError(f"{top} is not a folder: give a run, a sweep or outputs/")
        for folder, subfolders, names in os.walk(top, onerror=errors.append):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            is_run = {"metrics.json", "train.log"} & set(names) or RunFolder.CHECKPOINTS in subfolders
            if "config.yaml" in names and is_run:
                subfolders.clear()
                paths.setdefault(Path(folder).resolve(), Path(folder))
    runs = []
    for error in errors:
        damage = f"{error.filename} cannot be read ({describe_error(error)})"
        if Path(error.filename) in folders:
            raise InputError(f"{damage}: give a folder that can") from error
        runs.append(RunRecord(Path(error.filename), {}, {}, damage=damage))
    required = {folder.resolve() for folder in folders}
    for resolved, path in paths.items():
        try:
            run = read_run(path)
            if run.metrics and resolved not in required:
                run.val  # noqa: B018 - raises InputError without the metric that ranks runs
        except InputError as input_error:
            if resolved in required:
                raise
            run = RunRecord(path, {}, {}, damage=str(input_error))
        runs.append(run)
    return runs


def read_run(path: Path) -> RunRecord:
    """Read one run.

    Raises:
        InputError: a file of the run is missing or damaged.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    try:
        file, advice = folder.config_file, "move the run elsewhere"
        check_metrics(config, CONFIG_KEYS)
        if not folder.metrics_file.exists():
            return RunRecord(path, config, {})
        file, metrics = folder.metrics_file, folder.read_metrics()
        advice = f"train it again ({train_command()} {folder.resume_override}) or move it elsewhere"
        if not (metrics["test"]["n"] and metrics["parameters"] and metrics["seconds"]):
            raise ValueError("n, parameters or seconds is 0")
        if "folds" in metrics["data"]:
            check_metrics(metrics["data"], {"folds": int, "fold": int}, "data.")
        if "normal" in metrics["test"]:
            check_metrics(metrics["test"], {"normal": {"n": int, "false_alarms": float}}, "test.")
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise DamagedError(f"{file} is damaged ({describe_error(error)}): {advice}") from error
    return RunRecord(path, config, metrics, folder.read_scores())
