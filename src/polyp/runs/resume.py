"""New or continued: the folder of a run or sweep, and the configuration that a run continues with."""

import copy
import functools
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from polyp.errors import InputError, describe_error, override_word
from polyp.files import DamagedError, read_yaml
from polyp.runs import identity
from polyp.runs.configuration import resolve_config, task_overrides
from polyp.runs.folder import CHANGES, LOCK, RESULTS_FILE, SWEEP_FILE, RunFolder, is_locked

HYDRA = ".hydra"
"""The folder in a run's for what Hydra writes when the run starts."""

AUTO = "auto"
"""resume=auto continues what is unfinished, keeps what is finished, and starts the rest."""


# ---- resolvers of the configuration: folders


def run_folder(resume: str | None, new: str, *, _root_: DictConfig) -> str:
    """The folder of the run that this process starts or continues.

    Args:
        resume: null for a new run, a run's folder, or auto: the latest beside `new` that has the same
            configuration and is not finished, else a new run.
        new: the name of a new folder.
    """
    if resume is None:
        return make_folder(new)
    if resume != AUTO:
        if not RunFolder(resume).is_run:  # checked here, since Hydra would make the folder
            sys.exit(f"resume={resume} is not the folder of a run: it has no config.yaml")
        return resume
    try:
        return _find_unfinished_run(new, json.dumps(resolve_config(_root_)))
    except InputError as error:
        sys.exit(f"{error}")


def hydra_folder(folder: str) -> str | None:
    """The subfolder for Hydra's own files; none if there is a run already, which must stay as it is until
    checked.
    """
    return None if RunFolder(folder).is_run else HYDRA


def run_name(name: Any) -> str:
    """The setting `name`, a part of folder names.

    Raises:
        SystemExit: it leads out of outputs/.
    """
    parts = Path(str(name)).parts
    if not isinstance(name, str | int) or not parts or ".." in parts or Path(str(name)).is_absolute():
        sys.exit(f"name={name} must be the name of a folder in outputs/, such as default")
    return str(name)


def sweep_folder(resume: str | None, new: str, overrides: Sequence[str]) -> str:
    """The folder of the sweep that this process starts or continues.

    Args:
        resume: auto for the latest sweep beside `new` that has the same command and is not finished.
        new: the name of a new folder.
        overrides: the command line.
    """
    if resume == AUTO:
        for file in sorted(Path(new).parent.glob(f"*/{SWEEP_FILE}"), reverse=True):
            folder = file.parent
            try:
                same = task_overrides(read_sweep(folder)[0]) == task_overrides(overrides)
            except InputError:  # damaged: it is continued with hydra.sweep.dir=
                same = False
            if same and not sweep_finished(folder) and not is_locked(folder):
                return str(folder)
    return make_folder(new)


def read_sweep(folder: Path) -> tuple[list[str], list[str]]:
    """The overrides of a sweep's command: those of the task, and Hydra's own.

    Args:
        folder: the sweep's.

    Raises:
        DamagedError: multirun.yaml is missing or damaged.
    """
    file = folder / SWEEP_FILE
    try:
        overrides = read_yaml(file)["hydra"]["overrides"]
        task, own = overrides["task"], overrides["hydra"]
        if not all(isinstance(override, str) for override in [*task, *own]):
            raise TypeError("its overrides are no texts")
    except (DamagedError, LookupError, TypeError) as error:
        reason = error if isinstance(error, DamagedError) else f"{file} is damaged ({describe_error(error)})"
        directory = override_word("hydra.sweep.dir", folder)
        raise DamagedError(
            f"{reason}: give the original command with -m resume={AUTO} {directory}"
        ) from error
    return task, own


def job_folders(folder: Path) -> dict[int, Path]:
    """The folders of a sweep's jobs, by number: `0_seed-0`, `1_seed-1`."""
    numbered = [(job.name.partition("_")[0], job) for job in folder.glob("[0-9]*_*/")]
    return dict(sorted((int(number), job) for number, job in numbered if number.isdecimal()))


def sweep_finished(folder: Path) -> bool:
    """Whether all jobs of a sweep have finished and its results.csv has each of them in its first column."""
    jobs = job_folders(folder)
    try:
        with (folder / RESULTS_FILE).open(encoding="utf-8") as lines:
            listed = {number for row in lines for number in row.partition(",")[0].split()}
    except (OSError, ValueError):
        return False
    return {str(number) for number in jobs} <= listed and all(
        RunFolder(job).is_finished for job in jobs.values()
    )


@functools.cache
def make_folder(name: str) -> str:
    """Make a new folder; the result is cached, so that this process gets the same one again.

    If the folder exists, made by a run of the same second for instance, a number is added to the name.
    """
    folder, number = name, 1
    try:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                Path(folder).mkdir()
                return folder
            except FileExistsError:
                number += 1
                folder = f"{name}_{number}"
    except OSError as error:
        sys.exit(
            f"cannot make the folder {folder} ({describe_error(error)}): hydra.run.dir=FOLDER puts it "
            "elsewhere"
        )


@functools.cache
def _find_unfinished_run(new: str, config: str) -> str:
    task = json.loads(config)
    for file in sorted(Path(new).parent.glob("*/config.yaml"), reverse=True):
        folder = file.parent
        try:
            same = not identity.differences(RunFolder(folder).read_config(), task)
        except InputError:  # a newer version's
            same = False
        if same and not RunFolder(folder).is_finished and not is_locked(folder):
            return str(folder)
    return make_folder(new)


def discard(folder: Path) -> None:
    """Remove the folder of a command that was refused or stopped, if it holds only what Hydra wrote, and the
    folders around it, up to the working folder, that are then empty.
    """
    here = Path.cwd()
    if {path.name for path in folder.iterdir()} <= {HYDRA, LOCK} and folder != here:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # a folder is not empty
            for parent in folder.absolute().parents:
                if not parent.is_relative_to(here) or parent == here:
                    break
                parent.rmdir()


OmegaConf.register_new_resolver("hydra_folder", hydra_folder, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)


def choose_config(config: dict[str, Any], folder: RunFolder, overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run: `config`, or if the run continues, its own with the changes that are
    allowed.

    Args:
        config: the composed configuration, see `resolve_config`.
        folder: the run's.
        overrides: the command line.

    Raises:
        InputError: the folder holds a run that must not be overwritten, nothing is left to do, or an override
            cannot be honoured.
    """
    if config["resume"] is None:
        if folder.is_started:
            command = folder.resume_override
            raise InputError(
                f"{folder} holds a run already: continue it with {command}, or give another folder"
            )
        return config
    if config["resume"] == AUTO and not folder.is_run:
        return config
    before: dict[str, Any] = {"logger": None, "callbacks": None} | folder.read_config()  # none up to 0.6.0
    if config["resume"] == AUTO:
        if changed := identity.differences(before, config):
            raise InputError(
                f"{folder} was started with {', '.join(changed[:5])}: give the original command, or another "
                f"folder; {folder.resume_override} alone can change {' and '.join(identity.EXTENSIBLE)}"
            )
        return config | {key: before[key] for key in [CHANGES] if key in before}
    missing = [key for key in config if key not in before]
    missing += [
        f"trainer.{key}" for key in config["trainer"] if key not in before.get("trainer", config["trainer"])
    ]
    if missing:
        raise DamagedError(f"{folder.config_file} lacks {', '.join(missing)}: start a new run")
    composed = identity.code(config)
    for key, path in identity.code(before).items():
        if composed.get(key) != path:
            raise InputError(
                f"{folder} was trained with code of yours, which is not imported because a file says so: add "
                f"{override_word(key, path)} to the command"
            )
    now = _apply_changes(before, config, overrides)
    # Whoever wrote the folder may have named any code: only the command's is imported.
    if now["callbacks"] != config["callbacks"]:
        raise InputError(
            f"{folder} was trained with callbacks={now['callbacks']}, this command has "
            f"{config['callbacks']}: callbacks are not taken from a run's folder, add callbacks=[...] or "
            "callbacks=null"
        )
    if folder.is_finished and (now["trainer"]["max_epochs"] or 0) <= (before["trainer"]["max_epochs"] or 0):
        raise InputError(
            f"{folder} is finished, its numbers are in {folder.metrics_file}: nothing to continue; "
            "trainer.max_epochs=MORE trains on"
        )
    return now


def _apply_changes(
    before: dict[str, Any], composed: dict[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """A run's configuration with a command's overrides, and a record of what they change."""
    changeable = identity.NEUTRAL + identity.EXTENSIBLE
    code = identity.code(before)  # which the command gives again, see `choose_config`
    values, new_values = dict(identity.flatten(before)), dict(identity.flatten(composed))
    now = copy.deepcopy(before)
    changes = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key in identity.COMMAND or key in code:
            continue
        if not identity.matches(key, changeable) or override.is_delete():
            is_known = key in values and key in new_values  # not where one of both is a mapping
            if is_known and values[key] == new_values[key]:
                continue
            names = [name for name in changeable if name not in (*identity.COMMAND, CHANGES)]
            raise InputError(
                f"resume= cannot change {key}, only {', '.join(names)}: start a new run for that"
            )
        group, _, name = key.rpartition(".")
        target, value = (now[group], composed[group][name]) if group else (now, composed[name])
        if target.get(name) != value:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            changes.append({"when": when, "key": key, "before": target.get(name), "now": value})
            target[name] = value
    return now | {CHANGES: [*before.get(CHANGES, []), *changes]} if changes else now
