"""What serving costs: python tests/benchmarks/serving.py RUN [--root FOLDER]

The median latency of the app for one image at a time, as a multiple of what decoding, predicting and the mask
take in one process; then images a second and memory with 20 clients at once.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
from common import table

from polyp.commands.app.gallery import load_gallery
from polyp.images import decode
from polyp.inference import polyps
from polyp.inference.predictor import load_predictor
from polyp.runs.model import ModelSource

ROUND = 10
"""Images one way before it is the next one's turn."""


def memory(process: int) -> float:
    """MB that a process takes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--root")
    arguments = parser.parse_args()
    gallery = load_gallery([ModelSource.of(arguments.run)], arguments.root)
    assert gallery.images, "the run's data are not there: --root"
    paths = [pair.image for pair in gallery.images.values()][:40]
    contents = [path.read_bytes() for path in paths]
    predictor = load_predictor([arguments.run])

    def alone(content: bytes) -> None:
        cv2.imencode(".png", polyps.compute_mask(predictor.predict(decode(content, "")), predictor.threshold))

    command = [sys.executable, "-m", "polyp.cli", "app", arguments.run, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as app:
        assert app.stdout is not None
        url = next(found[0] for line in app.stdout if (found := re.search(r"http://\S+", line)))

        def plain(content: bytes) -> None:
            urllib.request.urlopen(f"{url}/api/mask", content, timeout=60).read()

        ways: dict[str, Callable[[int], None]] = {
            "predict": lambda number: alone(contents[number]),
            "plain HTTP": lambda number: plain(contents[number]),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for first in range(0, len(paths), ROUND):  # in turns, so that all meet the same machine
            for name, way in ways.items():
                way(
                    first
                )  # this process's threads spin for a while after their work, and take the server's cores
                for number in range(first, min(first + ROUND, len(paths))):
                    started = time.perf_counter()
                    way(number)
                    times[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        table(
            [
                ("one image at a time", "median ms", "ratio"),
                *((name, f"{m * 1000:.1f}", f"{m / medians['predict']:.2f}") for name, m in medians.items()),
            ]
        )
        with ThreadPoolExecutor(20) as visitors:
            list(visitors.map(plain, (contents * 200)[:200]))  # warm
            before, started = memory(app.pid), time.perf_counter()
            list(visitors.map(plain, (contents * 200)[:200]))
            rate = 200 / (time.perf_counter() - started)
        grown = memory(app.pid) - before
        print(
            f"20 clients: {rate:.1f} images/s; memory {before:.0f} MB, {grown:+.0f} MB after 200 more images"
        )
        app.terminate()


if __name__ == "__main__":
    main()
