"""What goes on and what starts anew: where a run is, and the configuration that it continues with."""

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polyp import runs
from polyp.errors import InputError, describe_error
from polyp.files import DamagedError, read_yaml
from polyp.runs import identity

AUTO = "auto"
"""resume=auto: what is unfinished goes on, what is finished stays, everything else starts."""


# ---- folders, asked for by conf/train.yaml


def run_folder(resume: str | None, wanted: str, *, _root_: DictConfig) -> str:
    """The folder of the run that this process is about to start or to continue.

    Args:
        resume: null for a new one, a run's folder, or auto: the latest beside `wanted` that has the same configuration
            and is not finished, else a new one.
        wanted: the new one's name.
    """
    if resume is None:
        return new_folder(wanted)
    if resume != AUTO:
        if not (Path(resume) / runs.CONFIG).is_file():  # said here, since Hydra would make the folder
            sys.exit(f"resume={resume} is not the folder of a run: it has no {runs.CONFIG}")
        return resume
    return _run_to_continue(wanted, json.dumps(resolved(_root_)))


def sweep_folder(resume: str | None, wanted: str, overrides: Sequence[str]) -> str:
    """The folder of the sweep that this process is about to start or to continue.

    Args:
        resume: as above; with auto the latest beside `wanted` that was started by the same command and is not finished.
        wanted: the new one's name.
        overrides: the command line.
    """
    if resume == AUTO:
        for file in sorted(Path(wanted).parent.glob(f"*/{runs.SWEEP}"), reverse=True):
            folder = file.parent
            try:
                same = command(read_sweep(folder)[0]) == command(overrides)
            except InputError:  # damaged: it is continued with hydra.sweep.dir=
                same = False
            if same and not sweep_finished(folder) and not runs.is_claimed(folder):
                return str(folder)
    return new_folder(wanted)


def read_sweep(folder: Path) -> tuple[list[str], list[str]]:
    """The overrides that a sweep was started with, as text: those of the task, and Hydra's own.

    Args:
        folder: the sweep's.

    Raises:
        DamagedError: multirun.yaml is missing or damaged.
    """
    file = folder / runs.SWEEP
    try:
        overrides = read_yaml(file)["hydra"]["overrides"]
        task, own = overrides["task"], overrides["hydra"]
        if not all(isinstance(override, str) for override in [*task, *own]):
            raise TypeError("its overrides are no texts")
    except (DamagedError, LookupError, TypeError) as error:
        reason = error if isinstance(error, DamagedError) else f"{file} is damaged ({describe_error(error)})"
        raise DamagedError(
            f"{reason}: give the original command with -m resume={AUTO} hydra.sweep.dir={folder}"
        ) from error
    return task, own


def job_folders(folder: Path) -> dict[int, Path]:
    """The folders of a sweep's jobs, by number: `0_seed-0`, `1_seed-1`."""
    numbered = [(job.name.partition("_")[0], job) for job in folder.glob("[0-9]*_*/")]
    return dict(sorted((int(number), job) for number, job in numbered if number.isdecimal()))


def sweep_finished(folder: Path) -> bool:
    """Whether all jobs of a sweep have finished and its results.csv has a row for each of them."""
    jobs = job_folders(folder)
    try:
        with (folder / runs.RESULTS).open(encoding="utf-8") as lines:
            rows = {row.partition(",")[0] for row in lines}
    except (OSError, ValueError):
        return False
    return {str(number) for number in jobs} <= rows and all(map(runs.finished, jobs.values()))


@functools.cache
def new_folder(wanted: str) -> str:
    """Make a folder and return its name; the same one when this process asks again.

    A folder that exists belongs to somebody else, such as a run started in the same second: the new one is numbered.
    Made at once, so that nobody else takes it.
    """
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
        sys.exit(f"cannot make the folder {folder} ({describe_error(error)}): hydra.run.dir=FOLDER puts it elsewhere")


@functools.cache
def _run_to_continue(wanted: str, config: str) -> str:
    task = json.loads(config)
    for file in sorted(Path(wanted).parent.glob(f"*/{runs.CONFIG}"), reverse=True):
        folder = file.parent
        try:
            same = not identity.differences(runs.read_config(folder), task)
        except InputError:  # a newer version's
            same = False
        if same and left_to_do(folder, task) and not runs.is_claimed(folder):
            return str(folder)
    return new_folder(wanted)


OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)


# ---- configurations


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain containers, with everything resolved and without Hydra's own part."""
    task = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    plain: Any = OmegaConf.to_container(task, resolve=True, throw_on_missing=True)
    return plain


def configuration(config: dict[str, Any], folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """What a run is made with: `config`, or where it goes on, that of its folder with what is given anew.

    Args:
        config: the composed configuration, see `resolved`.
        folder: the run's.
        overrides: the command line.

    Raises:
        InputError: the folder holds a run that must not be overwritten, nothing is left to do, or something that was
            given cannot be honoured.
    """
    if config["resume"] is None:
        if runs.started(folder):
            raise InputError(f"{folder} holds a run already: continue it with resume={folder}, or give another folder")
        return config
    if config["resume"] == AUTO:
        if not (folder / runs.CONFIG).is_file():
            return config
        if changed := identity.differences(runs.read_config(folder), config):
            raise InputError(f"{folder} was started with {changed[0]}: give the original command, or another folder")
        return config
    given = _with(runs.read_config(folder), overrides)
    if not left_to_do(folder, given):
        raise InputError(
            f"resume={folder} is finished, its numbers are in {folder / runs.METRICS}: nothing to continue; "
            "trainer.max_epochs=MORE trains on"
        )
    return given


def left_to_do(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run is unfinished, or has come to the end of fewer epochs than it is now to be trained for."""
    if not runs.finished(folder):
        return True
    before = runs.read_config(folder)["trainer"]["max_epochs"]
    return (config["trainer"]["max_epochs"] or 0) > (before or 0)


def _with(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in identity.COMMAND:
            continue
        changeable = identity.NEUTRAL + identity.EXTENSIBLE
        if not identity.matches(key, changeable):
            raise InputError(f"resume= cannot change {key}, only {', '.join(changeable)}: start a new run for that")
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = OmegaConf.from_dotlist([f"value={value}"]).value
    return config


def command(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what is computed."""
    return [override for override in overrides if override.partition("=")[0] not in identity.COMMAND]
