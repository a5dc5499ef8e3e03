"""New or continued: the folder of a run or sweep, and the configuration that it continues with."""

import copy
import functools
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polyp.errors import InputError, describe_error, nearest, override_text, printable, shell_word
from polyp.files import DamagedError, read_yaml
from polyp.runs import identity
from polyp.runs.folder import CHANGES, LOCK, RESULTS_FILE, SWEEP_FILE, RunFolder, is_locked
from polyp.settings import raise_together

HYDRA = ".hydra"
"""The folder in a run's for what Hydra writes when the run starts."""

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
        if not RunFolder(resume).is_run:  # checked here, since Hydra would make the folder
            sys.exit(f"resume={resume} is not the folder of a run: it has no config.yaml")
        return resume
    try:
        return _run_to_continue(wanted, json.dumps(resolved(_root_)))
    except InputError as error:
        sys.exit(f"{error}")


def hydra_folder(folder: str) -> str | None:
    """Where in a run's folder Hydra writes what it was started with: nowhere if a run is there already.

    Such a run is checked before anything in its folder is changed, and config.yaml says what it is.
    """
    return None if RunFolder(folder).is_run else HYDRA


def run_name(name: Any) -> str:
    """The setting `name`, a part of folder names; leaves with one line if it leads out of outputs/."""
    parts = Path(str(name)).parts
    if not isinstance(name, str | int) or not parts or ".." in parts or Path(str(name)).is_absolute():
        sys.exit(f"name={name} must be the name of a folder in outputs/, such as default")
    return str(name)


def sweep_folder(resume: str | None, wanted: str, overrides: Sequence[str]) -> str:
    """The folder of the sweep that this process is about to start or to continue.

    Args:
        resume: as above; with auto the latest beside `wanted` that was started by the same command and is not finished.
        wanted: the new one's name.
        overrides: the command line.
    """
    if resume == AUTO:
        for file in sorted(Path(wanted).parent.glob(f"*/{SWEEP_FILE}"), reverse=True):
            folder = file.parent
            try:
                same = command(read_sweep(folder)[0]) == command(overrides)
            except InputError:  # damaged: it is continued with hydra.sweep.dir=
                same = False
            if same and not sweep_finished(folder) and not is_locked(folder):
                return str(folder)
    return new_folder(wanted)


def read_sweep(folder: Path) -> tuple[list[str], list[str]]:
    """The overrides that a sweep was started with, as text: those of the task, and Hydra's own.

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
        with (folder / RESULTS_FILE).open(encoding="utf-8") as lines:
            rows = {row.partition(",")[0] for row in lines}
    except (OSError, ValueError):
        return False
    return {str(number) for number in jobs} <= rows and all(RunFolder(job).is_finished for job in jobs.values())


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
    for file in sorted(Path(wanted).parent.glob("*/config.yaml"), reverse=True):
        folder = file.parent
        try:
            same = not identity.differences(RunFolder(folder).read_config(), task)
        except InputError:  # a newer version's
            same = False
        if same and not RunFolder(folder).is_finished and not is_locked(folder):
            return str(folder)
    return new_folder(wanted)


def discard(folder: Path) -> None:
    """Remove the folder of a command that was refused before its run began, which holds what Hydra wrote."""
    if {path.name for path in folder.iterdir()} <= {HYDRA, LOCK} and folder != Path.cwd():
        shutil.rmtree(folder, ignore_errors=True)


OmegaConf.register_new_resolver("hydra_folder", hydra_folder, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)


# ---- configurations

ELSEWHERE = {
    "ckpt_path": "resume=RUN continues a run",
    "init_from": "model.encoder_weights=FILE begins with an encoder's weights",
    "pretrained": "model.encoder_weights=FILE begins with an encoder's weights",
    "logger": "TensorBoard's curves are always written to the run's folder",
    "callbacks": "patience=EPOCHS stops early, optim.ema_decay= averages the weights, the rest is always there",
    "ckpt": "resume=RUN continues a run",
    "epochs": "trainer.max_epochs=NUMBER",
    "lr": "optim.encoder_lr=NUMBER and optim.decoder_lr=NUMBER",
}
"""What other projects' configurations call what is called otherwise here."""


@functools.cache
def _known() -> dict[str, Any]:
    return resolved(compose("train"))


def check_command(cfg: DictConfig) -> None:
    """Check what only a single run is asked: that it has no launcher, and as `check_names`.

    Raises:
        InputError: it has one.
    """
    if (launcher := HydraConfig.get().runtime.choices["launcher"]) != "local":
        raise InputError(f"launcher={launcher} is for the jobs of a sweep: add -m")
    check_names(cfg)


def check_names(cfg: DictConfig) -> None:
    """Check that a composed configuration has no settings beside those of conf/train.yaml.

    Those of its sections are checked by what takes them, see `experiment.build`.

    Raises:
        InputError: it has; with the name of the setting that was probably meant.
    """
    problems = []
    for key in (str(key) for key in cfg if key not in _known() and key != "hydra"):
        alike = [name for name, _ in identity.flatten(_known()) if name.rpartition(".")[2] == key]
        hint = ELSEWHERE.get(key) or (f"did you mean {alike[0]}?" if alike else nearest(key, _known()))
        problems.append(f"{key} is no setting of polyp: {hint}")
    raise_together(problems)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain containers, with everything resolved and without Hydra's own part.

    Raises:
        InputError: a value is missing, or an interpolation cannot be resolved.
    """
    task = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        if missing := sorted(OmegaConf.missing_keys(task)):
            raise InputError(f"{' and '.join(f'{key}=VALUE' for key in missing)} must be given")
        plain: Any = OmegaConf.to_container(task, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(describe_error(error)) from error
    return plain


def configuration(config: dict[str, Any], folder: RunFolder, overrides: Sequence[str]) -> dict[str, Any]:
    """What a run is made with: `config`, or where a run continues, that of its folder with what may be changed.

    Args:
        config: the composed configuration, see `resolved`.
        folder: the run's.
        overrides: the command line.

    Raises:
        InputError: the folder holds a run that must not be overwritten, nothing is left to do, or an override cannot be
            honoured.
    """
    if config["resume"] is None:
        if folder.is_started:
            command = folder.resume_override
            raise InputError(f"{folder} holds a run already: continue it with {command}, or give another folder")
        return config
    if config["resume"] == AUTO and not folder.is_run:
        return config
    before = folder.read_config()
    if config["resume"] == AUTO:
        if changed := identity.differences(before, config):
            raise InputError(
                f"{folder} was started with {', '.join(changed[:5])}: give the original command, or another folder; "
                f"{folder.resume_override} alone can change {' and '.join(identity.EXTENSIBLE)}"
            )
        return config | {key: before[key] for key in [CHANGES] if key in before}
    lacking = [key for key in config if key not in before]
    lacking += [f"trainer.{key}" for key in config["trainer"] if key not in before.get("trainer", config["trainer"])]
    if lacking:
        raise DamagedError(f"{folder.config_file} lacks {', '.join(lacking)}: start a new run")
    now = _with(before, config, overrides)
    if folder.is_finished and (now["trainer"]["max_epochs"] or 0) <= (before["trainer"]["max_epochs"] or 0):
        raise InputError(
            f"{folder} is finished, its numbers are in {folder.metrics_file}: nothing to continue; "
            "trainer.max_epochs=MORE trains on"
        )
    return now


def _with(before: dict[str, Any], composed: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A run's configuration with the values of a command's overrides, and a record of those that are new."""
    changeable = identity.NEUTRAL + identity.EXTENSIBLE
    now = copy.deepcopy(before)
    changes = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key in identity.COMMAND:
            continue
        if not identity.matches(key, changeable) or override.is_delete():
            names = [name for name in changeable if name not in (*identity.COMMAND, CHANGES)]
            raise InputError(f"resume= cannot change {key}, only {', '.join(names)}: start a new run for that")
        group, _, name = key.rpartition(".")
        target, value = (now[group], composed[group][name]) if group else (now, composed[name])
        if target.get(name) != value:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            changes.append({"when": when, "key": key, "before": target.get(name), "now": value})
            target[name] = value
    return now | {CHANGES: [*before.get(CHANGES, []), *changes]} if changes else now


@contextmanager
def hold_log_back() -> Iterator[None]:
    """Keep what is logged out of train.log until the end of the block, and for good if an exception ends it.

    A command that is refused changes nothing in the folder of a run.
    """
    root = logging.getLogger()
    held = {
        handler: MemoryHandler(sys.maxsize, sys.maxsize, handler)
        for handler in root.handlers
        if isinstance(handler, logging.FileHandler)
    }
    root.handlers = [held.get(handler, handler) for handler in root.handlers]  # type: ignore[call-overload]
    try:
        yield
        for memory in held.values():
            memory.flush()
    finally:
        back = {memory: handler for handler, memory in held.items()}
        root.handlers = [back.get(handler, handler) for handler in root.handlers]  # type: ignore[call-overload]


# ---- command lines


def check_overrides(argv: Sequence[str]) -> None:
    """Leave with one line, ready to paste, if a value has characters that Hydra's overrides need quotes for."""
    parser = OverridesParser.create()
    for word in argv[1:]:
        if word.startswith("-") or "=" not in word:
            continue
        try:
            parser.parse_override(word)
        except HydraException as error:
            key, _, value = word.partition("=")
            quoted = override_text(key, value)
            try:
                parser.parse_override(quoted)
            except HydraException:  # the key is wrong as well
                sys.exit(f"{printable(word)} cannot be understood ({describe_error(error)}): give KEY=VALUE")
            sys.exit(f"{printable(word)} has characters that need quotes: write {shell_word(quoted)}")


def command(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what is computed."""
    return [override for override in overrides if override.partition("=")[0] not in identity.COMMAND]
