"""The benchmarks run: what they time is for a person to read."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "environment.py --size 64 --batch 2 --rounds 2",
        "inspection.py 20x96",
        "loading.py --size 64 --images 40 --workers 0",
        "scaling.py",
        "startup.py",
        "training.py --size 64 --batch 2 --images 40 --steps 3 --rounds 2",
    ],
)
def test_a_benchmark_runs(command: str) -> None:
    script, *arguments = command.split()
    result = subprocess.run([sys.executable, BENCHMARKS / script, *arguments], capture_output=True, text=True)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
