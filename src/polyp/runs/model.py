"""Trained models: the only place where what a user names becomes a model."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyp.errors import InputError, pick
from polyp.runs.folder import SWEEP_FILE, RunFolder
from polyp.settings import check_keys

if TYPE_CHECKING:
    from torch import Tensor

    from polyp.model.onnx import OnnxModel
    from polyp.model.segmenter import PolypSegmenter


@dataclass(frozen=True)
class Source:
    """Where a trained model comes from.

    Attributes:
        file: its checkpoint or ONNX file.
        home: the run's folder; of a file outside a run, the folder that it lies in.
        config: the run's configuration; None for a file outside a run.
    """

    file: Path
    home: Path
    config: dict[str, Any] | None

    @staticmethod
    def of(name: str) -> "Source":
        """Find a model by the path of a run's folder, a checkpoint or an exported model; nothing is loaded.

        Raises:
            InputError: there is none.
        """
        path = Path(name).expanduser()
        if (path / SWEEP_FILE).is_file():
            raise InputError(f"{name} is a sweep: give one of the runs in it")
        if path.is_dir():
            folder = RunFolder(path)
            config, file = folder.read_config(), folder.best_checkpoint
            if not file.is_file():
                name = f"{folder.CHECKPOINTS}/{file.name}"
                raise InputError(f"{path} has no {name}: no epoch was trained and validated to its end")
            return Source(file, path, config)
        if not path.is_file():
            raise InputError(f"{name} is not there: give a run's folder or a checkpoint")
        parent = path.absolute().parent
        run = RunFolder(os.path.relpath(parent.parent))
        if parent.name in (RunFolder.CHECKPOINTS, RunFolder.EXPORTS) and run.is_run:
            return Source(run.path / parent.name / path.name, run.path, run.read_config())
        return Source(path, path.parent, None)

    @property
    def is_exported(self) -> bool:
        """Whether it is an ONNX file."""
        return self.file.suffix == ".onnx"

    @property
    def data_fingerprint(self) -> str | None:
        """The fingerprint of the data that the model was trained on; None where it is not recorded."""
        if self.config is None:
            return None
        try:
            return RunFolder(self.home).read_metrics()["data"]["fingerprint"]
        except InputError:  # not finished, or damaged
            return None


def load_model(source: Source) -> "PolypSegmenter | OnnxModel":
    """Load a model, a checkpoint's onto the CPU.

    Raises:
        InputError: the file is damaged, holds code, or is not one of polyp's.
    """
    if source.is_exported:
        from polyp.model.onnx import OnnxModel

        return OnnxModel(source.file)
    return load_checkpoint(source)


def load_run_model(folder: RunFolder) -> "PolypSegmenter":
    """The model that validated best in a run, see `load_checkpoint`."""
    return load_checkpoint(Source.of(str(folder)))


def load_checkpoint(source: Source) -> "PolypSegmenter":
    """The model in a checkpoint, on the CPU whatever machine wrote it, with the precision that its run is
    tested in.

    Raises:
        InputError: as `load_model`, or it is an exported model.
    """
    from polyp.model.device import PRECISIONS
    from polyp.model.segmenter import PolypSegmenter
    from polyp.runs.checkpoints import read_checkpoint

    file = source.file
    if source.is_exported:
        raise InputError(f"{file} is an exported model: give the checkpoint or the run that it was made from")
    content = read_checkpoint(file)
    if not isinstance(content, dict):
        content = {}
    settings, weights = content.get("hyper_parameters"), content.get("state_dict")
    if (
        not isinstance(settings, dict)
        or not isinstance(weights, dict)
        or not {"arch", "encoder"} <= settings.keys()
    ):
        raise InputError(
            f"{file} is no checkpoint of polyp's: give a run's folder or its checkpoints/best.ckpt"
        )
    if not all(isinstance(name, str) for name in settings):
        raise InputError(f"{file} has settings whose names are no text: it is no checkpoint of polyp's")
    try:
        check_keys("hyper_parameters", settings, PolypSegmenter)
        precision = content.get("precision", _precision(source.config))
        pick("precision", str(precision), dict.fromkeys(PRECISIONS))
        model = PolypSegmenter(**settings | {"encoder_weights": None, "optim": None})
    except InputError as error:
        raise InputError(f"{file} does not fit this version of polyp: {error}") from error
    own = model.state_dict()
    fitting = [name for name in own if _fits(weights.get(name), own[name])]
    if len(fitting) != len(own) or weights.keys() != own.keys():
        raise InputError(
            f"{file} does not fit this version of polyp: of the {len(own)} tensors of "
            f"model.arch={settings['arch']} "
            f"with model.encoder={settings['encoder']} it has {len(fitting)}, and "
            f"{len(weights.keys() - own.keys())} "
            "others"
        )
    model.load_state_dict(weights)
    model.precision = str(precision)
    return model


def _fits(value: Any, own: "Tensor") -> bool:
    """Whether a value can take the place of a tensor: numbers of the same kind in the same shape."""
    from torch import Tensor, strided

    return (
        isinstance(value, Tensor)
        and value.layout is strided
        and value.device == own.device
        and value.shape == own.shape
        and value.is_floating_point() == own.is_floating_point()
    )


def _precision(config: dict[str, Any] | None) -> Any:
    """The precision of a run whose checkpoint does not have it: older ones do not."""
    trainer = {"precision": "auto"} if config is None else config.get("trainer")
    return (trainer.get("precision") if isinstance(trainer, dict) else None) or "32-true"
