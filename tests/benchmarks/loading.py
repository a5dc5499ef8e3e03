"""How many training images a second the loader gives: python tests/benchmarks/loading.py [--size 352]
[--batch 16] [--images 200] [--workers 0 1 2] [KEY=VALUE ...]

For augment=none, light and strong, from the cache, by data.num_workers, with one thread each. Images are
drawn, of about Kvasir-SEG's sizes; KEY=VALUE is for train.py. The first epoch is left out, and the fastest of
three others counts.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from common import table

from polyp.runs.configuration import compose_config
from polyp.runs.data import build_data

AUGMENTATIONS = ("none", "light", "strong")


def measure(overrides: list[str]) -> tuple[float, int]:
    """Images per second of the training loader, and the bytes of an image and its mask in a batch."""
    config = compose_config(overrides)
    data = build_data(config["data"], config["augment"], seed=0)
    data.prepare_data()
    data.setup("fit")
    loader, seconds = data.train_dataloader(), []
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        began, count = time.perf_counter(), 0
        for batch in loader:
            count += len(batch["image"])
        seconds.append((time.perf_counter() - began) / count)
    assert batch["image"].dtype == torch.uint8
    return 1 / min(seconds[1:]), (batch["image"].nbytes + batch["mask"].nbytes) // len(batch["image"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("size", 352), ("batch", 16), ("images", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        common = [
            "data=synthetic",
            f"data.root={Path(folder) / 'images'}",
            f"data.cache={Path(folder) / 'cache'}",
            f"data.count={options.images}",
            "data.size=600",
            f"data.image_size={options.size}",
            f"data.batch_size={options.batch}",
            *options.overrides,
        ]
        rows: list[tuple[object, ...]] = [("augment", *(f"{count} workers" for count in options.workers))]
        for augmentation in AUGMENTATIONS:
            rates = []
            for workers in options.workers:
                rate, size = measure([*common, f"augment={augmentation}", f"data.num_workers={workers}"])
                rates.append(rate)
            rows.append((augmentation, *rates))
    print(f"images/s at {options.size}x{options.size}; {size / 1e6:.2f} MB for an image and its mask, uint8")
    table(rows)


if __name__ == "__main__":
    main()
