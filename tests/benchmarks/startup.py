"""What it costs to start: python tests/benchmarks/startup.py [cfg] [train] [KEY=VALUE ...]; without a name,
all.

cfg     `python train.py --cfg job` as a multiple of an empty Hydra app.
train   seconds from the command to the first training step with a warm cache, alone and for each job of a
        sweep from the end of the one before, and what they go to; beside the imports alone, with Python's
        garbage collection. UNet++ with mobilenet_v2 at 256 pixels without pretrained weights. KEY=VALUE is
        for train.py.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, table
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from polyp import terminal

EMPTY = """
import hydra

@hydra.main(version_base="1.3", config_path=".", config_name="empty")
def main(cfg):
    pass

main()
"""
IMPORTS = "import albumentations, pytorch_lightning, segmentation_models_pytorch, torch.utils.tensorboard"
STEP = "first training step"


class Stamps(Callback):
    """Inside train.py, by way of Hydra: when each part of the start was done, as lines [job, part, time]."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.job = 0

    def stamp(self, part: str) -> None:
        """Note the time."""
        with open(self.file, "a") as lines:
            lines.write(json.dumps([self.job, part, time.time()]) + "\n")

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Comes after the check of the jobs, which is a callback too; the imports are those of the fork
        server.
        """
        self.stamp("imports and check of all jobs")

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        """Do the imports that come next anyway, and watch what follows."""
        self.job = OmegaConf.select(config, "hydra.job.num") or 0
        self.stamp("python, configuration")
        with terminal.loading():
            from polyp.training import build

        self.stamp("imports")
        self.after(build.PolypDataModule, "__init__", "data module, augmentation")
        self.after(build.TrainingModule, "__init__", "network")
        self.after(build, "build_trainer", "trainer")
        self.after(build.PolypDataModule, "setup", "data: check and cache")
        self.after(build.TrainingModule, "on_train_start", "first validation batches")
        self.after(build.TrainingModule, "on_train_batch_end", STEP)

    def on_job_end(self, config: Any, **kwargs: Any) -> None:
        """The next one's time begins."""
        self.stamp("end")

    def after(self, owner: Any, name: str, part: str) -> None:
        """Let a function note the time when it is done."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def stamped(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.stamp(part)
            return result

        setattr(owner, name, stamped)


def seconds(*command: object, **options: Any) -> float:
    """One call of Python, on the clock."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True, **options)
    return time.perf_counter() - started


def configuration() -> None:
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text(EMPTY)
        (Path(folder) / "empty.yaml").write_text("nothing: null\n")
        # The first two warm the disk.
        pairs = [
            [seconds(script, "--cfg", "job") for script in (ROOT / "train.py", empty)] for _ in range(12)
        ][2:]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"train.py --cfg job {ours:.3f} s, an empty Hydra app {theirs:.3f} s, ratio {ours / theirs:.2f}\n")


def jobs(folder: str, *arguments: str) -> list[dict[str, float]]:
    """The seconds of each part of each job's start, in a run of train.py."""
    file = Path(folder) / "stamps"
    file.unlink(missing_ok=True)
    started = time.time()
    seconds(
        *(
            ROOT / "train.py",
            *arguments,
            f"hydra.run.dir={folder}/run-{started}",
            f"hydra.sweep.dir={folder}/sweep",
        ),
        *("+hydra.callbacks.stamps._target_=startup.Stamps", f"+hydra.callbacks.stamps.file={file}"),
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    rows: list[dict[str, float]] = []
    before = started
    for job, part, now in map(json.loads, file.read_text().splitlines()):
        if job == len(rows):
            rows.append({})
        if STEP not in rows[job]:
            rows[job][part] = rows[job].get(part, 0) + now - before
        before = now
    return rows


def first_step(*overrides: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["data=synthetic", "data.count=40", f"data.root={folder}", f"data.cache={folder}"]
        arguments += [
            "data.image_size=256",
            "data.batch_size=8",
            "model.encoder_weights=null",
            "trainer.max_epochs=1",
        ]
        arguments += overrides
        jobs(folder, *arguments)  # fills the cache
        imports = statistics.median(seconds("-c", IMPORTS) for _ in range(3))
        runs = [jobs(folder, *arguments)[0] for _ in range(3)]
        alone = sorted(runs, key=lambda parts: sum(parts.values()))[1]
        sweep = jobs(folder, "-m", "seed=0,1,2", *arguments)
    columns = [alone, *sweep]
    names = sorted({name: None for parts in columns for name in parts}, key=lambda name: name == STEP)
    table(
        [
            ("seconds", "alone", *(f"job {number}" for number in range(len(sweep)))),
            *((name, *(f"{parts.get(name, 0):.2f}" for parts in columns)) for name in names),
            ("together", *(f"{sum(parts.values()):.2f}" for parts in columns)),
            (
                "as a multiple of the imports alone",
                *(f"{sum(parts.values()) / imports:.2f}" for parts in columns),
            ),
        ]
    )
    print(f"The imports alone take {imports:.2f} s. Wanted: 5 s alone, 3 s for job 1 and later.")


if __name__ == "__main__":
    chosen = {"cfg", "train"}.intersection(sys.argv[1:]) or {"cfg", "train"}
    if "cfg" in chosen:
        configuration()
    if "train" in chosen:
        first_step(*(argument for argument in sys.argv[1:] if argument not in chosen))
