"""What all tests share: a cache folder of their own, no network, and `train.py` run in this process."""

import logging
import multiprocessing
import os
import random
import re
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]

os.environ["HF_HUB_OFFLINE"] = "1"
# small networks gain nothing from more, and pytest -n runs several at once
os.environ["OMP_NUM_THREADS"] = "1"

# What makes a run take seconds: few small drawn images, a small network, one epoch.
SMALL = (
    "data=synthetic",
    "data.count=20",
    "data.size=48",
    "data.image_size=64",
    "data.batch_size=4",
    "model.arch=unet",
    "model.encoder=mobilenet_v2",
    "model.encoder_weights=null",
    "model.decoder_channels=[16,16,8,8,8]",
    "augment=light",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache is neither used nor filled; the drawn images are shared by all tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the Kvasir-SEG archive and encoder weights."""
    folder = Path(os.environ.get("POLYP_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "kvasir-seg.zip").is_file():
        pytest.skip(f"no kvasir-seg.zip in {folder}: set POLYP_DATA to the folder that has it")
    return folder


@pytest.fixture
def moments() -> random.Random:
    """Random moments of kills: the seed is printed with a test that fails, and POLYP_TEST_SEED=SEED repeats
    them.
    """
    seed = int(os.environ.get("POLYP_TEST_SEED", random.randrange(10**6)))
    print(f"POLYP_TEST_SEED={seed}")
    return random.Random(seed)


THREE_EPOCHS = ("optim.decoder_lr=1e-2", "trainer.max_epochs=3")
"""What `SMALL` needs in addition for a network that finds something."""

Train = Callable[..., Path]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more worker than cores: many tests wait for a process."""
    return (os.cpu_count() or 1) + 1


def run_script(*arguments: str) -> None:
    """`python train.py ARGUMENTS` in this process, to spare the imports; a non-zero exit is raised as
    SystemExit.
    """
    root = logging.getLogger()
    arguments_before, handlers_before = sys.argv, set(root.handlers)
    sys.argv = ["train.py", *arguments]
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    finally:
        sys.argv = arguments_before
        for handler in set(root.handlers) - handlers_before:  # Hydra's, of the run's log file
            root.removeHandler(handler)
            handler.close()


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["polyp.training.stages", "polyp.training.console"])


def start(*arguments: str, log: Path | None = None) -> BaseProcess:
    """`python train.py ARGUMENTS` in a process of its own, which has imported what it needs and can be
    killed.
    """
    process = PROCESSES.Process(target=_script, args=(arguments, log, dict(os.environ)))
    process.start()
    return process


def _script(arguments: Sequence[str], log: Path | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    # which the server of polyp.training.child_processes blocks
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    # a loader's workers are this process's, not the fork server's
    multiprocessing.set_start_method(None, force=True)
    # a sweep starts the fork server with it blocked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with open(log or os.devnull, "a", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        run_script(*arguments)


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """A folder that is built once for all modules and all processes of pytest -n; it must not be changed.

    Args:
        factory: of temporary folders.
        name: of the folder, unique to its content.
        build: fills it; a folder that does not exist yet.
    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, finished = shared / name, shared / f"{name}.finished"
    with FileLock(shared / f"{name}.lock"):
        if not finished.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
                build(folder)
            finished.touch()
    return folder


def train_once(factory: pytest.TempPathFactory, *overrides: str) -> Path:
    """The folder of a run of `SMALL` with further overrides, see `build_once`."""
    name = "run_" + "_".join(re.sub(r"\W", "-", override) for override in overrides)
    return build_once(factory, name, lambda folder: run_script(*SMALL, *overrides, f"hydra.run.dir={folder}"))


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Call `run_script` with run folders under outputs/ of the test's own folder, which it returns."""
    outputs = tmp_path / "outputs"

    def call(*arguments: str) -> Path:
        placed = any(argument.startswith(("resume=", "hydra.run.dir=")) for argument in arguments)
        folders = [] if placed else [f"hydra.run.dir={outputs}/run", f"hydra.sweep.dir={outputs}/sweep"]
        run_script(*arguments, *folders)
        return outputs

    return call
