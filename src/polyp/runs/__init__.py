"""A run's folder and what is in it: config.yaml, checkpoints/, metrics.json, per_image.csv, pictures/, train.log.

A stored configuration is plain data: nested dicts, lists and values, in which nothing is resolved.
"""

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from packaging.version import InvalidVersion, Version

from polyp import files
from polyp.errors import InputError, describe_error, override_text, shell_word
from polyp.report.tables import to_csv

CONFIG = "config.yaml"
METRICS = "metrics.json"
PER_IMAGE = "per_image.csv"
SPLIT = "split.json"
PICTURES = "pictures"
CHECKPOINTS = "checkpoints"
EXPORT = "export"
LAST = "last.ckpt"
LOG = "train.log"
LOCK = ".lock"
CHANGES = "changes"
"""The key of config.yaml that lists what `resume=RUN` has changed: when, key, before and now."""

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
    files_of_a_run = (folder / METRICS, last_checkpoint(folder), previous_checkpoint(folder), best_checkpoint(folder))
    return any(file.exists() for file in files_of_a_run)


def finished(folder: Path) -> bool:
    """Whether the run has come to its end: metrics.json, which is written last, is there and valid."""
    try:
        read_metrics(folder)
    except InputError:
        return False
    return True


def in_sweep(folder: Path) -> bool:
    """Whether a run is a job of a sweep."""
    return (folder.parent / SWEEP).is_file()


def resume_hint(folder: Path) -> str:
    """What to type to continue a run, or the sweep that it is a job of."""
    return shell_word(override_text("resume", os.path.relpath(folder.parent if in_sweep(folder) else folder)))


def way_out(folder: Path) -> str:
    """What to do about a full disk that has stopped a run, as the end of a message."""
    saved = (folder / CONFIG).is_file()
    return f"free some space, then {f'continue with {resume_hint(folder)}' if saved else 'give the command again'}"


@contextmanager
def claimed(folder: Path, what: str) -> Iterator[None]:
    """Be the only process that writes to a run's or a sweep's folder; given up when the process ends, however it ends.

    Raises:
        InputError: another process is at it, or the folder cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise InputError(f"another process runs {what} in {folder}: wait for it, or give another folder") from error
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        raise InputError(f"cannot write to {folder} ({describe_error(error)})") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def replace_folder(folder: Path, what: str) -> Iterator[Path]:
    """A hidden folder beside `folder`, which takes its place at the end; if anything is raised, it is removed.

    Args:
        folder: the folder to make or replace.
        what: what writes it, for the message.

    Raises:
        InputError: another process writes the same folder.
        WriteError: the disk is full or read-only; `folder` is as it was.
    """
    hidden = folder.absolute().with_name(f".part-{folder.absolute().name}")
    new, old = hidden / "new", hidden / "old"
    try:
        hidden.mkdir(parents=True, exist_ok=True)
        with claimed(hidden, what):
            try:
                for left in (new, old):  # of a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                new.mkdir()
                yield new
                if folder.exists():
                    os.replace(folder, old)
                os.replace(new, folder)
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        raise files.WriteError(f"cannot write to {folder} ({describe_error(error)})") from error


def is_claimed(folder: Path) -> bool:
    """Whether another process is writing to the folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with claimed(folder, ""):
            return False
    except InputError:
        return True


def begin(folder: Path, config: Mapping[str, Any], subsets: Mapping[str, Sequence[str]]) -> None:
    """Write config.yaml, the configuration and the version that it is for, and split.json.

    The numbers of a finished run, which is now to be trained on, are kept under another name; damaged ones are not.
    """
    if finished(folder):
        (folder / METRICS).rename(folder / f"metrics_after_{read_metrics(folder)['epochs']}_epochs.json")
    files.write_json(folder / SPLIT, subsets)
    files.write_text(folder / CONFIG, OmegaConf.to_yaml({"polyp": version("polyp"), **config}))


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run, as nested plain containers.

    Raises:
        InputError: there is none, it is damaged, or it was written by a newer version.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not the folder of a run: it has no {CONFIG}")
    try:
        config = files.read_yaml(folder / CONFIG)
        made = config.pop("polyp", "0.1.0")  # which did not say so
        newer = Version(made) > Version(version("polyp"))
        if lacking := [key for key in ("data", "model", "trainer") if not isinstance(config.get(key), dict)]:
            raise TypeError(f"it lacks {' and '.join(lacking)}")
    except (files.DamagedError, AttributeError, TypeError, InvalidVersion) as error:
        raise files.DamagedError(
            f"{folder / CONFIG} is damaged ({describe_error(error)}): move the run elsewhere"
        ) from error
    if newer:
        raise InputError(f"{folder} was made by polyp {made}, newer than this {version('polyp')}: update polyp first")
    if isinstance(data := config.get("data"), dict) and "split_seed" not in data:
        data["split_seed"] = config.get("seed") if data.get("split") == "random" else 0  # what it was before 0.5.0
    return config


METRICS_KEYS: Mapping[str, Any] = {
    "test": {
        "dice": float,
        "iou": float,
        "precision": float,
        "recall": float,
        "mae": float,
        "pooled_dice": float,
        "n": int,
    },
    "best": {"monitor": str, "value": float, "epoch": int},
    "definitions": dict,
    "seed": int,
    "data": {
        **{"dataset": str, "fingerprint": str, "split": str, "image_size": list},
        "images": {"train": int, "val": int, "test": int},
    },
    "parameters": int,
    "epochs": int,
    "seconds": float,
    "peak_memory_mb": float,
    "device": str,
    "precision": str,
    "versions": dict,
}
"""What metrics.json has held since the first version, with the types; a number without fraction is a float as well."""


def check_keys(content: Mapping[str, Any], keys: Mapping[str, Any], prefix: str = "") -> None:
    """Check that keys are there and have values of their types; numbers must be finite and not negative.

    Args:
        content: of a file.
        keys: the type of each key, or the same of its own keys.
        prefix: of the keys, for the message.

    Raises:
        ValueError: a key is missing, or its value is something else.
    """
    for key, kind in keys.items():
        if key not in content:
            raise ValueError(f"it lacks {prefix}{key}")
        value = content[key]
        if kind in (int, float):
            valid = isinstance(value, int | kind) and not isinstance(value, bool) and 0 <= value < math.inf
        else:
            valid = isinstance(value, dict if isinstance(kind, Mapping) else kind)
        if not valid:
            raise ValueError(f"{prefix}{key} is {value!r}")
        if isinstance(kind, Mapping):
            check_keys(value, kind, f"{prefix}{key}.")


def read_metrics(folder: Path) -> dict[str, Any]:
    """The numbers of a finished run.

    Raises:
        DamagedError: metrics.json is empty, cut short, altered, or lacks one of `METRICS_KEYS`; resuming the run
            writes it anew.
        InputError: there is none: the run is not finished.
    """
    file = folder / METRICS
    if not file.is_file():
        raise InputError(f"{folder} is not finished, it has no {METRICS}: python train.py {resume_hint(folder)}")
    way_out = f"python train.py {resume_hint(folder)} writes it anew"
    try:
        metrics = files.read_json(file)
    except files.DamagedError as error:
        raise files.DamagedError(f"{error}: {way_out}") from error
    try:
        if not isinstance(metrics, dict):
            raise ValueError("it holds no keys")
        check_keys(metrics, METRICS_KEYS)
    except ValueError as error:
        raise files.DamagedError(f"{file} is damaged ({describe_error(error)}): {way_out}") from error
    return metrics


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json."""
    files.write_json(folder / METRICS, metrics)


def write_per_image(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write per_image.csv: one row per test image."""
    files.write_text(folder / PER_IMAGE, to_csv(rows, list(rows[0])))
