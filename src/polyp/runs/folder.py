"""A run's folder: its files, checks of their content, and its lock."""

import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from packaging.version import InvalidVersion, Version

from polyp import __version__, files
from polyp.errors import InputError, describe_error, override_word, train_command
from polyp.report.tables import to_csv, unescape_formula

if TYPE_CHECKING:
    from pandas import DataFrame

LOCK = ".lock"

SWEEP_FILE = "multirun.yaml"
"""The file in a sweep's folder with the sweep's command, which Hydra writes."""

RESULTS_FILE = "results.csv"
"""The table of a sweep: its presence means that every job has finished."""

LOG_TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
"""The time before a message in train.log, see conf/hydra/polyp.yaml."""

CHANGES = "changes"
"""The key of config.yaml that lists the changes by `resume=RUN`: when, key, before and now."""

SCORES = ("dice", "iou", "precision", "recall", "mae")
"""The numbers per image that every version has written to per_image.csv."""

METRICS_KEYS: Mapping[str, Any] = {
    "test": {**dict.fromkeys((*SCORES, "pooled_dice"), float), "n": int},
    "best": {"monitor": str, "value": float, "epoch": int},
    "definitions": dict,
    "seed": int,
    "data": {
        **{"dataset": str, "fingerprint": str, "split": str, "image_size": list},
        "images": dict.fromkeys(("train", "val", "test"), int),
    },
    "parameters": int,
    "epochs": int,
    "seconds": float,
    "peak_memory_mb": float,
    "device": str,
    "precision": str,
    "versions": dict,
}
"""The keys that metrics.json has in every version, with the types; a float may be a whole number."""


class RunFolder:
    """The folder of a run.

    A stored configuration is plain data: nested dicts, lists and values, in which nothing is resolved.

    Args:
        path: the folder; it need not exist.

    Attributes:
        config_file: config.yaml, the resolved configuration.
        metrics_file: metrics.json, the final numbers; written last: the run is finished when it is whole.
        rows_file: per_image.csv, a row for each test image.
        split_file: split.json, the stems of each subset.
        best_checkpoint: the weights that validated best.
        last_checkpoint: everything that is needed to continue.
        previous_checkpoint: the last checkpoint but one, for when the last is damaged.
        log_file, pictures, exports: train.log, pictures/ and export/.
    """

    CHECKPOINTS = "checkpoints"
    EXPORTS = "export"

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.json"
        self.rows_file = self.path / "per_image.csv"
        self.split_file = self.path / "split.json"
        self.log_file = self.path / "train.log"
        self.pictures = self.path / "pictures"
        self.exports = self.path / self.EXPORTS
        self.checkpoints = self.path / self.CHECKPOINTS
        self.best_checkpoint = self.checkpoints / "best.ckpt"
        self.last_checkpoint = self.checkpoints / "last.ckpt"
        self.previous_checkpoint = self.checkpoints / "previous.ckpt"

    def __str__(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def is_run(self) -> bool:
        """Whether a run has begun here."""
        return self.config_file.is_file()

    @property
    def is_started(self) -> bool:
        """Whether the folder has results that a new run must not overwrite."""
        results = (self.metrics_file, self.last_checkpoint, self.previous_checkpoint, self.best_checkpoint)
        return any(file.exists() for file in results)

    @property
    def is_finished(self) -> bool:
        """Whether metrics.json, which is written last, is there and valid."""
        try:
            self.read_metrics()
        except InputError:
            return False
        return True

    @property
    def is_sweep_job(self) -> bool:
        """Whether the run is a job of a sweep."""
        return (self.path.parent / SWEEP_FILE).is_file()

    @property
    def resume_override(self) -> str:
        """The override `resume=FOLDER` that continues the run, or the sweep that it is a job of."""
        folder = self.path.parent if self.is_sweep_job else self.path
        return override_word("resume", os.path.relpath(folder))

    @property
    def disk_advice(self) -> str:
        """Advice on a full disk that has stopped the run, as the end of a message."""
        command = f"continue with {self.resume_override}" if self.is_run else "give the command again"
        return f"free some space, then {command}"

    def write_config(self, config: Mapping[str, Any], subsets: Mapping[str, Sequence[str]]) -> None:
        """Write config.yaml, the configuration and the version that it is for, and split.json.

        The metrics of a finished run that trains on are kept under another name; damaged ones are not.
        """
        if self.is_finished:
            epochs = self.read_metrics()["epochs"]
            self.metrics_file.rename(self.path / f"metrics_after_{epochs}_epochs.json")
        files.write_json(self.split_file, subsets)
        files.write_text(self.config_file, OmegaConf.to_yaml({"polyp": __version__, **config}))

    def read_config(self) -> dict[str, Any]:
        """The configuration of the run, as nested plain containers.

        Raises:
            InputError: there is none, it is damaged, or it was written by a newer version.
        """
        if not self.is_run:
            raise InputError(f"{self} is not the folder of a run: it has no {self.config_file.name}")
        try:
            config = files.read_yaml(self.config_file)
            version = config.pop("polyp", "0.1.0")  # that version did not record itself
            is_newer = Version(version) > Version(__version__)
            sections = ("data", "model", "trainer")
            if names := [name for name in sections if not isinstance(config.get(name), dict)]:
                raise TypeError(f"it lacks {' and '.join(names)}")
        except (files.DamagedError, AttributeError, TypeError, InvalidVersion) as error:
            reason = f"{self.config_file} is damaged ({describe_error(error)})"
            raise files.DamagedError(f"{reason}: move the run elsewhere") from error
        if is_newer:
            raise InputError(
                f"{self} was made by polyp {version}, newer than this {__version__}: update polyp first"
            )
        data = config["data"]
        if "split_seed" not in data:  # up to 0.4.0 the run's seed drew a random split
            data["split_seed"] = config.get("seed") if data.get("split") == "random" else 0
        return config

    def read_log(self) -> list[str]:
        """The lines of train.log that are not blank, without their times; empty if it cannot be read."""
        try:
            text = self.log_file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return [LOG_TIME.sub("", line) for line in text.splitlines() if line.strip()]

    def read_metrics(self) -> dict[str, Any]:
        """The numbers of a finished run.

        Raises:
            DamagedError: metrics.json is empty, cut short, altered, or lacks one of `METRICS_KEYS`; resuming
                the run writes it anew.
            InputError: there is none: the run is not finished.
        """
        file, command = self.metrics_file, f"{train_command()} {self.resume_override}"
        if not file.is_file():
            raise InputError(f"{self} is not finished, it has no {file.name}: {command}")
        try:
            metrics = files.read_json(file)
            if not isinstance(metrics, dict):
                raise ValueError("it holds no keys")
            check_metrics(metrics, METRICS_KEYS)
        except ValueError as error:
            names_file = isinstance(error, files.DamagedError)
            reason = error if names_file else f"{file} is damaged ({describe_error(error)})"
            raise files.DamagedError(f"{reason}: {command} writes it anew") from error
        return metrics

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json."""
        files.write_json(self.metrics_file, metrics)

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write per_image.csv: one row per test image."""
        files.write_text(self.rows_file, to_csv(rows, list(rows[0])))

    def read_scores(self) -> "DataFrame":
        """The rows of per_image.csv, by stem: floats, and the text `source` where there are several.

        Raises:
            DamagedError: it is missing or damaged, or not of the test in metrics.json.
        """
        file, count = self.rows_file, self.read_metrics()["test"]["n"]
        try:
            return read_rows(file, count)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{file} is damaged ({describe_error(error)}): "
            if isinstance(error, FileNotFoundError):
                reason = f"{self} has no {file.name}: put it back, or "
            raise files.DamagedError(
                f"{reason}delete metrics.json and train it again ({train_command()} {self.resume_override}) "
                "or move it elsewhere"
            ) from error


def read_rows(file: Path, count: int) -> "DataFrame":
    """The rows of a per_image.csv, by stem: floats, and the text `source` where there are several.

    Args:
        file: of a run or an evaluation.
        count: how many images it must have.

    Raises:
        OSError: it cannot be read.
        ValueError, KeyError, TypeError: it is damaged.
    """
    import pandas

    # As text first: pandas' parser of numbers may be off in the last digit.
    scores = pandas.read_csv(file, dtype=str, keep_default_na=False, na_values=[""])
    columns = [name for name in ("stem", "source") if name in scores]
    scores[columns] = scores[columns].map(unescape_formula)
    scores = scores.set_index("stem")
    scores = scores.astype({name: float for name in scores if name != "source"})
    if len(scores) != count or not scores.index.is_unique:
        raise ValueError(f"{scores.index.nunique()} images instead of {count}")
    if not (scores[["tp", "fp", "fn", *SCORES]].abs() < math.inf).all(axis=None):
        raise ValueError("a score is missing or not finite")
    if not scores["dice"].between(0, 1).all():
        raise ValueError("a Dice is not between 0 and 1")
    return scores


def check_metrics(content: Mapping[str, Any], keys: Mapping[str, Any], prefix: str = "") -> None:
    """Check that keys are there and have values of their types; numbers must be finite and not negative.

    Args:
        content: of a file.
        keys: the type of each key, or a mapping with the keys and types of a nested one.
        prefix: of the keys, for the message.

    Raises:
        ValueError: a key is missing, or its value has another type.
    """
    for key, expected in keys.items():
        if key not in content:
            raise ValueError(f"it lacks {prefix}{key}")
        value = content[key]
        if expected in (int, float):
            is_number = isinstance(value, int | expected) and not isinstance(value, bool)
            is_valid = is_number and 0 <= value < math.inf
        else:
            is_valid = isinstance(value, dict if isinstance(expected, Mapping) else expected)
        if not is_valid:
            raise ValueError(f"{prefix}{key} is {value!r}")
        if isinstance(expected, Mapping):
            check_metrics(value, expected, f"{prefix}{key}.")


@contextmanager
def lock_folder(folder: Path, purpose: str) -> Iterator[None]:
    """Lock a folder, to be the only process that writes to it; the lock ends with the process at the latest.

    Args:
        folder: a run's or a sweep's.
        purpose: of the process, for the message: "a run".

    Raises:
        InputError: another process has the lock, or the folder cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise InputError(
            f"another process runs {purpose} in {folder}: wait for it, or give another folder"
        ) from error
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        raise InputError(f"cannot write to {folder} ({describe_error(error)})") from error
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether another process is writing to the folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with lock_folder(folder, ""):
            return False
    except InputError:
        return True


@contextmanager
def replace_folder(folder: Path, purpose: str) -> Iterator[Path]:
    """A hidden folder beside `folder` that replaces it at the end of the block; after an error it is removed.

    Args:
        folder: the folder to make or replace.
        purpose: of the process, for the message.

    Raises:
        InputError: another process writes the same folder.
        WriteError: the disk is full or read-only; `folder` is as it was.
    """
    hidden = folder.absolute().with_name(f".part-{folder.absolute().name}")
    new, old = hidden / "new", hidden / "old"
    try:
        hidden.mkdir(parents=True, exist_ok=True)
        with lock_folder(hidden, purpose):
            try:
                for remnant in (new, old):  # of a process that was killed
                    shutil.rmtree(remnant, ignore_errors=True)
                new.mkdir()
                yield new
                if folder.exists():
                    os.replace(folder, old)
                os.replace(new, folder)
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        raise files.WriteError(f"cannot write to {folder} ({describe_error(error)})") from error
