"""A sweep whose jobs are the rows of a CSV: its header names keys, and each row has their values.

A blank cell leaves its key at the default. Blank lines and lines that begin with # are skipped.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from polyp.errors import InputError, describe_error, nearest
from polyp.runs import identity
from polyp.runs.overrides import find_objection, parse_override


@dataclass
class CsvSweeperConf(BasicSweeperConf):
    """The keys of `hydra.sweeper` with `hydra/sweeper=csv`."""

    _target_: str = "hydra_plugins.csv_sweeper.CsvSweeper"
    path: str | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="csv", node=CsvSweeperConf, provider="polyp")

Line = tuple[int, list[str]]
"""A line's number in the file, and its cells."""


class CsvSweeper(BasicSweeper):
    """Runs each row of a CSV with every combination of the values that the command line sweeps.

    Args:
        path: the CSV, in the working directory or else in the folder `sweep` of the configuration. Without
            one the jobs are those of Hydra's basic sweeper.
        max_batch_size: as many jobs go to the launcher at once; null: all.
        params: overrides of all jobs, which may be sweeps, as if they stood on the command line.
    """

    def __init__(
        self, path: str | None = None, max_batch_size: int | None = None, params: dict[str, str] | None = None
    ) -> None:
        super().__init__(max_batch_size, params)
        self.path = path

    @staticmethod
    def jobs(config: DictConfig) -> list[tuple[list[str], str]]:
        """The jobs of a sweep.

        Args:
            config: the whole configuration, as Hydra has composed it for a sweep.

        Returns:
            For each job its overrides, the row's after the command line's, and its origin: `row 3 of my.csv
            (line 5)`.

        Raises:
            InputError: the CSV is not there or is malformed, has a column that is no key of the configuration
                or is given on the command line too, or a cell that is not one value.
        """
        sweeper = config.hydra.sweeper
        params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        overrides = parser.parse_overrides([*params, *config.hydra.overrides.task])
        grid = BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]
        if sweeper.get("path") is None:
            return [(job, "from the command line") for job in grid]
        name, table = _read_csv(config)
        (line, header), *rows = table
        _check_header(header, f"{name}, line {line}", config, overrides)
        jobs = []
        for number, (line, cells) in enumerate(rows, 1):
            row = _parse_row(header, cells, f"{name}, line {line}")
            jobs += [([*job, *row], f"row {number} of {name} (line {line})") for job in grid]
        return jobs

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The jobs of this sweep's configuration, see `jobs`, in batches.

        Raises:
            InputError: as `jobs`.
        """
        assert self.config is not None  # setup() was called
        jobs = [job for job, _ in self.jobs(self.config)]
        return list(self.split_overrides_to_chunks(jobs, max_batch_size))


def _read_csv(config: DictConfig) -> tuple[str, list[Line]]:
    """The CSV's name in messages, and its lines, the header first."""
    path, runtime = config.hydra.sweeper.path, config.hydra.runtime
    folders = [Path(source.path, "sweep") for source in runtime.config_sources if source.schema == "file"]
    files = [folder / Path(path).expanduser() for folder in (Path(runtime.cwd), *folders)]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        paths = " and ".join(dict.fromkeys(map(str, files)))
        raise InputError(
            f"hydra.sweeper.path={path} does not exist, looked for as {paths}: give the path of a CSV"
        )
    name = str(file.relative_to(runtime.cwd) if file.is_relative_to(runtime.cwd) else file)
    try:
        text = file.read_text("utf-8-sig")  # spreadsheets begin a file with a byte order mark
    except UnicodeDecodeError:
        raise InputError(f"{name} is not UTF-8: save it as CSV in UTF-8") from None
    except OSError as error:
        reason = describe_error(error)
        raise InputError(f"{name} cannot be read ({reason}): give hydra.sweeper.path=FILE.csv") from None
    lines = [
        (number, line)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not line.lstrip(' "').startswith("#")  # a spreadsheet may quote a comment
    ]
    if len(lines) < 2:
        raise InputError(
            f"{name} has no rows: its first line names keys, and each line below gives a job's values"
        )
    header = lines[0][1]
    separator = ";" if ";" in header and "," not in header else ","  # spreadsheets with decimal commas
    table: list[Line] = []
    for number, line in lines:
        try:
            (cells,) = csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True)
        except csv.Error as error:
            raise InputError(
                f"{name}, line {number}: {error}: a cell that begins with a double quote ends with one"
            ) from None
        table.append((number, [cell.strip() for cell in cells]))
    return name, table


def _check_header(
    header: Sequence[str], location: str, config: DictConfig, overrides: Sequence[Override]
) -> None:
    """Check the columns of a CSV; `location` names its line in messages."""
    keys = [column.lstrip("+").partition("@")[0] for column in header]
    command_keys = {override.key_or_group for override in overrides}
    groups = {group for group in config.hydra.runtime.choices if not group.startswith("hydra/")}
    config_keys = set(groups)
    tree: Any = OmegaConf.to_container(config)
    for key, _ in identity.flatten(tree):
        while key and not key.startswith("hydra"):
            config_keys.add(key)
            key = key.rpartition(".")[0]  # the section that it belongs to
    # Another choice of a group may have other keys; these are checked when the job is composed.
    sweep_keys = {override.key_or_group for override in overrides if override.is_sweep_override()}
    varies_group = not groups.isdisjoint([*keys, *sweep_keys])
    for number, (column, key) in enumerate(zip(header, keys, strict=True), 1):
        if not key:
            raise InputError(f"{location}: column {number} has no key")
        if key in keys[: number - 1]:
            raise InputError(f"{location}: {key} has two columns")
        if key.startswith(("hydra.", "hydra/")):
            raise InputError(f"{location}: {key} is the same for all jobs: give it on the command line")
        if key in command_keys:
            raise InputError(
                f"{location}: {key} is given on the command line or in hydra.sweeper.params too: give it once"
            )
        if key not in config_keys and not column.startswith("+") and not varies_group:
            raise InputError(f"{location}: {key} is no key of the configuration: {nearest(key, config_keys)}")


def _parse_row(header: Sequence[str], cells: Sequence[str], location: str) -> list[str]:
    """The overrides of a row; `location` names its line in messages."""
    if len(cells) != len(header):
        raise InputError(
            f'{location}: {len(cells)} cells for {len(header)} keys; a list is one cell in quotes: "[2,1]"'
        )
    row = [f"{key}={cell}" for key, cell in zip(header, cells, strict=True) if cell]
    if not row:
        raise InputError(
            f"{location}: all cells are blank: delete the line, or write the default into one of them"
        )
    for text in row:
        if (override := parse_override(text)) is None:
            raise InputError(f"{location}: {text} cannot be understood: put single quotes around the value")
        if override.is_sweep_override():
            raise InputError(
                f"{location}: {text} is several values: give each a row, and write decimals with a point"
            )
        if objection := find_objection(text):
            raise InputError(
                f"{location}: {text} {objection}: give it with the command, or write the value itself"
            )
    return row
