"""What the terminal says before and after a run."""

import os
import shlex
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.console import Console

from polyp import runs
from polyp.data.datamodule import PolypDataModule
from polyp.experiment import parameters
from polyp.model.segmenter import PolypSegmenter


def opening(data: PolypDataModule, model: PolypSegmenter, trainer: pl.Trainer, folder: Path) -> None:
    """What is about to be trained, and where."""
    made = model.hparams
    height, width = data.image_size
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"[bold]{made['arch']}[/] with [bold]{made['encoder']}[/], {parameters(model) / 1e6:.1f} M parameters"
    )
    console.print(f"{data.dataset} at {height}x{width}, {trainer.precision} on {trainer.strategy.root_device}")
    console.print(f"{os.path.relpath(folder)}\n")


def closing(metrics: dict[str, Any], folder: Path) -> None:
    """The result, where everything is, and what to do next."""
    test, where = metrics["test"], os.path.relpath(folder)
    interval = "95 % interval {:.3f} to {:.3f}; ".format(*test["dice_interval"]) if test["dice_interval"] else ""
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"\n[bold green]Test Dice {test['dice']:.3f}[/] ({interval}per image, original resolution, "
        f"n = {test['n']})   IoU {test['iou']:.3f}   {metrics['seconds'] / 60:.1f} min"
    )
    console.print(f"  the run    {where}")
    console.print(f"  pictures   {where}/{runs.PICTURES}/overview.png")
    inside = not where.startswith("..")
    console.print(f"  curves     tensorboard --logdir {shlex.quote(Path(where).parts[0] if inside else where)}")
    if metrics["data"]["dataset"] == "synthetic":
        console.print(
            "  next       python train.py                                     UNet++ on Kvasir-SEG, downloaded once"
        )
        console.print("             python train.py data=folder data.root=FOLDER        your own images/ and masks/")
    else:
        console.print("  next       python train.py -m model.encoder=mobilenet_v2,resnet34     compare encoders")
