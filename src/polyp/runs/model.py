"""Trained models: the only place where a name that a user gives becomes a model."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyp.errors import InputError, pick, train_command
from polyp.runs import identity
from polyp.runs.folder import RESULTS_FILE, RunFolder
from polyp.runs.sweep_folder import find_jobs, is_sweep, is_sweep_finished
from polyp.settings import check_keys

if TYPE_CHECKING:
    from polyp.model.segmenter import PolypSegmenter

EXPORT_SUFFIXES = (".onnx", ".xml")
"""The suffixes of exported models: ONNX's and OpenVINO's."""

TRAINING_SETTINGS = ("loss", "optim", "freeze", "unfreeze_epoch", "compile", "gradient_checkpointing")
"""Hyperparameters in a checkpoint that only `polyp.training.module.TrainingModule` takes."""

ENSEMBLE = ("seed", "data.fold")
"""Keys in which the runs of a sweep may differ for the sweep to be an ensemble."""


@dataclass(frozen=True)
class ModelSource:
    """Where a trained model comes from.

    Attributes:
        file: its checkpoint or exported model.
        home: the run's folder; the sweep's for the exported model of an ensemble; for other files the folder
            that they lie in.
        config: the run's configuration; None for a file outside a run.
        sweep: the sweep that the run was named by; None if it was named itself.
    """

    file: Path
    home: Path
    config: dict[str, Any] | None
    sweep: Path | None = None

    @staticmethod
    def of(name: str) -> "ModelSource":
        """Find a model by the path of a run's folder, a checkpoint or an exported model; nothing is loaded.

        Raises:
            InputError: there is none.
        """
        path = Path(name).expanduser()
        if path.is_dir():
            folder = RunFolder(path)
            config, file = folder.read_config(), folder.best_checkpoint
            if not file.is_file():
                name = f"{folder.CHECKPOINTS}/{file.name}"
                raise InputError(f"{path} has no {name}: no epoch was trained and validated to its end")
            return ModelSource(file, path, config)
        if not path.is_file():
            raise InputError(f"{name} is not there: give a run's folder or a checkpoint")
        parent = path.absolute().parent
        run = RunFolder(os.path.relpath(parent.parent))
        if parent.name in (RunFolder.CHECKPOINTS, RunFolder.EXPORTS) and run.is_run:
            return ModelSource(run.path / parent.name / path.name, run.path, run.read_config())
        if parent.name == RunFolder.EXPORTS and is_sweep(run.path):
            return ModelSource(path, run.path, None)
        return ModelSource(path, path.parent, None)

    @property
    def is_exported(self) -> bool:
        """Whether it is a file that `polyp export` wrote."""
        return self.file.suffix in EXPORT_SUFFIXES

    @property
    def output_folder(self) -> Path:
        """The folder in which commands write by default: the sweep's or the run's."""
        return self.sweep or self.home

    @property
    def origin(self) -> "ModelSource | None":
        """The model that the run has its first weights from, `model.init_from`, whether it exists or not."""
        if (name := ((self.config or {}).get("model") or {}).get("init_from")) is None:
            return None
        try:
            return ModelSource.of(str(name))
        except InputError:
            return ModelSource(Path(name), Path(name), None)

    @property
    def data_fingerprint(self) -> str | None:
        """The fingerprint of the data that the model was trained on; None where it is not recorded."""
        if self.config is None:
            return None
        try:
            return RunFolder(self.home).read_metrics()["data"]["fingerprint"]
        except InputError:  # not finished, or damaged
            return None


def find_sources(names: Sequence[str]) -> list[ModelSource]:
    """Find models by the paths of runs, checkpoints, exported models, and sweeps; nothing is loaded.

    A sweep stands for all its runs, which may differ in the keys of `ENSEMBLE` alone.

    Raises:
        InputError: one is not there, or is a sweep that is not finished or has runs that differ in more.
    """
    sources = []
    for name in names:
        path = Path(name).expanduser()
        sources += _find_sweep_runs(path) if is_sweep(path) else [ModelSource.of(name)]
    return sources


def _find_sweep_runs(sweep: Path) -> list[ModelSource]:
    jobs = list(find_jobs(sweep).values())
    if not is_sweep_finished(sweep) or not jobs:
        names = [job.name for job in jobs if not RunFolder(job).is_finished]
        reason = ", ".join(names[:5]) or f"{RESULTS_FILE} is not complete"
        command = f"{train_command()} {RunFolder(sweep / 'job').resume_override}"
        raise InputError(f"the sweep {sweep} is not finished ({reason}): continue it with {command}")
    sources = [replace(ModelSource.of(str(job)), sweep=sweep) for job in jobs]
    settings = [
        identity.select_decisive(source.config or {}) | {"data.fingerprint": source.data_fingerprint}
        for source in sources
    ]
    keys = sorted(set().union(*settings) - set(ENSEMBLE))
    if differences := [key for key in keys if any(run.get(key) != settings[0].get(key) for run in settings)]:
        raise InputError(
            f"the runs of the sweep {sweep} differ in {', '.join(differences[:5])}, and only runs that "
            f"differ in {' and '.join(ENSEMBLE)} are averaged: give the runs by name, such as {jobs[0]}"
        )
    return sources


def find_weights(name: str | None) -> str | None:
    """The file that `model.init_from` names: the best checkpoint of a run, or itself; nothing is loaded.

    Raises:
        InputError: there is none, or it is an exported model.
    """
    if name is None:
        return None
    try:
        source = ModelSource.of(name)
    except InputError as error:
        raise InputError(f"model.init_from={name}: {error}") from error
    if source.is_exported:
        raise InputError(f"model.init_from={name} is an exported model: give the run that it was made from")
    return str(source.file)


def load_run_model(folder: RunFolder) -> "PolypSegmenter":
    """The model that validated best in a run, see `load_checkpoint`."""
    return load_checkpoint(ModelSource.of(str(folder)))


def load_checkpoint(source: ModelSource) -> "PolypSegmenter":
    """The model in a checkpoint, on the CPU, with the precision that its run is tested in.

    Raises:
        InputError: the file is damaged, holds code, is not one of polyp's, or is an exported model.
    """
    from polyp.model.device import PRECISIONS
    from polyp.model.segmenter import PolypSegmenter
    from polyp.model.weights import fits
    from polyp.runs.checkpoints import read_checkpoint

    file = source.file
    if source.is_exported:
        raise InputError(f"{file} is an exported model: give the checkpoint or the run that it was made from")
    content = read_checkpoint(file)
    if not isinstance(content, dict):
        content = {}
    settings, weights = content.get("hyper_parameters"), content.get("state_dict")
    if not isinstance(settings, dict) or not isinstance(weights, dict) or {"arch", "encoder"} - set(settings):
        raise InputError(
            f"{file} is no checkpoint of polyp's: give a run's folder or its checkpoints/best.ckpt"
        )
    if not all(isinstance(name, str) for name in settings):
        raise InputError(f"{file} has settings whose names are no text: it is no checkpoint of polyp's")
    settings = {name: value for name, value in settings.items() if name not in TRAINING_SETTINGS}
    try:
        check_keys("hyper_parameters", settings, PolypSegmenter)
        precision = content.get("precision", _old_precision(source.config))
        pick("precision", str(precision), dict.fromkeys(PRECISIONS))
        model = PolypSegmenter(**settings | {"encoder_weights": None, "init_from": None})
    except InputError as error:
        raise InputError(f"{file} does not fit this version of polyp: {error}") from error
    tensors = model.state_dict()
    count = sum(fits(weights.get(name), tensor) for name, tensor in tensors.items())
    if count != len(tensors) or weights.keys() != tensors.keys():
        raise InputError(
            f"{file} does not fit this version of polyp: of the {len(tensors)} tensors of "
            f"model.arch={settings['arch']} with model.encoder={settings['encoder']} it has {count}, "
            f"and {len(weights.keys() - tensors.keys())} others"
        )
    model.load_state_dict(weights)
    model.precision = str(precision)
    return model


def _old_precision(config: dict[str, Any] | None) -> Any:
    """The precision of a run whose checkpoint does not record it, as older ones."""
    trainer = {"precision": "auto"} if config is None else config.get("trainer")
    return (trainer.get("precision") if isinstance(trainer, dict) else None) or "32-true"
