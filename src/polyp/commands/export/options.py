"""The options of `polyp export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from polyp import terminal
from polyp.commands.options import Archive, Flag, Root, find_models, option
from polyp.errors import InputError
from polyp.files import check_writable

RECORD = "export.json"


@dataclass(frozen=True)
class Options:
    """Make a trained model, or the average of several, an ONNX file that runs without polyp.

    A file takes images of any size and returns probabilities. How good and how fast it is beside the
    checkpoint is measured; both go to the run's folder, under export/.
    """

    models: Annotated[Positional[tuple[str, ...]], option("RUN...")]
    """Run folders, sweeps over seeds or folds, or checkpoints in runs; of several the probabilities are
    averaged.
    """
    onnx: Flag = False
    """As ONNX, which is the only format: it need not be given."""
    fp16: Flag = False
    """Also in float16, for GPUs."""
    int8: Flag = False
    """Also in 8-bit integers, for CPUs; the validation images set their ranges."""
    openvino: Flag = False
    """Also in 8-bit integers for OpenVINO, mostly the fastest on CPUs."""
    out: Annotated[str | None, option("FOLDER")] = None
    """Where to write (RUN/export)."""
    root: Root = None
    archive: Archive = None
    overwrite: Flag = False
    """Replace an export that is there."""

    def run(self) -> dict[str, Any]:
        """Export the model; the content of export.json."""
        if not self.models:
            raise InputError("give at least one RUN")
        if len(self.models) > 1 and self.out is None:
            raise InputError("say with --out FOLDER where the average of several RUNs is to be written")
        find_models(self.models, self.root, self.archive)
        self.check_output()
        with terminal.loading():
            from polyp.commands.export.export import run

        return run(self)

    @property
    def folder(self) -> Path:
        """The folder to write to."""
        from polyp.runs.folder import RunFolder  # imports Hydra

        if self.out is not None:
            return Path(self.out).expanduser()
        return find_models(self.models)[0].output_folder / RunFolder.EXPORTS

    def check_output(self) -> None:
        """Raise InputError if the folder cannot be written or holds something."""
        folder = self.folder
        check_writable(folder)
        if folder.exists() and any(folder.iterdir()):
            if not (folder / RECORD).is_file():
                raise InputError(f"{folder} holds something else than an export: give another --out")
            if not self.overwrite:
                raise InputError(
                    f"{folder} is there already: replace it with --overwrite, or give another --out"
                )
