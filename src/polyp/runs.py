"""A run's folder and what is in it: config.yaml, checkpoints/, metrics.json, per_image.csv, pictures/, train.log."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from packaging.version import Version

from polyp.errors import InputError

CONFIG = "config.yaml"
METRICS = "metrics.json"
PER_IMAGE = "per_image.csv"
PICTURES = "pictures"
CHECKPOINTS = "checkpoints"
EXPORT = "export"
LAST = "last.ckpt"
LOG = "train.log"
SWEEP = "multirun.yaml"
"""What Hydra writes into a sweep's folder: the sweep as it was given."""

RESULTS = "results.csv"
"""The table of a sweep: its presence means that every job has finished."""


def best_checkpoint(folder: Path) -> Path:
    """The weights that validated best."""
    return folder / CHECKPOINTS / "best.ckpt"


def last_checkpoint(folder: Path) -> Path:
    """Everything that is needed to continue."""
    return folder / CHECKPOINTS / LAST


def previous_checkpoint(folder: Path) -> Path:
    """The last checkpoint but one, for when the last is damaged."""
    return folder / CHECKPOINTS / "previous.ckpt"


def started(folder: Path) -> bool:
    """Whether there is something in the folder that a new run must not overwrite."""
    return finished(folder) or last_checkpoint(folder).exists() or previous_checkpoint(folder).exists()


def finished(folder: Path) -> bool:
    """Whether the run has come to its end: metrics.json is written last and in one piece."""
    return (folder / METRICS).is_file()


def in_sweep(folder: Path) -> bool:
    """Whether a run is a job of a sweep."""
    return (folder.parent / SWEEP).is_file()


def resume_hint(folder: Path) -> str:
    """What to type to continue a run, or the sweep that it is a job of."""
    return f"resume={os.path.relpath(folder.parent if in_sweep(folder) else folder)}"


@contextmanager
def claimed(folder: Path, what: str) -> Iterator[None]:
    """Be the only process that writes to a run's or a sweep's folder; given up when the process ends, however it ends.

    Raises:
        InputError: another process is at it, or the folder cannot be written.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise InputError(f"another process runs {what} in {folder}: wait for it, or give another folder") from error
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        raise InputError(f"cannot write to {folder} ({getattr(error, 'strerror', None) or error})") from error
    try:
        yield
    finally:
        lock.release()


def is_claimed(folder: Path) -> bool:
    """Whether another process is writing to the folder."""
    if not (folder / ".lock").exists():
        return False
    try:
        with claimed(folder, ""):
            return False
    except InputError:
        return True


def write_whole(file: Path, text: str) -> None:
    """Write a file in one piece: whoever finds it finds it whole."""
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)  # of a disk that is full


def begin(folder: Path, config: DictConfig) -> None:
    """Write config.yaml: the configuration, resolved, and the version that it is for.

    The numbers of a finished run, which is now to be trained on, are kept under another name.
    """
    if finished(folder):
        (folder / METRICS).rename(folder / f"metrics_after_{read_metrics(folder)['epochs']}_epochs.json")
    made = OmegaConf.create({"polyp": version("polyp")})
    write_whole(folder / CONFIG, OmegaConf.to_yaml(made) + OmegaConf.to_yaml(config, resolve=True))


def read_config(folder: Path) -> DictConfig:
    """The configuration of a run.

    Raises:
        InputError: there is none, it is damaged, or it was written by a newer version.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not the folder of a run: it has no {CONFIG}")
    try:
        config = OmegaConf.load(folder / CONFIG)
        assert isinstance(config, DictConfig), "it holds no keys"
    except Exception as error:  # there is no end to what a damaged YAML file can raise
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"{folder / CONFIG} is damaged ({reason}): move the run elsewhere") from error
    made = config.pop("polyp", "0.1.0")  # which did not say so
    if Version(made) > Version(version("polyp")):
        raise InputError(f"{folder} was made by polyp {made}, newer than this {version('polyp')}: update polyp first")
    return config


def read_metrics(folder: Path) -> dict[str, Any]:
    """The numbers of a finished run."""
    return json.loads((folder / METRICS).read_text())


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json."""
    write_whole(folder / METRICS, json.dumps(metrics, indent=2) + "\n")


def write_per_image(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write per_image.csv: one row per test image."""
    with open(folder / PER_IMAGE, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
