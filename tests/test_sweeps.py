"""Sweeps as a user has them: killed and resumed, changed, started twice, with jobs that fail, and their
table.
"""

import csv
import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, Train, build_once, run_script, start
from filelock import FileLock
from run_writers import write_folds

from polyp.commands.compare.comparison import compare
from polyp.commands.compare.examples import draw_examples, find_pairs
from polyp.commands.compare.read_runs import find_runs
from polyp.metrics.intervals import bootstrap_interval
from polyp.runs.folder import RunFolder
from polyp.runs.sweep_folder import is_sweep_finished
from polyp.training import sweep_results, sweeps

QUICK = (*SMALL, "+trainer.limit_train_batches=2")
IN_THIS_PROCESS = (
    "hydra.launcher._target_=hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "~hydra.launcher.n_jobs",
)
GRID = ("-m", *SMALL, "trainer.max_epochs=2", "seed=0,1", "model.loss=dice,bce")


def read_metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def read_test_metrics(sweep: Path) -> dict[str, Any]:
    return {
        file.parent.name: read_metrics(file.parent)["test"] for file in sorted(sweep.glob("*/metrics.json"))
    }


def modification_times(sweep: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in sweep.rglob("metrics.json")}


def results(sweep: Path) -> list[dict[str, str]]:
    with open(sweep / "results.csv") as file:
        return list(csv.DictReader(file))


def table(output: str) -> list[list[str]]:
    """The cells of the table at the end of a sweep, without its header."""
    lines = output.splitlines()
    head = next(number for number, line in enumerate(lines) if line.split()[:1] == ["job"])
    end = next(
        number for number, line in enumerate(lines) if number > head and not re.match(r"\s*\d+ ", line)
    )
    return [line.split() for line in lines[head + 1 : end]]


@pytest.mark.slow
@pytest.mark.nightly
def test_sweep_killed_again_and_again_completes(tmp_path: Path, moments: random.Random) -> None:
    whole, killed, output = tmp_path / "whole", tmp_path / "killed", tmp_path / "output"
    process = start(*GRID, f"hydra.sweep.dir={whole}", log=output)
    process.join()
    assert process.exitcode == 0, output.read_text()
    done: dict[Path, int] = {}
    for job in (0, 1, 1, 3, None):  # in which it is killed, at a random moment
        process = start(*GRID, "resume=auto", f"hydra.sweep.dir={killed}", log=output)
        if job is not None:
            while process.is_alive() and not list(killed.glob(f"{job}_*")):
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 1))
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), output.read_text()
        assert done.items() <= modification_times(killed).items()  # what is finished is not touched again
        done = modification_times(killed)
    assert output.read_text().count("is finished: test Dice") >= 3
    assert read_test_metrics(killed) == read_test_metrics(whole)
    assert len(read_test_metrics(whole)) == 4
    for last in whole.rglob("last.ckpt"):
        ours, theirs = (
            torch.load(sweep / last.relative_to(whole), weights_only=True) for sweep in (killed, whole)
        )
        assert all(
            torch.equal(ours["state_dict"][key], theirs["state_dict"][key]) for key in theirs["state_dict"]
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a sweep of three jobs, in its usual place below it."""

    def build(workdir: Path) -> None:
        workdir.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(workdir)
            run_script("-m", *QUICK, "seed=0,1,2")

    return build_once(tmp_path_factory, "sweep", build)


@pytest.fixture
def whole(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of that sweep, the test's own copy."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (sweep,) = Path("outputs/sweeps/default").iterdir()
    return sweep


@pytest.fixture
def partial(whole: Path) -> Path:
    """The same, of which the last job is not finished and the results are not written."""
    (whole / "2_seed-2" / "metrics.json").unlink()
    (whole / "results.csv").unlink()
    return whole


@pytest.mark.slow
def test_same_command_with_auto_finds_its_sweep(partial: Path) -> None:
    before = modification_times(partial)
    run_script("-m", *QUICK, "seed=0,1,2", "resume=auto")
    assert before.items() <= modification_times(partial).items()
    assert len(modification_times(partial)) == 3
    assert list(Path("outputs/sweeps/default").iterdir()) == [partial]
    run_script("-m", *QUICK, "seed=0,1,2", "resume=auto")  # there is nothing left of that one
    assert len(list(Path("outputs/sweeps/default").iterdir())) == 2


def test_folder_is_enough_to_resume_a_sweep(partial: Path) -> None:
    before = modification_times(partial)
    run_script(f"resume={partial}")
    assert before.items() <= modification_times(partial).items()
    assert sorted(path.name for path in partial.glob("*_*")) == ["0_seed-0", "1_seed-1", "2_seed-2"]
    assert len(modification_times(partial)) == 3
    assert (partial / "results.csv").exists()


def test_resume_is_expanded_to_the_command_of_the_sweep(partial: Path) -> None:
    argv = sweeps.expand_resume(["train.py", f"resume={partial}", "trainer.max_epochs=2"])
    assert argv[:2] == ["train.py", "-m"]
    assert argv[-3:] == ["trainer.max_epochs=2", "resume=auto", f"hydra.sweep.dir={partial}"]
    assert {*QUICK, "seed=0,1,2"} - {"trainer.max_epochs=1"} <= set(argv)
    assert "trainer.max_epochs=1" not in argv
    assert sweeps.expand_resume(["train.py", "resume=outputs/other"]) == ["train.py", "resume=outputs/other"]


@pytest.mark.parametrize(
    ("seeds", "output"),
    [
        (
            "0,5,2",
            r"started with other jobs: number 1 was .*seed=1 and is .*seed=5 now; give the original command",
        ),
        ("0,1", r"number 2 was .*seed=2 and is not there now"),
    ],
)
def test_changed_grid_is_refused(partial: Path, seeds: str, output: str) -> None:
    with pytest.raises(SystemExit, match=output):
        run_script("-m", *QUICK, f"seed={seeds}", "resume=auto", f"hydra.sweep.dir={partial}")
    assert len(modification_times(partial)) == 2


@pytest.mark.slow
def test_grid_may_grow_at_its_end(partial: Path) -> None:
    run_script("-m", *QUICK, "seed=0,1,2,3", "resume=auto", f"hydra.sweep.dir={partial}")
    assert sorted(read_test_metrics(partial)) == ["0_seed-0", "1_seed-1", "2_seed-2", "3_seed-3"]


@pytest.mark.slow
def test_changed_csv_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.csv").write_text("model.loss,seed\nbce,1\n,2\n")
    command = (
        "-m",
        "experiment=hyperparameters",
        "hydra.sweeper.path=my.csv",
        *QUICK,
        "hydra.sweep.dir=sweep",
    )
    run_script(*command)
    before = modification_times(Path("sweep"))
    assert sorted(read_test_metrics(Path("sweep"))) == ["0_loss-bce_seed-1", "1_seed-2"]
    Path("my.csv").write_text("model.loss,seed\nbce,1\ndice,2\n")
    with pytest.raises(
        SystemExit,
        match=r"sweep was started with other jobs: number 1 was .*seed=2 and is .*loss=dice seed=2 now",
    ):
        run_script(*command, "resume=auto")
    assert modification_times(Path("sweep")) == before


@pytest.mark.slow
def test_folder_of_something_else_is_refused(partial: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds a sweep already: continue it with resume="):
        run_script("-m", *QUICK, "seed=0,1,2", f"hydra.sweep.dir={partial}")
    run = tmp_path / "other" / "run"
    run_script(*QUICK, f"hydra.run.dir={run}")
    for folder in (run, run.parent):
        with pytest.raises(
            SystemExit, match=r"holds runs of another experiment: give another folder with hydra.sweep.dir"
        ):
            run_script("-m", *QUICK, "seed=0,1", "resume=auto", f"hydra.sweep.dir={folder}")
    with pytest.raises(SystemExit, match=r"is no sweep's folder: give that, or resume=auto"):
        run_script("-m", *QUICK, "seed=0,1", f"resume={run}")


def test_second_sweep_in_one_folder_is_refused(partial: Path) -> None:
    with FileLock(partial / ".lock"), pytest.raises(SystemExit, match="another process runs a sweep in"):
        run_script(f"resume={partial}")


def test_changed_default_is_refused(partial: Path, capfd: Any) -> None:
    """Its jobs are called the same, but the defaults behind them are others."""
    config = partial / "2_seed-2" / "config.yaml"
    config.write_text(config.read_text().replace("weight_decay: 0.0001", "weight_decay: 0.5"))
    with pytest.raises(SystemExit, match=r"^1$"):
        run_script(f"resume={partial}")
    assert (
        "2_seed-2 was started with optim.weight_decay=0.5, now 0.0001: give the original command"
        in capfd.readouterr().out
    )


@pytest.mark.slow
def test_failed_jobs_are_listed_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    command = (
        "-m",
        *QUICK,
        "data.batch_size=4,17,2",
    )  # there are 16 images, which is found when they are looked at
    with pytest.raises(SystemExit, match=r"^1$"):
        run_script(*command, f"hydra.sweep.dir={sweep}")
    output = capsys.readouterr().out
    rows = table(output)
    assert sorted(row[0] for row in rows) == ["0", "2"]
    assert (
        "failed job 1_batch_size-17: data.batch_size=17 is larger than the 16 training images: lower it"
        in output
    )
    assert f"{os.path.relpath(sweep)}/1_batch_size-17/train.log" in output
    assert not (sweep / "results.csv").exists()
    before = modification_times(sweep)
    with pytest.raises(SystemExit, match=r"^1$"):
        run_script(f"resume={sweep}")
    assert modification_times(sweep) == before


def test_crash_is_listed_with_its_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyp.data import cache

    def broken(*_: Any) -> None:
        raise MemoryError("nothing left")

    monkeypatch.setattr(cache, "resize_image", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # in which no test has resized images
    sweep = tmp_path / "sweep"
    with pytest.raises(SystemExit, match=r"^1$"):
        run_script("-m", *QUICK, "seed=0,1", f"hydra.sweep.dir={sweep}", *IN_THIS_PROCESS)
    output = capsys.readouterr().out
    assert output.count("MemoryError: nothing left") >= 2
    assert "Traceback" in (sweep / "0_seed-0" / "train.log").read_text()


@pytest.mark.slow
def test_table_has_the_numbers_and_the_best_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    run_script("-m", *QUICK, "optim.decoder_lr=1e-3,3e-2", "name='my own',mine", f"hydra.sweep.dir={sweep}")
    output = capsys.readouterr().out.replace("my own", "my_own")
    assert re.search(r"job +decoder_lr +name +val/dice +test/dice \(95 %\) +minutes", output)
    rows = table(output)
    jobs = {path.name.partition("_")[0]: read_metrics(path) for path in sweep.glob("*_*/")}
    assert len(rows) == len(jobs) == 4
    for row in rows:
        metrics = jobs[row[0]]
        assert (
            float(row[1]) == (1e-3 if row[0] in "01" else 3e-2)
            and row[2] == ("my_own", "mine")[int(row[0]) % 2]
        )
        assert row[3] == f"{metrics['best']['value']:.3f}"
        assert row[4] == f"{metrics['test']['dice']:.3f}"
        assert row[5].startswith("(") and row[6] == f"{metrics['seconds'] / 60:.1f}"
    assert [float(row[3]) for row in rows] == sorted((float(row[3]) for row in rows), reverse=True)
    stored = results(sweep)
    assert [row["job"] for row in stored] == [row[0] for row in rows]
    assert {row["optim.decoder_lr"] for row in stored} == {"0.001", "0.03"}
    assert {row["name"] for row in stored} == {"my own", "mine"}
    assert float(stored[0]["test/dice"]) == jobs[rows[0][0]]["test"]["dice"]


@pytest.mark.slow
def test_each_job_says_how_far_the_sweep_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sweep, options = (
        tmp_path / "sweep",
        ("seed=0,1", "optim.decoder_lr=0.0012345678", "hydra.launcher.n_jobs=1"),
    )
    run_script("-m", *QUICK, *options, f"hydra.sweep.dir={sweep}")
    output = capfd.readouterr().out
    best = read_metrics(next(sweep.glob("0_*")))["best"]["value"]
    assert "job 0 (1 of 2): seed 0\n" in output and "job 1 (2 of 2): seed 1\n" in output
    assert re.search(rf"elapsed, about \d+ s left; best so far: job 0 with val/dice {best:.3f}\n", output)
    run_script("-m", *QUICK, "seed=0,1", "launcher=joblib", f"hydra.sweep.dir={tmp_path / 'parallel'}")
    output = capfd.readouterr().out
    assert all(re.search(rf"^job {number} \| epoch 1 of 1 ", output, re.M) for number in (0, 1))


@pytest.mark.parametrize(
    ("varied", "columns"),
    [
        pytest.param("monitor=val/iou,val/dice", {"val/iou", "val/dice"}, marks=pytest.mark.slow),
        pytest.param("data.count=20,24", {"val/dice"}, marks=pytest.mark.slow),
    ],
)
def test_incomparable_jobs_are_not_ranked(
    varied: str, columns: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    options = [option for option in QUICK if option.partition("=")[0] != varied.partition("=")[0]]
    run_script("-m", *options, varied, f"hydra.sweep.dir={sweep}")
    output = capsys.readouterr().out
    assert "cannot be compared" in output
    stored = results(sweep)
    assert [row["job"] for row in stored] == ["0", "1"]
    assert columns <= stored[0].keys()
    for row in stored:
        best = read_metrics(next(sweep.glob(f"{row['job']}_*")))["best"]
        assert float(row[best["monitor"]]) == best["value"]
    # A file that cannot be written is reported: Hydra itself would go on and exit with 0.
    (sweep / ".part-results.csv" / "in the way").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"results\.csv"):
        run_script(f"resume={sweep}")


# ---- folds


def write_crossvalidation(sweep: Path, jobs: dict[str, list[Path]]) -> None:
    """A sweep of written runs: the runs of each override, with a fold each."""
    write_sweep(sweep, ["model.loss=bce,dice", "data.fold=0,1,2"], [])
    names = [(fold, override) for fold in range(3) for override in jobs]
    for number, (fold, override) in enumerate(names):
        for run in jobs[override]:
            if run.name == str(fold):
                job = sweep / f"{number}_fold-{fold}"
                shutil.move(run, job)
                (job / ".hydra").mkdir()
                (job / ".hydra/overrides.yaml").write_text(json.dumps([f"data.fold={fold}", override]))


def test_folds_of_a_configuration_are_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, dice = tmp_path / "sweep", np.random.default_rng(0).uniform(0.4, 0.9, 20)
    bce = write_folds(tmp_path / "bce", dice, [0.5, 0.6, 0.7], changed=["model.loss=bce"])
    better = write_folds(tmp_path / "dice", dice + 0.05, [0.9, 0.8, 0.7], changed=["model.loss=dice"])
    write_crossvalidation(sweep, {"model.loss=bce": bce, "model.loss=dice": better})
    done, failed = sweep_results.read_results(sweep)
    sweep_results.print_results(done, failed, sweep)
    sweep_results.write_results(sweep, done)
    assert is_sweep_finished(sweep)
    first, second = results(sweep)
    assert (first["job"], first["model.loss"], second["job"]) == ("1 3 5", "dice", "0 2 4")
    means = [dice[fold::3].mean() for fold in range(3)]
    assert float(second["val/dice"]) == pytest.approx(0.6)
    assert float(second["test/dice"]) == pytest.approx(dice.mean()) != pytest.approx(np.mean(means))
    assert float(second["over_folds"]) == pytest.approx(np.mean(means))
    assert float(second["over_folds_sd"]) == pytest.approx(np.std(means, ddof=1))
    order = sorted(range(20), key=lambda n: f"image_{n}")
    assert [float(second[f"test/dice_{end}"]) for end in ("low", "high")] == pytest.approx(
        bootstrap_interval(dice[order])
    )
    assert (second["n"], second["folds"]) == ("20", "3")
    output = capsys.readouterr().out
    assert "missing" not in output and "cannot be compared" not in output
    assert f"{np.mean(means):.3f} ± {np.std(means, ddof=1):.3f}" in output


def test_missing_folds_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, dice = tmp_path / "sweep", np.linspace(0.4, 0.9, 21)
    bce = write_folds(tmp_path / "bce", dice, [0.5, 0.6, 0.7])
    some = write_folds(tmp_path / "dice", dice, [0.9, 0.9, 0.9], only=[1], changed=["model.loss=dice"])
    write_crossvalidation(sweep, {"model.loss=bce": bce, "model.loss=dice": some})
    sweep_results.print_results(*sweep_results.read_results(sweep), sweep)
    output = capsys.readouterr().out
    assert "missing fold 0, 2 of 3 beside job 3" in output
    assert [row[:3] for row in table(output)] == [["0", "2", "4"], ["3", "dice", "1"]]  # in their order
    assert "cannot be compared" in output


@pytest.mark.slow
def test_crossvalidation_tests_every_image_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    options = ("experiment=crossvalidation", "data.folds=2", "model.loss=dice,bce")
    run_script("-m", *QUICK, *options, f"hydra.sweep.dir={sweep}")
    assert len(read_test_metrics(sweep)) == 4
    for row, other in (results(sweep), results(sweep)[::-1]):
        runs = [next(sweep.glob(f"{number}_*")) for number in row["job"].split()]
        scores = [RunFolder(run).read_scores()["dice"] for run in runs]
        assert sorted(stem for part in scores for stem in part.index) == [
            f"synthetic_{n:04}" for n in range(20)
        ]
        assert float(row["test/dice"]) == pytest.approx(np.mean(np.concatenate(scores)))
        assert {row["model.loss"], other["model.loss"]} == {"dice", "bce"}
    comparison = compare(find_runs([sweep]))
    assert [len(recipe.stems) for recipe in comparison.comparable] == [20, 20]
    examples = draw_examples(comparison, comparison.recipes, find_pairs(comparison))
    assert all(len(example.tiles) == 4 for example in examples)  # image, truth, one prediction of each


# ---- jobs that die, and sweeps that are stopped


def lock_owner(run: Path) -> int | None:
    """The process that has claimed a run's folder."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if Path(os.readlink(link)) == run / ".lock":
                return int(link.parts[2])
    return None


def run_when(condition: Callable[[], Any], action: Callable[[Any], None]) -> threading.Thread:
    """Do something in the background as soon as there is something to do it with."""

    def watch() -> None:
        deadline = time.time() + 60
        while time.time() < deadline:
            if value := condition():
                return action(value)
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.slow
def test_job_that_dies_is_listed_and_the_others_continue(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    deaths = {"0_seed-0": signal.SIGSEGV, "1_seed-1": signal.SIGKILL}
    killers = [
        run_when(
            lambda job=job: lock_owner(sweep / job), lambda process, death=death: os.kill(process, death)
        )
        for job, death in deaths.items()
    ]
    with pytest.raises(SystemExit, match=r"^1$"):
        run_script("-m", *QUICK, "seed=0,1,2", f"hydra.sweep.dir={sweep}")
    for killer in killers:
        killer.join()
    assert read_test_metrics(sweep).keys() == {"2_seed-2"}
    listed = [line for line in capfd.readouterr().out.splitlines() if line.startswith("failed job")]
    assert len(listed) == 2
    for line, (job, death) in zip(listed, deaths.items(), strict=True):
        assert job in line and death.name in line
    run_script(f"resume={sweep}")
    assert read_test_metrics(sweep).keys() == {"2_seed-2", *deaths}
    assert len(results(sweep)) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_sweep_saves_its_job(number: int, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    last = sweep / "0_seed-0" / "checkpoints" / "last.ckpt"
    killer = run_when(last.exists, lambda _: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stop:
        run_script("-m", *QUICK, "trainer.max_epochs=500", "seed=0,1", f"hydra.sweep.dir={sweep}")
    killer.join()
    assert stop.value.code == 128 + number
    assert [path.name for path in sweep.glob("*_*")] == ["0_seed-0"]
    assert lock_owner(sweep / "0_seed-0") is None
    torch.load(last, weights_only=True)


@pytest.mark.slow
def test_paused_sweep_pauses_its_job(tmp_path: Path) -> None:
    folder = (
        tmp_path / "0_job" / "checkpoints"
    )  # changes with each checkpoint; last.ckpt itself is gone for a moment
    process = start(
        "-m", *QUICK, "trainer.max_epochs=500", f"hydra.sweep.dir={tmp_path}", log=tmp_path / "output"
    )
    assert process.pid is not None
    try:
        run_when((folder / "last.ckpt").exists, lambda _: os.kill(process.pid, signal.SIGTSTP)).join()
        time.sleep(1)  # the end of what is being written
        before = folder.stat().st_mtime_ns
        time.sleep(3)
        assert folder.stat().st_mtime_ns == before
        os.kill(process.pid, signal.SIGCONT)
        run_when(lambda: folder.stat().st_mtime_ns != before, lambda _: None).join()
        assert folder.stat().st_mtime_ns != before
    finally:
        process.kill()
        process.join()
    deadline = time.time() + 5
    while lock_owner(tmp_path / "0_job") is not None:  # it ends with its sweep
        assert time.time() < deadline
        time.sleep(0.1)


# ---- damaged files, and those of somebody else


@pytest.mark.parametrize("content", ["", "[[", "{}", "\0" * 100])
@pytest.mark.slow
def test_damaged_list_of_jobs_is_written_anew(content: str, partial: Path) -> None:
    jobs = json.loads((partial / "jobs.json").read_text())
    (partial / "jobs.json").write_text(content)
    with pytest.raises(SystemExit, match=r"jobs\.json"):
        run_script("-m", *QUICK, "seed=0,5,2", "resume=auto", f"hydra.sweep.dir={partial}")
    assert (partial / "jobs.json").read_text() == content
    if not content:
        run_script(f"resume={partial}")
        assert json.loads((partial / "jobs.json").read_text()) == jobs
        assert len(results(partial)) == 3


@pytest.mark.parametrize(
    "content", [None, "", "hydra: {", "hydra: {overrides: {task: [{}], hydra: []}}", "\0" * 100]
)
def test_damaged_command_is_one_line(content: str | None, partial: Path) -> None:
    (partial / "multirun.yaml").unlink()
    if content is not None:
        (partial / "multirun.yaml").write_text(content)
    with pytest.raises(SystemExit, match=r"multirun\.yaml.*hydra\.sweep\.dir"):
        run_script(f"resume={partial}")
    if content == "":
        run_script("-m", *QUICK, "seed=0,1,2", "resume=auto", f"hydra.sweep.dir={partial}")
        assert len(results(partial)) == 3


@pytest.mark.slow
def test_damaged_jobs_are_listed(partial: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (partial / "0_seed-0" / "config.yaml").write_text("model: {")
    (partial / "1_seed-1" / ".hydra" / "overrides.yaml").write_bytes(bytes(100))
    (partial / "1_of_another_kind").mkdir()
    (partial / "1st_note").mkdir()
    with pytest.raises(SystemExit, match=r"^1$"):
        run_script(f"resume={partial}")
    output = capfd.readouterr().out
    assert re.search(r"failed job 0_seed-0: .*config\.yaml", output)
    assert "Traceback" not in output
    assert read_test_metrics(partial).keys() == {
        "0_seed-0",
        "1_seed-1",
        "2_seed-2",
    }  # overrides of job 1 were written anew


@pytest.mark.parametrize(
    "content", ["job,seed\n0,0\n", *(pytest.param(c, marks=pytest.mark.slow) for c in ("", "\0" * 100))]
)
def test_damaged_results_are_written_anew(content: str, whole: Path) -> None:
    expected = results(whole)
    (whole / "results.csv").write_text(content)
    before = modification_times(whole)
    run_script("-m", *QUICK, "seed=0,1,2", "resume=auto")
    assert results(whole) == expected
    assert modification_times(whole) == before


ALLOWED = (
    ["seed=0,1", "model.arch=unet", "data.root=../mine", "+trainer.limit_train_batches=2", "monitor=val/iou"],
    [
        "hydra/sweeper=csv",
        "hydra.sweeper.path=/data/my.csv",
        "hydra.launcher.n_jobs=2",
        "hydra.mode=MULTIRUN",
    ],
)


def write_sweep(folder: Path, task: list[str], hydra_overrides: list[str]) -> Path:
    folder.mkdir(parents=True)
    (folder / "multirun.yaml").write_text(
        json.dumps({"hydra": {"overrides": {"task": task, "hydra": hydra_overrides}}})
    )
    return folder


def test_settings_of_a_sweep_are_repeated(tmp_path: Path) -> None:
    task, hydra_overrides = ALLOWED
    folder = write_sweep(tmp_path / "sweep", task, [*hydra_overrides, "hydra.launcher.setup=[ls]"])
    argv = sweeps.expand_resume(
        ["train.py", f"resume={folder}", "hydra.launcher.setup=[date]", "model.arch=fpn"]
    )
    assert {*task, *hydra_overrides} - {"model.arch=unet", "hydra.mode=MULTIRUN"} <= set(argv)
    assert "hydra.launcher.setup=[date]" in argv and "hydra.launcher.setup=[ls]" not in argv


@pytest.mark.parametrize(
    ("task", "hydra_overrides"),
    [
        ("name=${oc.env:SECRET}", None),
        ("name=${${x}:SECRET}", None),
        ("experiment=../../outputs/theirs", None),
        ("experiment=quickstart,'/tmp/theirs'", None),
        ("+data@hydra.callbacks=folder", None),
        ("+hydra.callbacks.mine._target_=os.abort", None),
        ("hydra/launcher=theirs", None),
        ("model.loss=os.abort", None),
        ("model.loss=dice,'os.abort'", None),
        ("+model.loss={os.abort: 1}", None),
        ("model.loss=${name}", None),
        ("--config-dir=/tmp", None),
        (None, "+hydra.callbacks.mine._target_=os.abort"),
        (None, "hydra.launcher._target_=os.abort"),
        (None, "hydra.launcher.setup=[ls]"),
        (None, "hydra.launcher.n_jobs={_target_:os.abort}"),
        (None, "hydra.sweeper.objectives=[{_target_:os.abort}]"),
        (None, "hydra.launcher.partition=${oc.env:SECRET}"),
        (None, "hydra.launcher.partition='a\nb'"),
        (None, "hydra.searchpath=[/tmp]"),
        (None, "hydra/sweeper=../../theirs"),
    ],
)
def test_unsafe_setting_of_a_sweep_is_not_repeated(
    task: str | None, hydra_overrides: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    safe_task, safe_hydra_overrides = ALLOWED
    folder = write_sweep(
        tmp_path / "sweep",
        safe_task + [task] * (task is not None),
        safe_hydra_overrides + [hydra_overrides] * (hydra_overrides is not None),
    )
    key = (task or hydra_overrides or "").partition("=")[0]
    with pytest.raises(SystemExit, match=re.escape(key)) as refusal:
        sweeps.expand_resume(["train.py", f"resume={folder}"])
    assert "\n" not in str(refusal.value) and "hidden" not in str(refusal.value)


def test_job_with_several_devices_is_refused(train: Train) -> None:
    with pytest.raises(SystemExit, match=r"trainer.devices=2: a job of a sweep has one device"):
        train("-m", *QUICK, "seed=0,1", "trainer.devices=2")
