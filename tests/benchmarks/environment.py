"""What the settings of OpenMP and of glibc's memory that polyp makes are worth.

python tests/benchmarks/environment.py [--size 256] [--batch 8] [--rounds 5] [--threads 2]

Seconds of a training step and of a prediction of as many images (UNet++ with mobilenet_v2), by the threads of
one process.

polyp    both settings: a thread that waits spins for some microseconds, then sleeps (GOMP_SPINCOUNT=1000),
         and freed memory is kept for the next step.
passive  a thread that waits sleeps at once (OMP_WAIT_POLICY=PASSIVE).
spin     OpenMP's default: it spins for about a millisecond.
free     glibc's default: large blocks of freed memory are returned to the system.

Each of the four is a process that has computed once before. They take turns, alone and beside another
process that trains with as many threads, with polyp's settings; all of this is repeated `--rounds` times.
"""

import argparse
import operator
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import table

SETTINGS = {
    "polyp": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin": {"GOMP_SPINCOUNT": "300000"},  # libgomp's default
    "free": {
        "GOMP_SPINCOUNT": "1000",
        "MALLOC_PERTURB_": "0",
    },  # any MALLOC_ variable; this one is the default
}
TASKS = ("train", "predict")


def compute(size: int, batch: int) -> None:
    """Do each task that is named on a line of standard input, and answer with the seconds."""
    import torch  # before polyp, which sets what OpenMP reads

    from polyp.model.losses import build_loss
    from polyp.model.network import PolypNetwork

    network = PolypNetwork("unetplusplus", "mobilenet_v2", None, None, None, None, 1, (size, size))
    loss, optimizer = build_loss("dice_bce"), torch.optim.AdamW(network.parameters())
    image = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    target = torch.randint(0, 2, (batch, 1, size, size))

    def train() -> None:
        network.train()
        optimizer.zero_grad()
        loss(network(image)[-1], target).backward()
        optimizer.step()

    def predict() -> None:
        network.eval()
        with torch.inference_mode():
            network(image)

    tasks = {"train": train, "predict": predict}
    for line in sys.stdin:
        began = time.perf_counter()
        tasks[line.strip()]()
        print(time.perf_counter() - began, flush=True)


class Worker:
    """A process that computes."""

    def __init__(self, options: argparse.Namespace, environment: dict[str, str]) -> None:
        clean = {
            key: value
            for key, value in os.environ.items()
            if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") and not key.startswith("MALLOC_")
        }
        command = [sys.executable, __file__, f"--size={options.size}", f"--batch={options.batch}", "--worker"]
        self.process = subprocess.Popen(
            command,
            env=clean | environment | {"OMP_NUM_THREADS": str(options.threads)},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, *tasks: str) -> None:
        """Queue tasks."""
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{task}\n" for task in tasks))
        self.process.stdin.flush()

    def seconds(self) -> float:
        """Of the first task that has not been asked for."""
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())


def processor() -> str:
    """The name of the CPU and its vector instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    values = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = [flag for flag in values.get("flags", "").split() if flag.startswith(("avx", "amx", "fma"))]
    return f"{values.get('model name', 'CPU').strip()}, {os.cpu_count()} processors, {' '.join(flags)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("size", 256), ("batch", 8), ("rounds", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        compute(options.size, options.batch)
        return

    workers = {name: Worker(options, environment) for name, environment in SETTINGS.items()}
    neighbour = Worker(options, {})
    everyone = [*workers.values(), neighbour]
    try:
        for worker in everyone:
            worker.start(*TASKS)
            for _ in TASKS:
                worker.seconds()
        neighbour.start(*["train"] * 10_000)
        seconds: dict[Any, list[float]] = {}
        for number in range(options.rounds):
            for place in ("alone", "beside another"):
                neighbour.process.send_signal(signal.SIGSTOP if place == "alone" else signal.SIGCONT)
                for name in sorted(workers, reverse=bool(number % 2)):
                    for task in TASKS:
                        workers[name].start(task)
                        seconds.setdefault((task, place, name), []).append(workers[name].seconds())
    finally:
        for worker in everyone:
            worker.process.kill()
            worker.process.wait()

    print(f"\n{processor()}; load before: {os.getloadavg()[2]:.1f}")
    print(f"{options.size} px, batches of {options.batch}, {options.threads} threads; medians in seconds\n")
    others = [name for name in SETTINGS if name != "polyp"]
    rows: list[tuple[Any, ...]] = [("", *SETTINGS, *(f"{name} / polyp" for name in others))]
    for task, place in dict.fromkeys((task, place) for task, place, _ in seconds):
        values = {name: seconds[task, place, name] for name in SETTINGS}
        ratios = [statistics.median(map(operator.truediv, values[name], values["polyp"])) for name in others]
        rows.append((f"{task}, {place}", *map(statistics.median, values.values()), *ratios))
    table(rows)


if __name__ == "__main__":
    main()
