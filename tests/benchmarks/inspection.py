"""What a look at a data set costs: python tests/benchmarks/inspection.py [COUNTxSIZE ...]

COUNTxSIZE  so many drawn pairs of so many pixels of height; by default 1000x96, 10000x96 and 1000x400. Up to
            500 pictures are drawn, and then repeated with another grey noise each.

Seconds and peak memory of `polyp data` on all cores, which reads every image and mask, finds near-duplicates
and draws the page.
"""

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from common import fresh, peak_memory, table

DRAWN = 500


def make(root: Path, count: int, size: int) -> None:
    """JPEG images and PNG masks in images/ and masks/."""
    from polyp.data.drawing import draw

    for name in ("images", "masks"):
        (root / name).mkdir()
    height, width = size, size * 5 // 4
    drawn = [draw(seed, height, width) for seed in range(min(count, DRAWN))]

    def save(number: int) -> None:
        image, mask = drawn[number % DRAWN]
        noise = np.random.default_rng(number).integers(0, 120, (6, 8, 1), np.uint8)
        image = cv2.add(image, cv2.cvtColor(cv2.resize(noise, (width, height)), cv2.COLOR_GRAY2RGB))
        for folder, pixels, suffix in (("images", image[..., ::-1], ".jpg"), ("masks", mask * 255, ".png")):
            file = root / folder / f"frame{number:05}{suffix}"
            file.write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())

    with ThreadPoolExecutor() as pool:
        list(pool.map(save, range(count)))


def measure(root: str) -> None:
    """In a process of its own: look at a folder."""
    from polyp.commands.data.data import run
    from polyp.commands.data.options import Options

    start = time.perf_counter()
    run(Options(data=(root,), out=f"{root}/page.html"))
    print(json.dumps([time.perf_counter() - start, peak_memory()]))


def main(sets: list[str]) -> None:
    """Measure each data set."""
    rows: list[tuple[object, ...]] = [("images", "size", "seconds", "images/s", "peak MB")]
    for name in sets or ["1000x96", "10000x96", "1000x400"]:
        count, size = map(int, name.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), count, size)
            seconds, memory = fresh(__file__, "measure", folder)
        rows.append((str(count), f"{size * 5 // 4}x{size}", seconds, count / seconds, memory))
    table(rows)


if __name__ == "__main__":
    measure(sys.argv[2]) if sys.argv[1:2] == ["measure"] else main(sys.argv[1:])
