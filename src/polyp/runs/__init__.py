"""A run on the disk: its folder, when two runs are the same experiment, resuming, its data and its model.

May import model, data and the modules at the top.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyp.runs.folder import CHANGES, LOCK, METRICS_KEYS, RunFolder, is_locked, lock_folder, replace_folder  # noqa: F401  # noqa: F401
from polyp.runs.folder import RESULTS_FILE as RESULTS  # noqa: F401
from polyp.runs.folder import SWEEP_FILE as SWEEP
from polyp.runs.folder import check_metrics as check_keys

# TEMPORARY
CONFIG, METRICS, PER_IMAGE, PICTURES, CHECKPOINTS, EXPORT, LAST, LOG = (
    "config.yaml",
    "metrics.json",
    "per_image.csv",
    "pictures",
    "checkpoints",
    "export",
    "last.ckpt",
    "train.log",
)
claimed, is_claimed = lock_folder, is_locked


def best_checkpoint(f: Path) -> Path:
    return RunFolder(f).best_checkpoint


def last_checkpoint(f: Path) -> Path:
    return RunFolder(f).last_checkpoint


def previous_checkpoint(f: Path) -> Path:
    return RunFolder(f).previous_checkpoint


def started(f: Path) -> bool:
    return RunFolder(f).is_started


def finished(f: Path) -> bool:
    return RunFolder(f).is_finished


def in_sweep(f: Path) -> bool:
    return RunFolder(f).is_sweep_job


def resume_hint(f: Path) -> str:
    return RunFolder(f).resume_override


def way_out(f: Path) -> str:
    return RunFolder(f).disk_advice


def read_config(f: Path) -> dict[str, Any]:
    return RunFolder(f).read_config()


def read_metrics(f: Path) -> dict[str, Any]:
    return RunFolder(f).read_metrics()


def write_metrics(f: Path, m: Mapping[str, Any]) -> None:
    RunFolder(f).write_metrics(m)


def write_per_image(f: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    RunFolder(f).write_rows(rows)
