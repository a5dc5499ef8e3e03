"""Texts in the terminal before and after a run."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.markup import escape

from polyp import terminal
from polyp.data.datamodule import PolypDataModule
from polyp.errors import shell_word, train_command
from polyp.runs.folder import RunFolder
from polyp.training.module import TrainingModule
from polyp.training.run import Run
from polyp.training.stages import count_parameters

log = logging.getLogger(__name__)


def print_start(run: Run, data: PolypDataModule, model: TrainingModule, trainer: pl.Trainer) -> None:
    """Print what is trained, where, and what it continues from."""
    if run.is_worker:
        return
    console = terminal.console()
    size = f"{count_parameters(model) / 1e6:.1f} M parameters"
    console.print(f"[bold]{model.arch}[/] with [bold]{model.encoder}[/], {size}")
    height, width = data.image_size
    device, count = trainer.strategy.root_device, trainer.world_size
    devices = f"{count} x {device.type}" if count > 1 else f"{device}"
    console.print(f"{data.dataset} at {height}x{width}, {trainer.precision} on {devices}")
    console.print(os.path.relpath(run.folder.path), markup=False, soft_wrap=True)
    if model.network.init_summary:
        log.info("%s", model.network.init_summary)
    if (point := run.resume_point) is not None:
        epochs, old_epochs = trainer.max_epochs, point.max_epochs
        console.print(f"continues after epoch {point.epochs} of {epochs}, step {point.steps}")
        if epochs and old_epochs and epochs != old_epochs and model.optim:
            change = "stretches" if epochs > old_epochs else "shortens"
            console.print(
                f"trainer.max_epochs={epochs} instead of {old_epochs} {change} the {model.optim.schedule} "
                f"schedule: the learning rates continue at {model.optim.share(point.epochs, epochs):.0%} of "
                f"their peak instead of {model.optim.share(point.epochs, old_epochs):.0%}"
            )
    console.print()


def print_result(metrics: dict[str, Any], folder: RunFolder) -> None:
    """Print the result, where everything is, and what to do next."""
    test, path = metrics["test"], os.path.relpath(folder.path)
    console = terminal.console()
    console.print(
        f"\n[bold green]Test Dice {test['dice']:.3f}[/] ({_format_interval(test['dice_interval'])}per image, "
        f"original resolution, n = {test['n']}), IoU {test['iou']:.3f}"
    )
    for source, scores in test.get("sources", {}).items():
        console.print(
            f"  {escape(source):<10} Dice {scores['dice']:.3f} ({_format_interval(scores['dice_interval'])}"
            f"n = {scores['n']})   IoU {scores['iou']:.3f}"
        )
    if normal := test.get("normal"):
        console.print(
            f"  normal     false alarms on {normal['false_alarms']:.1%} of the frames without polyps "
            f"({_format_interval(normal['false_alarms_interval'], '.1%')}n = {normal['n']})"
        )
    console.print(f"trained in {terminal.format_seconds(metrics['seconds'])}")
    if folder.is_sweep_job:
        return
    run, train = shell_word(path), train_command()
    curves = path if path.startswith("..") else Path(path).parts[0]
    places = {
        "run": path,
        "pictures": f"{path}/{folder.pictures.name}/overview.png",
        "curves": f"tensorboard --logdir {shell_word(curves)}",
        "evaluate": f"polyp evaluate {run}",
        "use it": f"polyp predict {run} FOLDER_OR_VIDEO",
        "show it": f"polyp app {run}",
    }
    if metrics["data"]["dataset"] == "synthetic":
        places["next"] = f"{train}    Kvasir-SEG, downloaded once"
        places[""] = f"{train} data=folder data.root=FOLDER    your own images and masks"
    else:
        places["next"] = f"{train} -m model.encoder=mobilenet_v2,resnet34    compare encoders"
    terminal.print_places(places)


def _format_interval(interval: Sequence[float] | None, style: str = ".3f") -> str:
    if interval is None:
        return ""
    low, high = (format(end, style) for end in interval)
    return f"95 % interval {low} to {high}; "
