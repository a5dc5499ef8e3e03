"""Reading checkpoints without running code, and finding the one that a run continues from."""

import logging
import pickle
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from polyp.errors import InputError, describe_error
from polyp.files import DamagedError, atomic_write, check_zip
from polyp.runs.folder import RunFolder

log = logging.getLogger(__name__)

BEST_STATE = "Checkpoint{"
"""The beginning of a checkpoint's key with the state of the callback that writes best.ckpt."""


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that a run continues from.

    Attributes:
        file: where it is.
        content: of the file, see Lightning.
        max_epochs: of the run so far.
        copy_of_best: the file to restore best.ckpt from, if that is damaged or missing.
    """

    file: Path
    content: dict[str, Any]
    max_epochs: int | None
    copy_of_best: Path | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return self.content["global_step"]

    @property
    def epochs(self) -> int:
        """Whole epochs done."""
        return self.content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]

    @property
    def data_fingerprint(self) -> str | None:
        """Of the data that the run was trained on; older checkpoints do not have it."""
        return self.content.get("data_fingerprint")

    def restore_best(self, folder: RunFolder) -> None:
        """Restore best.ckpt where that is possible and needed."""
        if self.copy_of_best is not None:
            best = folder.best_checkpoint
            log.warning("%s was damaged or missing: restored from %s", best, self.copy_of_best.name)
            with atomic_write(best) as temporary:
                shutil.copyfile(self.copy_of_best, temporary)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        DamagedError: it is cut short or altered.
        InputError: it holds code: objects that are more than tensors, numbers, texts, lists and dicts.
    """
    try:
        check_zip(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, BadZipFile) as error:
        raise DamagedError(f"{file} is damaged ({describe_error(error)})") from error
    except pickle.UnpicklingError as error:
        try:
            objects = get_unsafe_globals_in_checkpoint(file)
        except Exception:  # whatever reading damaged bytes raises
            objects = []
        if not objects:
            raise DamagedError(f"{file} is damaged ({describe_error(error)})") from error
        raise InputError(
            f"{file} holds code ({', '.join(objects[:3])}), which would run when it is opened: refused. Take "
            "only checkpoints that polyp wrote, or save the others' weights as .safetensors for "
            "model.init_from"
        ) from error


def find_resume_point(folder: RunFolder, max_epochs: int | None) -> ResumePoint | None:
    """The checkpoint that a run continues from: last.ckpt or, if that is damaged, the one before it.

    Args:
        folder: the run's.
        max_epochs: how long the run is to train in all.

    Returns:
        None if there is neither: the run has not come to the end of its first epoch.

    Raises:
        InputError: both are damaged, or one holds code; or best.ckpt is damaged, and neither is a copy of it.
    """
    problems: list[str] = []
    for file in (folder.last_checkpoint, folder.previous_checkpoint):
        if not file.is_file():
            continue
        try:
            content = read_checkpoint(file)
        except DamagedError as error:
            problems.append(str(error))
            continue
        if "epoch_so_far" not in content:
            raise InputError(f"{file} was written by polyp 0.1, which cannot be continued: start a new run")
        point = ResumePoint(file, content, folder.read_config()["trainer"]["max_epochs"])
        if problems:
            log.warning("%s: continuing from the one before it, after epoch %d", problems[0], point.epochs)
        return _check_best(point, folder, max_epochs)
    if problems:
        raise InputError(f"{' and '.join(problems)}: delete {folder.checkpoints} to train from the beginning")
    return None


def _check_best(point: ResumePoint, folder: RunFolder, max_epochs: int | None) -> ResumePoint:
    """Check best.ckpt before training: later epochs need not be better than a best one that is lost."""
    best = folder.best_checkpoint
    callbacks = point.content["callbacks"]
    state: dict[str, Any] = next((callbacks[key] for key in callbacks if key.startswith(BEST_STATE)), {})
    if state.get("best_model_score") is None:  # no epoch was validated
        return point
    try:
        if best.is_file():
            read_checkpoint(best)
            return point
        reason = f"{best} is missing"
    except DamagedError as error:
        reason = str(error)
    if state.get("step") == point.steps:
        return replace(point, copy_of_best=point.file)
    with suppress(DamagedError, OSError):
        if read_checkpoint(folder.previous_checkpoint)["global_step"] == state.get("step"):
            return replace(point, copy_of_best=folder.previous_checkpoint)
    is_trained = max_epochs is not None and point.epochs >= max_epochs
    if best.is_file() or is_trained:
        advice = f"delete it{', and give trainer.max_epochs=MORE' if is_trained else ''}"
        raise InputError(
            f"{reason}, the best epoch so far is lost: to train on and take the best of the remaining "
            f"epochs, {advice}; or start a new run"
        )
    log.warning("%s: the best of the remaining epochs is taken", reason)
    return point
