"""Time and memory of all metrics, on the masks of Kvasir-SEG: python tests/benchmarks/metrics.py FOLDER

FOLDER holds the masks. Predictions are the masks, shifted and blurred, made before the clock starts. What is
timed reads them from files as they are, a millisecond an image, scores them in 2 threads, and makes the
summary. A process of its own for each number of images; CPU seconds are those of all its threads.
"""

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from common import fresh, peak_memory, table

from polyp.metrics import literature, suite

COUNTS = (250, 1000)
WORKERS = 2


def prepare(masks: list[Path], folder: Path) -> None:
    """Write probability, in 255ths, and truth of each, (2, H, W) uint8."""
    for path in masks:
        truth = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127).astype(np.uint8)
        shifted = np.roll(truth, (9, -14), (0, 1)).astype(np.float32)
        probability = 0.01 + 0.98 * cv2.GaussianBlur(shifted, (0, 0), 12).clip(0, 1)
        np.save(folder / path.stem, np.stack([(255 * probability).astype(np.uint8), truth]))


def measured(count: int, folder: Path) -> dict[str, float]:
    """Wall and CPU seconds of scores and summary, and the peak in MB."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    files = sorted(folder.iterdir())[:count]

    complete = literature.unavailable() is None

    def score(file: Path) -> suite.Scores:
        probability, truth = np.load(file)
        return suite.score(probability / np.float32(255), truth, literature=complete)

    score(files[0])  # imports
    started, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(WORKERS) as pool:
        scores = list(pool.map(score, files))
    scored = time.perf_counter()
    suite.summarise(scores)
    ended = time.perf_counter()
    return {
        "score": scored - started,
        "summary": ended - scored,
        "cpu": time.process_time() - used,
        "peak": peak_memory(),
    }


def main(masks: Path) -> None:
    if line := literature.unavailable():
        print(line)
    files = sorted(masks.glob("*.jpg"))[: max(COUNTS)]
    with tempfile.TemporaryDirectory() as folder:
        prepare(files, Path(folder))
        rows: list[tuple[object, ...]] = [
            ("images", "score s", "summary s", "CPU s", "CPU ms/image", "peak MB")
        ]
        for count in COUNTS:
            result = fresh(__file__, "--count", count, folder)
            each = 1000 * result["cpu"] / count
            rows.append((count, result["score"], result["summary"], result["cpu"], each, result["peak"]))
    print(f"{WORKERS} threads, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    table(rows)


if __name__ == "__main__":
    if sys.argv[1] == "--count":
        print(json.dumps(measured(int(sys.argv[2]), Path(sys.argv[3]))))
    else:
        main(Path(sys.argv[1]))
