"""The settings in which a job differs from the other jobs of its sweep, and its label in folder names."""

import re
from collections.abc import Sequence
from pathlib import Path

from polyp.files import read_yaml
from polyp.runs.overrides import parse_overrides, task_overrides
from polyp.runs.resume import HYDRA
from polyp.runs.sweep_folder import is_sweep, read_command

LABEL_LENGTH = 90


def make_label(overrides: Sequence[str], sweep_folder: str) -> str:
    """The varied settings of a job as part of a folder's name: `encoder-resnet34`.

    Args:
        overrides: the job's overrides, KEY=VALUE.
        sweep_folder: the folder in which Hydra has written multirun.yaml, the sweep's command.
    """
    parts = []
    for key, value in select_varied(overrides, Path(sweep_folder)).items():
        value = Path(value).stem if "/" in value else value
        value = re.sub(r"[^\w.+-]+", "-", shorten_numbers(value)).strip("-")
        parts.append(f"{key.lstrip('+').rpartition('.')[2]}-{value}")
    return "_".join(parts)[:LABEL_LENGTH] or "job"


def shorten_numbers(value: str) -> str:
    """A value in which numbers of many digits, which a search has drawn, are rounded."""
    return re.sub(r"\d+\.\d{5,}(e-\d+)?", lambda number: f"{float(number[0]):.3g}", value)


def select_varied(overrides: Sequence[str], sweep_folder: Path) -> dict[str, str]:
    """The values of those overrides of a job that the sweep's command does not set for all jobs, by key.

    Raises:
        DamagedError: multirun.yaml, which has the command, is damaged.
    """
    command = read_command(sweep_folder)[0] if is_sweep(sweep_folder) else []
    # Compared as parsed, since Hydra gives a job 0.001 where 1e-3 was typed.
    common = {
        key: override.get_value_element_as_str()
        for key, override in parse_overrides(command).items()
        if not override.is_sweep_override()
    }
    values = {}
    for key, override in parse_overrides(overrides).items():
        if common.get(key) != override.get_value_element_as_str():
            value = override.value()
            values[key] = value if isinstance(value, str) else (override.input_line or "").partition("=")[2]
    return values


def read_varied(job: Path) -> dict[str, str]:
    """The varied overrides of the job in a folder, see `select_varied`.

    Raises:
        DamagedError: the record of its overrides or multirun.yaml is damaged.
    """
    overrides = read_yaml(job / HYDRA / "overrides.yaml")
    return select_varied(task_overrides([str(override) for override in overrides]), job.parent)
