"""What the terminal says before and after a run."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyp import runs
from polyp.checkpoints import Saved
from polyp.data.datamodule import PolypDataModule
from polyp.experiment import parameters
from polyp.model.segmenter import PolypSegmenter

WIDEST = 160


def opening(
    data: PolypDataModule, model: PolypSegmenter, trainer: pl.Trainer, folder: Path, last: Saved | None = None
) -> None:
    """What is about to be trained, and where; and what it goes on from."""
    made = model.hparams
    height, width = data.image_size
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"[bold]{made['arch']}[/] with [bold]{made['encoder']}[/], {parameters(model) / 1e6:.1f} M parameters"
    )
    device, count = trainer.strategy.root_device, trainer.world_size
    where = f"{count} x {device.type}" if count > 1 else f"{device}"
    console.print(f"{data.dataset} at {height}x{width}, {trainer.precision} on {where}")
    console.print(f"{os.path.relpath(folder)}")
    if last is not None:
        console.print(f"goes on after epoch {last.epochs} of {trainer.max_epochs}, step {last.steps}")
        if last.max_epochs != trainer.max_epochs and last.max_epochs and trainer.max_epochs and model.optim:
            before, now = (model.optim.share(last.epochs, total) for total in (last.max_epochs, trainer.max_epochs))
            console.print(
                f"trainer.max_epochs={trainer.max_epochs} instead of {last.max_epochs} stretches the "
                f"{model.optim.schedule} schedule: the learning rates go on at {now:.0%} of their peak instead of "
                f"{before:.0%}"
            )
    console.print()


def sweep_table(done: Sequence[dict[str, Any]], failed: Sequence[Path], folder: Path) -> None:
    """The jobs of a sweep, best validation first, and those that failed, each with its last word and its log."""
    console = Console(highlight=False, soft_wrap=True)
    if done:
        table = Table(box=None, pad_edge=False)
        given = [dict(override.partition("=")[::2] for override in row["overrides"].split()) for row in done]
        keys = list(dict.fromkeys(key for overrides in given for key in overrides))
        numbers = [name for name in done[0] if name not in ("job", "overrides", "test/iou")]
        for name in ("job", *(key.rpartition(".")[2] for key in keys), *numbers):
            table.add_column(name, justify="right")
        for row, overrides in zip(done, given, strict=True):
            cells = [f"{row[name]:.1f}" if name == "minutes" else f"{row[name]:.3f}" for name in numbers]
            table.add_row(str(row["job"]), *(overrides.get(key, "") for key in keys), *cells)
        console.print()
        Console(width=max(console.width, WIDEST)).print(table)  # a file has no width that a table must be squeezed into
    for job in failed:
        lines = (job / runs.LOG).read_text().split("\n") if (job / runs.LOG).exists() else []
        said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        console.print(f"[bold red]failed[/] job {job.name}: {escape(said)}\n       {os.path.relpath(job / runs.LOG)}")
    if failed:
        console.print(f"To try these again: python train.py resume={os.path.relpath(folder)}")
    console.print(f"\n  the sweep  {os.path.relpath(folder)}")
    console.print(f"  curves     tensorboard --logdir {shlex.quote(os.path.relpath(folder))}")
    if len(done) > 1:
        console.print(f"  compare    polyp compare {shlex.quote(os.path.relpath(folder))}")


def closing(metrics: dict[str, Any], folder: Path) -> None:
    """The result, where everything is, and what to do next."""
    test, where = metrics["test"], os.path.relpath(folder)
    interval = "95 % interval {:.3f} to {:.3f}; ".format(*test["dice_interval"]) if test["dice_interval"] else ""
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"\n[bold green]Test Dice {test['dice']:.3f}[/] ({interval}per image, original resolution, "
        f"n = {test['n']})   IoU {test['iou']:.3f}   {metrics['seconds'] / 60:.1f} min"
    )
    if runs.in_sweep(folder):
        return
    console.print(f"  the run    {where}")
    console.print(f"  pictures   {where}/{runs.PICTURES}/overview.png")
    inside = not where.startswith("..")
    console.print(f"  curves     tensorboard --logdir {shlex.quote(Path(where).parts[0] if inside else where)}")
    console.print(f"  evaluate   polyp evaluate {shlex.quote(where)}")
    console.print(f"  use it     polyp predict {shlex.quote(where)} FOLDER_OR_VIDEO")
    console.print(f"  show it    polyp app {shlex.quote(where)}")
    if metrics["data"]["dataset"] == "synthetic":
        console.print(
            "  next       python train.py                                     UNet++ on Kvasir-SEG, downloaded once"
        )
        console.print("             python train.py data=folder data.root=FOLDER        your own images/ and masks/")
    else:
        console.print("  next       python train.py -m model.encoder=mobilenet_v2,resnet34     compare encoders")
