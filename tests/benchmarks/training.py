"""How fast train.py trains, beside the barest loop and beside the loop that people write.

python tests/benchmarks/training.py [--size 256] [--batch 8] [--steps 6] [--rounds 5] [--images 160]
[KEY=VALUE ...]

On the CPU, with drawn images of about Kvasir-SEG's sizes; KEY=VALUE is for train.py, such as model.arch=unet.

ours    what train.py does: cache, augmentation, scores, TensorBoard, average of the weights, checkpoints.
bare    the same network, loss, optimiser and precision on batches that lie in memory, and nothing else.
plain   float32, JPEG and PNG decoded, resized and augmented anew in each epoch, in a loop of PyTorch alone,
        in a process that has the defaults of OpenMP and of glibc's memory instead of polyp's.

The three take turns: whenever train.py's own trainer has made `--steps` steps, it stands still for as many of
each of the others. The first step of each turn is left out, and so is a first round before the `--rounds`.
Memory is that of fresh processes, one for each, over two epochs.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
from albumentations.pytorch import ToTensorV2
from common import fresh, new_run, peak_memory, table
from pytorch_lightning.profilers import SimpleProfiler
from torch.utils.data import DataLoader, Dataset

from polyp.data.datamodule import PolypDataModule
from polyp.data.pairs import Pair
from polyp.model.losses import build_loss
from polyp.training.build import build
from polyp.training.run import Run

EPOCHS = 2  # over which memory is measured
Steps = Iterator[None]


def bare(run: Run, data: PolypDataModule) -> Steps:
    """Forward, backward, step, for ever."""
    _, model, trainer = build(run)
    assert model.optim is not None
    groups = [[*model.network.encoder_parameters()]], model.network.decoder_parameters()
    optimizer: Any = model.optim.build(*groups, total_steps=1000, monitor="")["optimizer"]
    batches = [(batch["image"], batch["mask"][:, None]) for batch in data.train_dataloader()]
    for image, target in cycle(batches):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=trainer.precision == "bf16-mixed"):
            logits = model.network(image)
            loss = torch.stack([model.loss(stage, target) for stage in logits]).mean()
        loss.backward()
        optimizer.step()
        yield


class PlainDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Files that are decoded each time."""

    def __init__(self, pairs: list[Pair], size: int) -> None:
        self.pairs = pairs
        turns = [A.HorizontalFlip(), A.VerticalFlip(), A.RandomRotate90(p=0.75)]
        self.transform = A.Compose([A.Resize(size, size), *turns, A.Normalize(), ToTensorV2()])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        pair = self.pairs[index]
        image = cv2.cvtColor(cv2.imread(str(pair.image)), cv2.COLOR_BGR2RGB)
        mask = (cv2.imread(str(pair.mask), cv2.IMREAD_GRAYSCALE) > 127).astype(np.float32)
        sample = self.transform(image=image, mask=mask)
        return sample["image"], sample["mask"][None]


def plain(run: Run, data: PolypDataModule) -> Steps:
    """The loop that people write, for ever."""
    settings, sizes = run.config["model"], run.config["data"]
    network = smp.create_model(settings["arch"], settings["encoder"], encoder_weights=None)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4)
    loss = build_loss(settings["loss"])
    files = PlainDataset([data.pairs[data.rows[stem]] for stem in data.subsets["train"]], sizes["image_size"])
    loader = DataLoader(files, sizes["batch_size"], shuffle=True, drop_last=True)
    for image, target in chain.from_iterable(repeat(loader)):
        optimizer.zero_grad()
        loss(network(image), target).backward()
        optimizer.step()
        yield


OTHERS = {"bare": bare, "plain": plain}
DEFAULTS = {"GOMP_SPINCOUNT": "300000", "MALLOC_PERTURB_": "0"}  # polyp leaves glibc alone if MALLOC_* is set


def run_apart(command: list[str]) -> Steps:
    """The steps of a contender that takes one for each line, in a process without polyp's settings."""
    process = subprocess.Popen(
        command, env=os.environ | DEFAULTS, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        while True:
            process.stdin.write("\n")
            process.stdin.flush()
            if not process.stdout.readline():
                sys.exit(f"{' '.join(command)} failed")
            yield
    finally:
        process.kill()
        process.wait()


class Turns(pl.Callback):
    """The last of the trainer's callbacks: times its steps, and lets the others take theirs in between."""

    def __init__(self, steps: int, rounds: int, others: Mapping[str, Steps]) -> None:
        self.steps = steps
        self.rounds = rounds
        self.others = others
        # by turn and step
        self.seconds: dict[str, list[list[float]]] = {name: [] for name in ("ours", *others)}
        self.turn: list[float] = []
        self.between: list[float] = []  # epochs: validation and checkpoints

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Watch what Lightning's profiler does not: the parts of a training step."""
        profiler = trainer.profiler
        for name, module in (("forward", pl_module.network), ("loss", pl_module.loss)):
            module.register_forward_pre_hook(lambda module, _, name=name: start(module.training, name))
            module.register_forward_hook(lambda module, *_, name=name: stop(module.training, name))

        def start(training: bool, name: str) -> None:
            if training:
                profiler.start(name)

        def stop(training: bool, name: str) -> None:
            if training:
                profiler.stop(name)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """What was before belongs to the end of the epoch before."""
        now = time.perf_counter()
        if trainer.current_epoch:
            self.between.append(now - self.before)
        self.before = now

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the time; at the end of a turn hand over."""
        self.turn.append(time.perf_counter() - self.before)
        if len(self.turn) == self.steps:
            if not self.seconds["ours"]:
                trainer.profiler.recorded_durations.clear()
            self.seconds["ours"].append(self.turn)
            self.turn = []
            for name, contender in self.others.items():
                self.seconds[name].append([timed(contender) for _ in range(self.steps)])
            trainer.should_stop = len(self.seconds["ours"]) > self.rounds
        self.before = time.perf_counter()

    def median(self, name: str) -> float:
        """Of a contender's steps, in seconds."""
        return statistics.median(step for turn in self.seconds[name][1:] for step in turn[1:])


def timed(contender: Steps) -> float:
    """The seconds of its next step."""
    started = time.perf_counter()
    next(contender)
    return time.perf_counter() - started


def parts(durations: Mapping[str, list[float]], seconds: float) -> dict[str, float]:
    """Where the steps' time went, as shares of their `seconds`."""

    def total(*ends: str) -> float:
        return math.fsum(math.fsum(values) for name, values in durations.items() if name.endswith(ends))

    callbacks = total("on_train_batch_start", "on_train_batch_end") - total("Turns.on_train_batch_end")
    shares = {
        "waiting for data": total("train_dataloader_next"),
        "forward": total("forward"),
        "loss": total("loss"),
        "scores and log": total("Strategy.training_step") - total("forward", "loss"),
        "backward": total("Strategy.backward"),
        "optimiser, clipping": total(".optimizer_step")
        - total("Strategy.training_step", "Strategy.backward"),
        "callbacks": callbacks,
    }
    shares = {name: share / seconds for name, share in shares.items()}
    return shares | {"the rest of Lightning": 1 - sum(shares.values())}


def make_run(options: argparse.Namespace, folder: str, name: str, epochs: int) -> Run:
    """A run of train.py, with all that it writes in `folder`."""
    data = {"root": folder, "cache": folder, "count": options.images, "size": 512}
    data |= {"image_size": options.size, "batch_size": options.batch}
    ours = [
        "data=synthetic",
        *(f"data.{key}={value}" for key, value in data.items()),
        "model.encoder_weights=null",
    ]
    ours += ["trainer.accelerator=cpu", f"trainer.max_epochs={epochs}"]
    return new_run(Path(folder) / name, [*ours, *options.overrides])


def memory(options: argparse.Namespace, folder: str) -> float:
    """MB that this process needs at most for one contender alone."""
    run = make_run(options, folder, "run_alone", EPOCHS)
    data, model, trainer = build(run)
    if options.alone == "ours":
        trainer.fit(model, data)
    else:
        del model
        data.setup("fit")
        contender = OTHERS[options.alone](run, data)
        for _ in range(EPOCHS * len(data.train_dataloader())):
            next(contender)
    return peak_memory()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("size", 256), ("batch", 8), ("steps", 6), ("rounds", 5), ("images", 160)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--steps-of", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.alone:
        print(json.dumps(memory(options, options.folder)))
        return
    if options.steps_of:
        run = make_run(options, options.folder, "run_apart", epochs=1000)
        data, _, _ = build(run)
        data.setup("fit")
        for _ in zip(sys.stdin, OTHERS[options.steps_of](run, data), strict=False):
            print(flush=True)
        return

    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"--{name}={getattr(options, name)}" for name in ("size", "batch", "images")]
        arguments += [*options.overrides, f"--folder={folder}"]
        run = make_run(options, folder, "run", epochs=1000)
        data, model, trainer = build(run)
        data.setup("fit")
        trainer.profiler = profiler = SimpleProfiler()
        profiler.describe = lambda: None  # type: ignore[method-assign]  # its own long table
        apart = run_apart([sys.executable, __file__, *arguments, "--steps-of=plain"])
        turns = Turns(options.steps, options.rounds, {"bare": bare(run, data), "plain": apart})
        trainer.callbacks.append(turns)  # type: ignore[attr-defined]
        trainer.fit(model, data)
        peaks = {name: fresh(__file__, *arguments, f"--alone={name}") for name in turns.seconds}

    ours, epoch = turns.median("ours"), len(data.train_dataloader())
    threads = torch.get_num_threads()
    network = "{arch}, {encoder}".format_map(run.config["model"])
    print(f"\n{network}, {options.size} px, {trainer.precision}, {threads} threads\n")
    rows = [("", "images/s", "ours / it", "wanted", "peak MB", "ours - its")]
    for name, least in (("ours", ""), ("bare", ">= 0.95"), ("plain", ">= 2.2")):
        ratio, more = turns.median(name) / ours, peaks["ours"] - peaks[name]
        rows.append((name, options.batch / turns.median(name), ratio, least, peaks[name], more))
    table(rows)
    shares = parts(profiler.recorded_durations, math.fsum(map(math.fsum, turns.seconds["ours"][1:])))
    table([("train.py's step", "share"), *((name, f"{share:.1%}") for name, share in shares.items())])
    between = statistics.median(turns.between)
    share = between / (between + epoch * ours)
    print(
        f"Between epochs of {epoch} steps, validation and checkpoints take {between:.2f} s, {share:.0%} of "
        "the time"
    )


if __name__ == "__main__":
    main()
