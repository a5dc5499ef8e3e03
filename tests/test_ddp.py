"""Several devices and machines: two real processes on the CPU train as one would, leave one folder, and stop
and go on together.
"""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm
import torch
from conftest import ROOT, SMALL, run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from polyp.data.dataset import EpochSampler

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")

# A network without batch statistics, which are the one thing that two processes do not share on a CPU, and an
# optimiser whose steps grow with the gradients: Adam's first steps would make much of the last digits.
ALIKE = (
    *SMALL,
    "logger=csv",
    "data.count=50",  # 40 / 5 / 5: neither the validation nor the test images divide by two
    "model.arch=fpn",
    "model.encoder=mit_b0",
    "model.decoder_channels=null",
    "model.loss=dice",
    "+augment.scales=[0.5,1,1.5]",
    "optim.optimizer=sgd",
    "optim.decoder_lr=0.1",
    "optim.encoder_lr=0.1",
    "optim.ema_decay=0.5",
    "trainer.precision=32-true",
    "trainer.max_epochs=3",
)
CLOSE = 1e-4
"""Two processes add up in another order than one does."""


def start(*arguments: str) -> subprocess.Popen[str]:
    """`python train.py ARGUMENTS` in a process group of its own, as a terminal starts it."""
    command = [sys.executable, "train.py", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """Wait for its end and for that of the processes it started; what was said."""
    output = process.communicate(timeout=120)
    assert process.returncode == code, output
    deadline = time.time() + 10
    while remaining := alive(process.pid):
        assert time.time() < deadline, remaining
        time.sleep(0.1)
    return output


def alive(group: int) -> list[str]:
    listed = subprocess.run(["ps", "-e", "-o", "pgid=,stat=,args="], capture_output=True, text=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [row[-1] for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def names(folder: Path) -> list[str]:
    """What is in a run's folder; a file of events is called after the second and the process."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(re.sub(r"tfevents.*", "tfevents", name) for name in paths)


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """One process that takes two batches for a step, and two processes that take one each."""
    one, two = (tmp_path_factory.mktemp("ddp") / name for name in ("one", "two"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        process = start(*ALIKE, *TWO, f"hydra.run.dir={two}")
        run_script(*ALIKE, "trainer.accumulate_grad_batches=2", f"hydra.run.dir={one}")
        output, errors = finish(process)
    assert output.count("epoch 1 of 3") == output.count("Test Dice") == 1
    assert "32-true on 2 x cpu" in output
    assert not errors
    yield one, two


@pytest.mark.cluster
def test_two_processes_train_as_one(one_and_two: tuple[Path, Path]) -> None:
    one, two = (read(folder) for folder in one_and_two)
    assert two["test"] == {name: pytest.approx(value, abs=CLOSE) for name, value in one["test"].items()}
    assert two["best"]["epoch"] == one["best"]["epoch"]
    assert two["best"]["value"] == pytest.approx(one["best"]["value"], abs=CLOSE)
    assert two["epochs"] == one["epochs"] == 3
    assert (one["devices"], two["devices"]) == (1, 2)
    before, after = (weights(folder) for folder in one_and_two)
    assert not any("running_mean" in name for name in before)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=CLOSE, rtol=CLOSE)


@pytest.mark.cluster
def test_the_curves_have_a_point_for_each_step(one_and_two: tuple[Path, Path]) -> None:
    one, two = (curves(folder) for folder in one_and_two)
    assert {"train/loss", "train/dice", "val/loss", "val/dice", "lr/decoder"} <= set(one)
    assert [step for step, _ in two["val/dice"]] == [4, 9, 14]
    assert set(two) == set(one)
    for tag, points in two.items():
        expected = dict(one[tag])  # where two batches make a step, Lightning writes its learning rate twice
        assert points == [(step, pytest.approx(value, abs=CLOSE)) for step, value in expected.items()], tag


@pytest.mark.cluster
def test_each_test_image_is_scored_once(one_and_two: tuple[Path, Path]) -> None:
    tables = [
        list(csv.DictReader((folder / "per_image.csv").read_text().splitlines())) for folder in one_and_two
    ]
    stems = [[row["stem"] for row in rows] for rows in tables]
    assert stems[0] == stems[1] and len(set(stems[1])) == len(stems[1]) == 5
    assert read(one_and_two[1])["test"]["n"] == 5


@pytest.mark.cluster
def test_two_processes_leave_one_folder(one_and_two: tuple[Path, Path]) -> None:
    one, two = one_and_two
    steps = [
        [row["step"] for row in csv.DictReader((run / "curves.csv").read_text().splitlines())]
        for run in one_and_two
    ]
    assert steps[0] == steps[1] and len(steps[1]) == len(set(steps[1]))
    assert names(one) == names(two)
    assert [path.name for path in two.parent.iterdir()] == ["two"]


@pytest.mark.cluster
def test_stopped_and_resumed_together(one_and_two: tuple[Path, Path], tmp_path: Path) -> None:
    """By SIGTERM to the first process and by Ctrl-C, which reaches both."""
    _, whole = one_and_two
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    process, written = start(*ALIKE, *TWO, f"hydra.run.dir={run}"), 0
    for epoch, code in ((1, 143), (2, 130)):
        while not last.exists() or last.stat().st_mtime_ns == written:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.2)  # into the epoch
        if code == 143:
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGINT)
        output, errors = finish(process, code)
        assert (
            output.count(f"Stopped in epoch {epoch + 1} and saved. To continue: python train.py resume=") == 1
        )
        assert "Traceback" not in errors
        stopped, written = torch.load(last, weights_only=True), last.stat().st_mtime_ns
        # inside the epoch: the rest is shared out as before
        assert 0 < stopped["global_step"] - 5 * epoch < 5
        process = start(f"resume={run}")
    finish(process)
    # a resumed run has a file for each part
    assert names(run) == sorted([*names(whole), *["events.out.tfevents"] * 2])
    uninterrupted = curves(whole)
    # the mean loss is summed up in another order, the rest is the same
    for tag, points in curves(run).items():
        assert points == [(step, pytest.approx(value, abs=1e-6)) for step, value in uninterrupted[tag]], tag
    assert read(run)["test"] == read(whole)["test"]
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())


class Nodes:
    """Two nodes of one process each, on this machine.

    Args:
        launcher: torchrun or srun.
        environment: variables that name Slurm's configuration.
    """

    def __init__(self, launcher: str, environment: dict[str, str]) -> None:
        self.launcher = launcher
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | environment | {"OMP_NUM_THREADS": "1", "PATH": path}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`train.py ARGUMENTS` on both."""
        (port,) = slurm.free_ports(1)
        script = shlex.join(["train.py", *arguments])
        torchrun = "torchrun --nnodes=2 --nproc-per-node=1 --master-addr=127.0.0.1 --master-port=$MASTER_PORT"
        command = {
            "torchrun": f"{torchrun} --node-rank=1 {script} & {torchrun} --node-rank=0 {script}; "
            "code=$?; wait; exit $code",
            "srun": f"exec srun --quiet --nodes=2 --ntasks=2 python {script}",
        }
        return subprocess.Popen(
            ["bash", "-c", f"trap : TERM; {command[self.launcher]}"],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=self.environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        )

    def stop(self, process: subprocess.Popen[str]) -> None:
        """As the system or a scheduler does."""
        if self.launcher == "torchrun":
            os.killpg(process.pid, signal.SIGTERM)
        else:
            command = ["scancel", "--signal=TERM", "--user=root"]
            subprocess.run(command, env=self.environment, check=True)


@pytest.fixture(scope="module", params=["torchrun", "srun"])
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    if request.param == "torchrun":
        yield Nodes("torchrun", {})
        return
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as conf:
        yield Nodes("srun", {"SLURM_CONF": str(conf)})


@pytest.mark.cluster
def test_two_machines_train_as_one_process(
    one_and_two: tuple[Path, Path], nodes: Nodes, tmp_path: Path
) -> None:
    one, two = one_and_two[0], tmp_path / "two"
    output, errors = finish(
        nodes.start(*ALIKE, "trainer=ddp", "trainer.accelerator=cpu", f"hydra.run.dir={two}")
    )
    assert (
        output.count("epoch 1 of 3") == output.count("Test Dice") == 1 and "32-true on 2 x cpu" in output
    ), errors
    expected = read(one)["test"]
    assert read(two)["test"] == {key: pytest.approx(value, abs=CLOSE) for key, value in expected.items()}
    after = weights(two)
    for name, value in weights(one).items():
        torch.testing.assert_close(after[name], value, atol=CLOSE, rtol=CLOSE)
    assert names(one) == names(two) and [path.name for path in tmp_path.iterdir()] == ["two"]


@pytest.mark.cluster
def test_two_machines_stop_and_go_on_together(
    one_and_two: tuple[Path, Path], nodes: Nodes, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    process = nodes.start(*ALIKE, "trainer=ddp", "trainer.accelerator=cpu", f"hydra.run.dir={run}")
    while not last.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.2)  # into the epoch
    nodes.stop(process)
    output, errors = process.communicate(timeout=120)
    assert (
        output.count("Stopped in epoch") == 1
        and 'Traceback (most recent call last):\n  File "train.py' not in errors
    )
    process = nodes.start(f"resume={run}")
    finish(process)
    assert read(run)["test"] == read(one_and_two[1])["test"]
    expected = weights(one_and_two[1])
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "add trainer=ddp"),
        (("trainer=ddp", "model.encoder=resnet999"), "model.encoder=resnet999 is unknown"),
        (("trainer=ddp", "-m", "seed=0,1"), "starts one run"),
    ],
)
def test_what_is_wrong_on_two_machines_is_said_once(
    arguments: tuple[str, ...],
    message: str,
    nodes: Nodes,
    tmp_path: Path,
) -> None:
    process = nodes.start(*SMALL, *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and errors.count(message) == 1, errors
    assert not (tmp_path / "run").exists()


def test_a_run_of_several_machines_needs_a_launcher(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"trainer\.num_nodes=2: .*torchrun or srun"):
        run_script(*SMALL, *TWO, "+trainer.num_nodes=2", f"hydra.run.dir={tmp_path / 'run'}")


@pytest.mark.cluster
@pytest.mark.nightly
def test_an_encoder_that_is_frozen_at_first_trains_in_all_processes_alike(tmp_path: Path) -> None:
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    thawing = ("model.freeze=encoder", "model.unfreeze_epoch=1", "optim.ema_decay=null")
    process = start(*ALIKE, *TWO, *thawing, f"hydra.run.dir={two}")
    run_script(*ALIKE, *thawing, "trainer.accumulate_grad_batches=2", f"hydra.run.dir={one}")
    _, errors = finish(process)
    assert not errors
    before, after = weights(one), weights(two)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=CLOSE, rtol=CLOSE)

    run_script(
        *ALIKE, *thawing, "trainer.max_epochs=2", "model.unfreeze_epoch=null", f"hydra.run.dir={again}"
    )
    frozen = weights(again)
    assert not any(
        torch.equal(frozen[name], value) for name, value in after.items() if ".encoder.patch_embed" in name
    )


@pytest.mark.cluster
def test_what_is_wrong_is_said_once_and_nobody_is_left(tmp_path: Path) -> None:
    _, errors = finish(
        start(*SMALL, *TWO, "model.encoder=efficientnet-b0", f"hydra.run.dir={tmp_path / 'run'}"), 1
    )
    (line,) = errors.splitlines()
    assert line.endswith("several devices need: trainer.strategy=ddp_find_unused_parameters_true")


def test_a_job_of_a_sweep_has_one_device(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"trainer\.devices=2: a job of a sweep has one device\nNo job was started"
    ):
        run_script("-m", *SMALL, *TWO, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}")


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 2])
def test_processes_take_the_batches_of_one_in_turn(processes: int, start: int) -> None:
    def batches(*share: int) -> list[list[tuple[int, int]]]:
        sampler = EpochSampler(50, 7, 4, *share)
        sampler.set_epoch(3)
        sampler.start = start * (1 if share else processes)
        keys = list(sampler)
        assert sampler.start == 0
        return [keys[start : start + 4] for start in range(0, len(keys), 4)]

    alone = batches()
    shares = [batches(rank, processes) for rank in range(processes)]
    together = [batch for step in zip(*shares, strict=True) for batch in step]
    assert together == alone[: len(together)]
    assert 0 <= len(alone) - len(together) < processes
