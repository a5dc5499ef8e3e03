"""What the benchmarks share: configurations as train.py composes them, and what a process has used."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from polyp.runs.configuration import compose_config
from polyp.runs.folder import RunFolder
from polyp.training import sweeps  # noqa: F401
from polyp.training.run import Run

ROOT = Path(__file__).resolve().parents[2]


def new_run(folder: Path, overrides: Sequence[str]) -> Run:
    """A run of `python train.py OVERRIDES`; nothing is written yet."""
    return Run(RunFolder(folder), compose_config(overrides))


def peak_memory() -> float:
    """MB that this process has had resident at most; mapped files, such as the cache of resized images,
    count.
    """
    status = Path("/proc/self/status")
    if status.exists():  # a process inherits the other measure from the one that started it
        return next(int(line.split()[1]) / 1024 for line in status.open() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def fresh(script: str, *arguments: object) -> Any:
    """Run a benchmark's script in a process of its own; returns what its last line of output says in JSON."""
    command = [sys.executable, script, *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return json.loads(result.stdout.splitlines()[-1])


def table(rows: Iterable[Sequence[object]]) -> None:
    """Print rows in columns, the first to the left and numbers to the right."""
    cells = [
        [f"{cell:.3g}" if isinstance(cell, float) and cell < 100 else _text(cell) for cell in row]
        for row in rows
    ]
    first, *rest = (max(map(len, column)) for column in zip(*cells, strict=True))
    for row in cells:
        print(
            row[0].ljust(first),
            *(cell.rjust(width) for cell, width in zip(row[1:], rest, strict=True)),
            sep="   ",
        )
    print(flush=True)


def _text(cell: object) -> str:
    return f"{cell:.0f}" if isinstance(cell, float) else str(cell)
