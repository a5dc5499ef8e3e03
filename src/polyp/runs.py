"""A run's folder and what is in it: config.yaml, checkpoints/, metrics.json, per_image.csv, pictures/, train.log."""

import csv
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polyp.errors import InputError

CONFIG = "config.yaml"
METRICS = "metrics.json"
PER_IMAGE = "per_image.csv"
PICTURES = "pictures"
CHECKPOINTS = "checkpoints"


CHANGEABLE = ("trainer.", "patience", "data.num_workers", "data.cache", "data.root", "data.archive")
"""What may be given anew when a run is resumed: nothing that its checkpoint or its numbers depend on."""


def best_checkpoint(folder: Path) -> Path:
    """The weights that validated best."""
    return folder / CHECKPOINTS / "best.ckpt"


def last_checkpoint(folder: Path) -> Path:
    """Everything that is needed to continue."""
    return folder / CHECKPOINTS / "last.ckpt"


def finished(folder: Path) -> bool:
    """Whether the run has come to its end: metrics.json is written last and in one piece."""
    return (folder / METRICS).is_file()


@functools.cache
def run_folder(resume: str | None, wanted: str) -> str:
    """The folder of the run that this process is about to start: the resumed one, else a new one.

    A folder that exists belongs to somebody else, such as a run started in the same second: the new one is numbered.
    Made at once, so that nobody else takes it; asked again, this process gets the same answer.
    """
    if resume is not None:
        if not (Path(resume) / CONFIG).is_file():  # said here, since Hydra would make the folder
            sys.exit(f"resume={resume} is not the folder of a run: it has no {CONFIG}")
        return resume
    folder, number = wanted, 1
    try:
        Path(wanted).parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                Path(folder).mkdir()
                return folder
            except FileExistsError:
                number += 1
                folder = f"{wanted}_{number}"
    except OSError as error:
        sys.exit(f"cannot make the folder {folder} ({error.strerror}): hydra.run.dir=FOLDER puts it elsewhere")


def resumed_config(folder: Path, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run that is to go on: its own, with the values given on the command line.

    Args:
        folder: the run's folder.
        overrides: the command line, `resume=FOLDER` among it.

    Raises:
        InputError: nothing is left to do, there is nothing to continue from, or an override cannot be honoured.
    """
    if finished(folder):
        raise InputError(f"resume={folder} is finished, its numbers are in {folder / METRICS}: nothing to continue")
    if not last_checkpoint(folder).is_file():
        raise InputError(f"resume={folder} has no {CHECKPOINTS}/last.ckpt to continue from: start it anew")
    config = OmegaConf.load(folder / CONFIG)
    assert isinstance(config, DictConfig)
    OmegaConf.set_struct(config, True)
    for override in overrides:
        key, _, value = override.partition("=")
        if key != "resume":
            if not key.startswith(CHANGEABLE):
                raise InputError(f"resume= cannot change {key}, only {', '.join(CHANGEABLE)}: start a new run for that")
            OmegaConf.update(config, key, OmegaConf.from_dotlist([f"value={value}"]).value)
    config.resume = str(folder)
    return config


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json in one piece: whoever finds it finds it whole."""
    unfinished = folder / f".{METRICS}"
    unfinished.write_text(json.dumps(metrics, indent=2) + "\n")
    os.replace(unfinished, folder / METRICS)


def write_per_image(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write per_image.csv: one row per test image."""
    with open(folder / PER_IMAGE, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
# use_cache: the answer travels with the configuration to the processes that a launcher starts.
OmegaConf.register_new_resolver("sweep_folder", functools.partial(run_folder, None), use_cache=True, replace=True)
