"""Starting and continuing: the folder of a run or sweep, and the configuration that a run continues with."""

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
from polyp.files import DamagedError
from polyp.runs import identity
from polyp.runs.configuration import resolve_config
from polyp.runs.folder import CHANGES, LOCK, SWEEP_FILE, RunFolder, is_locked
from polyp.runs.overrides import task_overrides
from polyp.runs.sweep_folder import is_sweep_finished, read_command

HYDRA = ".hydra"
"""The folder in a run's folder that Hydra writes when the run starts."""

AUTO = "auto"
"""resume=auto continues what is unfinished, keeps what is finished, and starts everything else."""


def choose_run_folder(resume: str | None, new: str, *, _root_: DictConfig) -> str:
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


def choose_hydra_folder(folder: str) -> str | None:
    """The subfolder for Hydra's files; None where a run exists, which must not change before the checks."""
    return None if RunFolder(folder).is_run else HYDRA


def check_run_name(name: Any) -> str:
    """The setting `name`, a part of folder names.

    Raises:
        SystemExit: it leads out of outputs/.
    """
    parts = Path(str(name)).parts
    if not isinstance(name, str | int) or not parts or ".." in parts or Path(str(name)).is_absolute():
        sys.exit(f"name={name} must be the name of a folder in outputs/, such as default")
    return str(name)


def choose_sweep_folder(resume: str | None, new: str, overrides: Sequence[str]) -> str:
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
                is_equal = task_overrides(read_command(folder)[0]) == task_overrides(overrides)
            except InputError:  # damaged: it is continued with hydra.sweep.dir=
                continue
            if is_equal and not is_sweep_finished(folder) and not is_locked(folder):
                return str(folder)
    return make_folder(new)


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
            differences = identity.list_differences(RunFolder(folder).read_config(), task)
        except InputError:  # a newer version's
            continue
        if not differences and not RunFolder(folder).is_finished and not is_locked(folder):
            return str(folder)
    return make_folder(new)


def discard(folder: Path) -> None:
    """Remove the folder of a command that was refused or stopped, if it holds only Hydra's files, and its
    parents below the working folder if they are empty.
    """
    root = Path.cwd()
    if {path.name for path in folder.iterdir()} <= {HYDRA, LOCK} and folder != root:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # a folder is not empty
            for parent in folder.absolute().parents:
                if parent == root or not parent.is_relative_to(root):
                    break
                parent.rmdir()


OmegaConf.register_new_resolver("hydra_folder", choose_hydra_folder, replace=True)
OmegaConf.register_new_resolver("run_name", check_run_name, replace=True)
OmegaConf.register_new_resolver("run_folder", choose_run_folder, replace=True)
OmegaConf.register_new_resolver("sweep_folder", choose_sweep_folder, replace=True)


def choose_config(config: dict[str, Any], folder: RunFolder, overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run: `config`, or if the run continues, the stored one with allowed changes.

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
    old_config: dict[str, Any] = {
        "logger": None,
        "callbacks": None,
    } | folder.read_config()  # none up to 0.6.0
    if config["resume"] == AUTO:
        if differences := identity.list_differences(old_config, config):
            raise InputError(
                f"{folder} was started with {', '.join(differences[:5])}: give the original command, or "
                f"another folder; {folder.resume_override} alone can change "
                f"{' and '.join(identity.EXTENSIBLE)}"
            )
        return config | {key: old_config[key] for key in [CHANGES] if key in old_config}
    keys = [key for key in config if key not in old_config]
    keys += [f"trainer.{key}" for key in config["trainer"] if key not in old_config["trainer"]]
    if keys:
        raise DamagedError(f"{folder.config_file} lacks {', '.join(keys)}: start a new run")
    code = identity.find_code(config)
    for key, path in identity.find_code(old_config).items():
        if code.get(key) != path:
            raise InputError(
                f"{folder} was trained with code of yours, which is not imported because a file says so: add "
                f"{override_word(key, path)} to the command"
            )
    new_config = _apply_changes(old_config, config, overrides)
    # Whoever wrote the folder may have named any code: only the command's is imported.
    if new_config["callbacks"] != config["callbacks"]:
        raise InputError(
            f"{folder} was trained with callbacks={new_config['callbacks']}, this command has "
            f"{config['callbacks']}: callbacks are not taken from a run's folder, add callbacks=[...] or "
            "callbacks=null"
        )
    max_epochs = new_config["trainer"]["max_epochs"] or 0
    if folder.is_finished and max_epochs <= (old_config["trainer"]["max_epochs"] or 0):
        raise InputError(
            f"{folder} is finished, its numbers are in {folder.metrics_file}: nothing to continue; "
            "trainer.max_epochs=MORE trains on"
        )
    return new_config


def _apply_changes(
    old_config: dict[str, Any], new_config: dict[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """A run's configuration with a command's overrides, and a record of what they change."""
    changeable = identity.NEUTRAL + identity.EXTENSIBLE
    code = identity.find_code(old_config)  # which the command repeats, see `choose_config`
    old_values, new_values = dict(identity.flatten(old_config)), dict(identity.flatten(new_config))
    config = copy.deepcopy(old_config)
    changes = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key in identity.COMMAND or key in code:
            continue
        if not identity.matches(key, changeable) or override.is_delete():
            is_setting = key in old_values and key in new_values  # a mapping has no value in these
            if is_setting and old_values[key] == new_values[key]:
                continue
            names = [name for name in changeable if name not in (*identity.COMMAND, CHANGES)]
            raise InputError(
                f"resume= cannot change {key}, only {', '.join(names)}: start a new run for that"
            )
        group, _, name = key.rpartition(".")
        target, value = (config[group], new_config[group][name]) if group else (config, new_config[name])
        if target.get(name) != value:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            changes.append({"when": when, "key": key, "before": target.get(name), "now": value})
            target[name] = value
    return config | {CHANGES: [*old_config.get(CHANGES, []), *changes]} if changes else config
