"""Sweeps side by side, through Slurm and through Ray: real ones, on this machine."""

import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import slurm
import torch
from conftest import ROOT, SMALL, Train, run_script, start

JOBS = {"0_seed-0": 0, "1_seed-1": 1}


@pytest.fixture(autouse=True)
def no_limit_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the launchers that limit the threads."""
    monkeypatch.delenv("OMP_NUM_THREADS")


def seeds_and_threads(sweep: Path) -> tuple[dict[str, int], set[str]]:
    """The seed of each job by the name of its folder, and what the jobs ran on."""
    metrics = {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("*/metrics.json")}
    return {name: each["seed"] for name, each in metrics.items()}, {
        each["device"].rpartition(", ")[2] for each in metrics.values()
    }


def jobs_overlap(sweep: Path) -> bool:
    """Whether the second job began before the first had finished."""
    return (sweep / "1_seed-1" / "config.yaml").stat().st_mtime < (
        sweep / "0_seed-0" / "metrics.json"
    ).stat().st_mtime


@pytest.mark.slow
def test_jobs_side_by_side_have_workers_that_load_images(train: Train) -> None:
    sweep = train("-m", *SMALL, "launcher=joblib", "data.num_workers=1", "seed=0,1") / "sweep"
    assert seeds_and_threads(sweep)[0] == JOBS
    assert jobs_overlap(sweep)


@pytest.mark.slow
def test_jobs_side_by_side_share_the_cores(tmp_path: Path) -> None:
    count = subprocess.check_output([sys.executable, "-c", "import torch; print(torch.get_num_threads())"])
    command = [
        sys.executable,
        ROOT / "train.py",
        "-m",
        *SMALL,
        "launcher=joblib",
        "seed=0,1,2",
        "hydra.sweep.dir=sweep",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    expected = JOBS | {"2_seed-2": 2}, {f"{max(int(count) // 2, 1)} threads"}
    assert seeds_and_threads(tmp_path / "sweep") == expected


@pytest.mark.slow
def test_n_jobs_of_the_local_launcher_run_at_once(train: Train) -> None:
    sweep = (
        train("-m", *SMALL, "seed=0,1", "hydra.launcher.n_jobs=2", "+trainer.limit_train_batches=1") / "sweep"
    )
    assert jobs_overlap(sweep)


@pytest.mark.slow
def test_number_of_jobs_at_once_is_checked(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train("-m", *SMALL, "seed=0,1", "hydra.launcher.n_jobs=0")
    assert "hydra.launcher.n_jobs=0 must be a whole number, at least 1" in capsys.readouterr().err
    assert not list(train("--cfg", "job").glob("sweep/*/config.yaml"))


@pytest.mark.slow
def test_job_that_is_killed_leaves_the_one_beside_it(tmp_path: Path) -> None:
    sweep, log = tmp_path / "sweep", tmp_path / "log"
    process = start(
        "-m",
        *SMALL,
        "launcher=joblib",
        "trainer.max_epochs=4",
        "seed=0,1",
        f"hydra.sweep.dir={sweep}",
        log=log,
    )
    wait_for(lambda: (sweep / "0_seed-0" / "checkpoints" / "last.ckpt").exists(), log)
    os.kill(lock_owner(sweep / "0_seed-0"), signal.SIGKILL)
    process.join()
    assert process.exitcode == 1, log.read_text()
    assert seeds_and_threads(sweep)[0] == {"1_seed-1": 1}
    assert "killed by SIGKILL" in (sweep / "0_seed-0" / "train.log").read_text()
    run_script(f"resume={sweep}")
    assert seeds_and_threads(sweep)[0] == JOBS


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_jobs_side_by_side_save_when_stopped(number: int, tmp_path: Path) -> None:
    sweep, log = tmp_path / "sweep", tmp_path / "log"
    command = ("-m", *SMALL, "launcher=joblib", "trainer.max_epochs=500", "seed=0,1,2")
    process = start(*command, f"hydra.sweep.dir={sweep}", log=log)
    assert process.pid is not None
    wait_for(lambda: len(list(sweep.glob("*/checkpoints/last.ckpt"))) == 2, log)
    owners = [lock_owner(sweep / job) for job in JOBS]
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number, log.read_text()
    assert log.read_text().count("and saved. To continue") == 2
    assert not any(Path("/proc", str(owner)).exists() for owner in owners)
    assert sorted(path.name for path in sweep.glob("*_*")) == [*JOBS]
    for job in JOBS:
        torch.load(sweep / job / "checkpoints" / "last.ckpt", weights_only=True)


def lock_owner(run: Path) -> int:
    """The process that has locked a run's folder."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if Path(os.readlink(link)) == run / ".lock":
                return int(link.parts[2])
    raise AssertionError(f"nobody has locked {run}")


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    """Wait a minute at most; its output until then explains a failure."""
    deadline = time.time() + 60
    while not condition():
        assert time.time() < deadline, log.read_text() if log.exists() else "no output"
        time.sleep(0.1)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Ray's files and network are the test's own."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # its token would be written to the user's home
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long for Ray's sockets
        monkeypatch.setenv("RAY_TMPDIR", folder)
        import ray  # reads the environment

        yield ray
        ray.shutdown()


@pytest.mark.nightly
@pytest.mark.cluster
@pytest.mark.usefixtures("ray")
def test_ray_on_this_machine_runs_a_sweep(train: Train) -> None:
    outputs = train("-m", *SMALL, "launcher=ray", "seed=0,1")
    assert seeds_and_threads(outputs / "sweep") == (JOBS, {"1 threads"})


@pytest.mark.cluster
@pytest.mark.nightly
def test_ray_cluster_that_runs_is_joined(
    ray: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (port,) = slurm.free_ports(1)
    start = [
        f"{sysconfig.get_path('scripts')}/ray",
        "start",
        "--head",
        "--block",
        "--include-dashboard=false",
    ]
    start += [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    monkeypatch.chdir(tmp_path)
    with (
        open(elsewhere / "log", "w") as log,
        subprocess.Popen(start, cwd=elsewhere, stdout=log, stderr=log) as head,
    ):
        try:
            wait_for(lambda: "Ray runtime started" in (elsewhere / "log").read_text(), elsewhere / "log")
            run_script(
                "-m", *SMALL, "launcher=ray", f"hydra.launcher.ray.init.address=127.0.0.1:{port}", "name=mine"
            )
            ray.shutdown()  # while there is somebody to say goodbye to
        finally:
            head.terminate()
    (sweep,) = Path("outputs/sweeps/mine").iterdir()
    assert seeds_and_threads(sweep)[0] == {"0_job": 0}
    assert [path.name for path in elsewhere.iterdir()] == ["log"]


@pytest.fixture(scope="module")
def slurm_conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a Slurm that runs as long as this module's tests."""
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as conf:
        yield conf


@pytest.mark.cluster
def test_slurm_runs_a_sweep(train: Train, slurm_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    outputs = train("-m", *SMALL, "launcher=slurm", "hydra.launcher.cpus_per_task=1", "seed=0,1")
    assert seeds_and_threads(outputs / "sweep") == (JOBS, {"1 threads"})
    log = [path.read_text() for path in (outputs / "sweep" / ".submitit").glob("*/*_log.*")]
    assert sum("Test Dice" in each for each in log) == 2
    assert not any("requeue" in each or "srun" in each for each in log)  # Lightning's, which is not to meddle


@pytest.mark.parametrize("launcher", ["slurm", "ray"])
def test_missing_extra_is_one_line(launcher: str, tmp_path: Path) -> None:
    installed = tmp_path / "installed"  # everything but Hydra's plugins
    installed.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name != "hydra_plugins":
            (installed / path.name).symlink_to(path)
    result = subprocess.run(
        [sys.executable, "-S", ROOT / "train.py", "-m", *SMALL, f"launcher={launcher}", "seed=0,1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{installed}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stdout + result.stderr == f"{launcher} is not installed: pip install -e '.[{launcher}]'\n"
    assert [path.name for path in tmp_path.iterdir()] == ["installed"]


LONG = (*SMALL, "trainer.max_epochs=6")  # long enough to be stopped


def numbers(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())["test"]


def ask(*command: str) -> str:
    """What a command of Slurm answers."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The numbers of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    torch.set_num_threads(1)  # as in the jobs: the number of threads can move the last digits
    run_script(*LONG, f"hydra.run.dir={folder}")
    return numbers(folder)


@pytest.fixture
def in_slurm(slurm_conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.cluster
def test_requeued_job_continues(in_slurm: Path, unbroken: dict[str, Any]) -> None:
    script = shlex.join([sys.executable, str(ROOT / "train.py"), *LONG, "name=requeued", "resume=auto"])
    job = ask(
        "sbatch", "--parsable", "--requeue", "--open-mode=append", "--output=log", f"--wrap=exec {script}"
    )
    runs, log = in_slurm / "outputs" / "runs" / "requeued", in_slurm / "log"
    wait_for(lambda: any(runs.glob("*/checkpoints/last.ckpt")), log)
    ask("scontrol", "requeue", job)
    wait_for(lambda: not ask("squeue", "--noheader", f"--jobs={job}"), log)
    assert "Restarts=1" in ask("scontrol", "show", "job", job)
    (run,) = runs.iterdir()
    assert numbers(run) == unbroken


@pytest.mark.cluster
def test_job_of_a_sweep_continues_after_its_time_limit(in_slurm: Path, unbroken: dict[str, Any]) -> None:
    command = [sys.executable, ROOT / "train.py", "-m", *LONG, "resume=auto", "hydra.sweep.dir=sweep"]
    command += ["launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.max_num_timeout=1"]
    log = in_slurm / "log"
    with open(log, "w") as file, subprocess.Popen(command, stdout=file, stderr=file) as sweep:
        wait_for(lambda: any(in_slurm.glob("sweep/*/checkpoints/last.ckpt")), log)
        job = ask("squeue", "--noheader", "--format=%i")
        ask("scancel", "--signal=USR2", job)  # what Slurm sends when the time is nearly over
        wait_for(lambda: sweep.poll() is not None, log)
    assert sweep.returncode == 0, log.read_text()
    assert "Restarts=1" in ask("scontrol", "show", "job", job)
    (metrics,) = in_slurm.glob("sweep/*/metrics.json")
    assert numbers(metrics.parent) == unbroken


def test_launcher_without_a_sweep_is_refused(train: Train) -> None:
    with pytest.raises(SystemExit, match="launcher=joblib is for the jobs of a sweep: add -m"):
        train(*SMALL, "launcher=joblib")
