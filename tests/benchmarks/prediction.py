"""Images/s of a trained run's ways to predict: python tests/benchmarks/prediction.py RUN FOLDER_OF_IMAGES.

All take turns in one process, on images in memory, in batches of 8 and one by one. The yardstick is the
network as smp makes it: float32, tensors in their default layout. Exported models are taken from RUN/export.

Then all of `polyp predict`, from image files to masks, overlays and tables, against its network alone.
"""

import io
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import torch
from common import table
from torch import Tensor, nn

from polyp.commands.export.export import FILES
from polyp.commands.predict import predict as predict_command
from polyp.commands.predict.options import Options
from polyp.images import SUFFIXES, read_image
from polyp.inference.predictor import BATCH, load_predictor
from polyp.model import device
from polyp.model.exported import ExportedModel, open_exported
from polyp.runs.folder import RunFolder
from polyp.runs.model import ModelSource, load_checkpoint

IMAGES, ROUNDS = 16, 7
FILES_PREDICTED, FILE_ROUNDS = 64, 5


class Plain(nn.Module):
    """A network of one stage without the layout that ours asks for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.mean = network, network.mean
        self.network.to(memory_format=torch.contiguous_format)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits."""
        return [self.network.stages[0]((image.float() / 255 - self.network.mean) / self.network.std)]


def predict_tensors(model: ExportedModel, images: list[Tensor]) -> list[Tensor]:
    """The probabilities of an exported model, which computes on arrays."""
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    return [torch.from_numpy(probability) for probability in model.predict(arrays)]


def main(run: Path, folder: Path) -> None:
    """Print the table."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES][:IMAGES]
    images = [torch.from_numpy(read_image(file)).permute(2, 0, 1) for file in files]
    precision = str(device.precision("auto", "cpu"))
    plain, exact = (load_checkpoint(ModelSource.of(str(run))).eval() for _ in range(2))
    exact.precision = plain.precision = "32-true"
    half = load_checkpoint(ModelSource.of(str(run))).eval()
    half.precision = precision
    plain.network = Plain(plain.network)
    ways: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
        "plain float32 module": plain.predict,
        "exact, float32": exact.predict,
        f"exact, {precision}": half.predict,
        f"fast, {precision}": partial(half.predict, fast=True),
    }
    for name, file in FILES.items():
        if (RunFolder(run).exports / file).is_file():
            ways[" ".join(name)] = partial(predict_tensors, open_exported(RunFolder(run).exports / file))
    print(f"{len(images)} images, {torch.get_num_threads()} threads, {device.description()}")
    for batch in (8, 1):
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, predict in ways.items():
                predict(images[:batch])  # threads and caches are the former way's
                started = time.perf_counter()
                for place in range(0, len(images), batch):
                    predict(images[place : place + batch])
                seconds[name].append((time.perf_counter() - started) / len(images))
        speed = {name: 1 / statistics.median(values) for name, values in seconds.items()}
        reference = speed["plain float32 module"]
        table(
            [("batch of 8" if batch == 8 else "one by one", "images/s", "ratio")]
            + [(name, f"{value:.1f}", f"{value / reference:.2f}") for name, value in speed.items()]
        )
    compare_command(run, folder)


def compare_command(run: Path, folder: Path) -> None:
    """Print the images/s of `polyp predict` beside those of its network on images in memory."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES][:FILES_PREDICTED]
    speeds: dict[str, list[float]] = {"network alone": [], "polyp predict": []}
    predictor, images = load_predictor([str(run)]), [read_image(file) for file in files]
    with tempfile.TemporaryDirectory() as temporary:
        inputs = Path(temporary, "inputs")
        inputs.mkdir()
        for file in files:
            shutil.copy(file, inputs)
        for number in range(FILE_ROUNDS + 1):  # the first is not counted
            started = time.perf_counter()
            for place in range(0, len(images), BATCH):
                predictor.predict_all(images[place : place + BATCH])
            speeds["network alone"].append(len(images) / (time.perf_counter() - started))
            output = io.StringIO()
            with redirect_stdout(output):
                options = Options(model=str(run), inputs=(str(inputs),), out=f"{temporary}/{number}")
                predict_command.run(options)
            match = re.search(r"([\d.]+) images/s", output.getvalue())
            assert match, output.getvalue()
            speeds["polyp predict"].append(float(match[1]))
    ratios = [command / network for network, command in zip(*speeds.values(), strict=True)][1:]
    table(
        [(f"{len(files)} files", "images/s", "ratio")]
        + [(name, f"{statistics.median(values[1:]):.1f}", "") for name, values in speeds.items()]
        + [("median of the rounds' ratios", "", f"{statistics.median(ratios):.2f}")]
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
