"""What an export looks like in the terminal."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyp.training.console import WIDEST


def tell(record: Mapping[str, Any], folder: Path) -> None:
    """The numbers of export.json, and where the files are."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"\n[bold]{escape(record['run'])}[/], {record['n']} test images, {record['timed']} of them timed one by one, "
        f"{escape(record['device'])}"
    )
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in ("", "Dice", "loss", "difference", "median", "p95 ms", "images/s", "faster", "MB"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for kind, label in (("module", "module"), ("onnx", "ONNX")):
        for name, one in record[kind].items():
            away = max(one["difference"].values()) if one["difference"] else None
            table.add_row(
                f"{label} {name}",
                f"{one['dice']:.4f}",
                f"{one['dice_loss']:+.4f}",
                "" if away is None else f"{away:.1e}" if away < 0.001 else f"{away:.3f}",
                f"{one['latency_ms']['median']:.1f}",
                f"{one['latency_ms']['p95']:.1f}",
                f"{one['images_per_second']:.1f}",
                f"{one['faster']:.2f}x",
                f"{one['bytes'] / 1e6:.1f}" if "bytes" in one else "",
            )
    Console(width=max(console.width, WIDEST)).print(table)
    sizes = ", ".join(record["compared_at"])
    console.print(
        f"  difference: the largest between probabilities and those of the module in float32, on {record['compared']} "
        f"validation images at {sizes} times their size"
    )
    for note in record["notes"]:
        console.print(f"[bold yellow]note[/] {escape(note)}")
    console.print(f"  the models   {escape(os.path.relpath(folder))}")
