"""Where a trained model comes from: a run's folder, a checkpoint, or an exported model."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyp import runs
from polyp.errors import InputError

if TYPE_CHECKING:
    from polyp.model.segmenter import PolypSegmenter


@dataclass(frozen=True)
class Source:
    """A trained model.

    Attributes:
        file: its checkpoint or ONNX file.
        home: the run's folder; of a file that lies elsewhere, the folder that it lies in.
        config: the run's; None if it is not known.
    """

    file: Path
    home: Path
    config: dict[str, Any] | None

    @staticmethod
    def of(given: str) -> "Source":
        """A run's folder, a checkpoint or an exported model.

        Raises:
            InputError: it is neither.
        """
        path = Path(given).expanduser()
        if (path / runs.SWEEP).is_file():
            raise InputError(f"{given} is a sweep: give one of the runs in it")
        if path.is_dir():
            return Source(runs.best_checkpoint(path), path, runs.read_config(path))
        if not path.is_file():
            raise InputError(f"{given} is not there: give a run's folder or a checkpoint")
        folder = path.absolute().parent
        if folder.name in (runs.CHECKPOINTS, runs.EXPORT) and (folder.parent / runs.CONFIG).is_file():
            home = Path(os.path.relpath(folder.parent))
            return Source(home / folder.name / path.name, home, runs.read_config(home))
        return Source(path, path.parent, None)

    def load(self) -> "PolypSegmenter":
        """The model in the checkpoint, on the CPU.

        Raises:
            InputError: as `best_model` and `load_model` do.
        """
        from polyp.inference.models import best_model, load_model  # imports torch

        return best_model(self.home) if self.file == runs.best_checkpoint(self.home) else load_model(self.file)

    @property
    def fingerprint(self) -> str | None:
        """Of the data that the model was trained on; None if nobody knows."""
        if self.config is None or not runs.finished(self.home):
            return None
        try:
            return runs.read_metrics(self.home)["data"]["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):  # damaged: training's numbers are not what is asked for
            return None
