"""Time per image and memory, from a small set to 16 times as many: python tests/benchmarks/scaling.py
[KEY=VALUE]…

Drawn images, 64 pixels, a small network; a process of its own for each size. An epoch is everything between
its start and the next one's: training, validation, checkpoints. The first, in which everything warms up, is
left out. Memory counts the resized images that the system maps from the cache's file, whose size stands
beside it: it may drop them. KEY=VALUE is for train.py.
"""

import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from common import fresh, new_run, peak_memory, table

from polyp.training.build import build

COUNTS = (60, 240, 960)
EPOCHS = 4


class Starts(pl.Callback):
    """When each epoch began, and the last ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Note it."""
        self.times.append(time.perf_counter())

    on_train_end = on_train_epoch_start


def measured(count: int, folder: str, overrides: list[str]) -> dict[str, float]:
    """Seconds per training image, peak and map in MB, of a set of `count` images."""
    data = {"count": count, "size": 96, "root": folder, "cache": folder, "image_size": 64, "batch_size": 8}
    model = {"arch": "unet", "encoder": "tu-regnetx_002", "encoder_weights": "null"}
    settings = [f"data.{key}={value}" for key, value in data.items()]
    settings += [f"model.{key}={value}" for key, value in model.items()]
    overrides = ["data=synthetic", *settings, f"trainer.max_epochs={EPOCHS}", *overrides]
    module, network, trainer = build(new_run(Path(folder) / f"run{count}", overrides))
    trainer.callbacks.append(starts := Starts())  # type: ignore[attr-defined]
    trainer.fit(network, module)
    assert module.pixels is not None
    epoch = statistics.median(after - before for before, after in list(pairwise(starts.times))[1:])
    images = len(module.subsets["train"])
    return {"images": images, "seconds": epoch, "peak": peak_memory(), "map": module.pixels.nbytes / 2**20}


def main(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = [fresh(__file__, "--count", count, folder, *overrides) for count in COUNTS]
    first = results[0]
    rows: list[tuple[object, ...]] = [
        ("images", "trained", "s/epoch", "ms/image", "to 1st", "peak MB", "to 1st", "map")
    ]
    for count, result in zip(COUNTS, results, strict=True):
        each, least = (1000 * row["seconds"] / row["images"] for row in (result, first))
        more = f"{result['peak'] - first['peak']:+.0f}"
        rows.append(
            (
                count,
                result["images"],
                result["seconds"],
                each,
                each / least,
                result["peak"],
                more,
                result["map"],
            )
        )
    table(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--count"]:
        print(json.dumps(measured(int(sys.argv[2]), sys.argv[3], sys.argv[4:])))
    else:
        main(sys.argv[1:])
