"""`python train.py --cfg job` as a multiple of an empty Hydra app: python tests/benchmarks/startup.py."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMPTY = """
import hydra

@hydra.main(version_base="1.3", config_path=".", config_name="empty")
def main(cfg):
    pass

main()
"""


def seconds(script: Path) -> float:
    """One call, on the clock."""
    started = time.perf_counter()
    subprocess.run([sys.executable, script, "--cfg", "job"], check=True, capture_output=True, cwd=script.parent)
    return time.perf_counter() - started


with tempfile.TemporaryDirectory() as folder:
    empty = Path(folder) / "empty.py"
    empty.write_text(EMPTY)
    (Path(folder) / "empty.yaml").write_text("nothing: null\n")
    pairs = [(seconds(ROOT / "train.py"), seconds(empty)) for _ in range(12)][2:]  # the first two warm the disk
ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
print(f"train.py {ours:.3f} s, an empty Hydra app {theirs:.3f} s, ratio {ours / theirs:.2f}")
