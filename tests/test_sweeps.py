"""Sweeps as a user has them: killed and gone on with, changed, started twice, with jobs that fail, and their table."""

import csv
import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Train, run_script, start
from filelock import FileLock

from polyp import sweeps

QUICK = (*SMALL, "+trainer.limit_train_batches=2")
GRID = ("-m", *SMALL, "trainer.max_epochs=2", "seed=0,1", "model.loss=dice,bce")


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def finals(sweep: Path) -> dict[str, Any]:
    return {file.parent.name: read(file.parent)["test"] for file in sorted(sweep.glob("*/metrics.json"))}


def written(sweep: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in sweep.rglob("metrics.json")}


def table(said: str) -> list[list[str]]:
    """The cells of the table at the end of a sweep, without its header."""
    lines = said.splitlines()
    head = next(number for number, line in enumerate(lines) if line.split()[:1] == ["job"])
    end = next(number for number, line in enumerate(lines) if number > head and not re.match(r"\s*\d+ ", line))
    return [line.split() for line in lines[head + 1 : end]]


@pytest.mark.slow
def test_a_sweep_killed_until_it_completes(tmp_path: Path) -> None:
    whole, killed, said = tmp_path / "whole", tmp_path / "killed", tmp_path / "said"
    process = start(*GRID, f"hydra.sweep.dir={whole}", log=said)
    process.join()
    assert process.exitcode == 0, said.read_text()
    done: dict[Path, int] = {}
    for job in (0, 1, 1, 3, None):  # in which it is killed, at a random moment
        process = start(*GRID, "resume=auto", f"hydra.sweep.dir={killed}", log=said)
        if job is not None:
            while process.is_alive() and not list(killed.glob(f"{job}_*")):
                time.sleep(0.01)
            time.sleep(random.uniform(0, 1))
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), said.read_text()
        assert done.items() <= written(killed).items()  # what is finished is not touched again
        done = written(killed)
    assert said.read_text().count("is finished: test Dice") >= 3
    assert finals(killed) == finals(whole)
    assert len(finals(whole)) == 4
    for last in whole.rglob("last.ckpt"):
        ours, theirs = (torch.load(sweep / last.relative_to(whole), weights_only=True) for sweep in (killed, whole))
        assert all(torch.equal(ours["state_dict"][key], theirs["state_dict"][key]) for key in theirs["state_dict"])


@pytest.fixture
def partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of three jobs in its usual place, of which the last is not finished and the results are not written."""
    monkeypatch.chdir(tmp_path)
    run_script("-m", *QUICK, "seed=0,1,2")
    (sweep,) = Path("outputs/sweeps/default").iterdir()
    (sweep / "2_seed-2" / "metrics.json").unlink()
    (sweep / "results.csv").unlink()
    return sweep


def test_the_same_command_with_auto_finds_its_sweep(partial: Path) -> None:
    before = written(partial)
    run_script("-m", *QUICK, "seed=0,1,2", "resume=auto")
    assert before.items() <= written(partial).items()
    assert len(written(partial)) == 3
    assert list(Path("outputs/sweeps/default").iterdir()) == [partial]
    run_script("-m", *QUICK, "seed=0,1,2", "resume=auto")  # there is nothing left of that one
    assert len(list(Path("outputs/sweeps/default").iterdir())) == 2


def test_a_sweeps_folder_is_enough(partial: Path) -> None:
    before = written(partial)
    run_script(f"resume={partial}")
    assert before.items() <= written(partial).items()
    assert sorted(path.name for path in partial.glob("*_*")) == ["0_seed-0", "1_seed-1", "2_seed-2"]
    assert len(written(partial)) == 3
    assert (partial / "results.csv").exists()


def test_what_resume_of_a_sweep_means(partial: Path) -> None:
    argv = sweeps.repeated(["train.py", f"resume={partial}", "trainer.max_epochs=2"])
    assert argv[:2] == ["train.py", "-m"]
    assert argv[-3:] == ["trainer.max_epochs=2", "resume=auto", f"hydra.sweep.dir='{partial}'"]
    assert set(QUICK) | {"seed=0,1,2"} <= set(argv)
    assert sweeps.repeated(["train.py", "resume=outputs/other"]) == ["train.py", "resume=outputs/other"]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ("0,5,2", r"was started with other jobs: number 1 was .*seed=1 and is .*seed=5 now; give the original command"),
        ("0,1", r"number 2 was .*seed=2 and is not there now"),
    ],
)
def test_a_changed_grid_is_noticed(partial: Path, seeds: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        run_script("-m", *QUICK, f"seed={seeds}", "resume=auto", f"hydra.sweep.dir={partial}")
    assert len(written(partial)) == 2


def test_a_grid_may_grow_at_its_end(partial: Path) -> None:
    run_script("-m", *QUICK, "seed=0,1,2,3", "resume=auto", f"hydra.sweep.dir={partial}")
    assert sorted(finals(partial)) == ["0_seed-0", "1_seed-1", "2_seed-2", "3_seed-3"]


def test_a_changed_csv_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.csv").write_text("model.loss,seed\nbce,1\n,2\n")
    command = ("-m", "experiment=hyperparameters", "hydra.sweeper.path=my.csv", *QUICK, "hydra.sweep.dir=sweep")
    run_script(*command)
    before = written(Path("sweep"))
    assert sorted(finals(Path("sweep"))) == ["0_loss-bce_seed-1", "1_seed-2"]
    Path("my.csv").write_text("model.loss,seed\nbce,1\ndice,2\n")
    with pytest.raises(
        SystemExit, match=r"sweep was started with other jobs: number 1 was .*seed=2 and is .*loss=dice seed=2 now"
    ):
        run_script(*command, "resume=auto")
    assert written(Path("sweep")) == before


def test_a_folder_that_is_not_this_sweeps(partial: Path, tmp_path: Path) -> None:
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


def test_two_sweeps_in_one_folder(partial: Path) -> None:
    with FileLock(partial / ".lock"), pytest.raises(SystemExit, match="another process runs a sweep in"):
        run_script(f"resume={partial}")


def test_a_configuration_that_has_changed_is_noticed(partial: Path, capfd: Any) -> None:
    """Its jobs are called the same, but the defaults behind them are others."""
    config = partial / "2_seed-2" / "config.yaml"
    config.write_text(config.read_text().replace("weight_decay: 0.0001", "weight_decay: 0.5"))
    with pytest.raises(SystemExit, match=r"^1$"):
        run_script(f"resume={partial}")
    assert (
        "2_seed-2 was started with optim.weight_decay=0.5, now 0.0001: give the original command"
        in capfd.readouterr().out
    )


def test_jobs_that_fail_are_listed_and_may_be_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    command = ("-m", *QUICK, "data.batch_size=4,17,2")  # there are 16 images, which is found when they are looked at
    with pytest.raises(SystemExit, match=r"^1$"):
        run_script(*command, f"hydra.sweep.dir={sweep}")
    said = capsys.readouterr().out
    rows = table(said)
    assert sorted(row[0] for row in rows) == ["0", "2"]
    assert "failed job 1_batch_size-17: data.batch_size=17 is larger than the 16 training images: lower it" in said
    assert f"{os.path.relpath(sweep)}/1_batch_size-17/train.log" in said
    assert not (sweep / "results.csv").exists()
    before = written(sweep)
    with pytest.raises(SystemExit, match=r"^1$"):
        run_script(f"resume={sweep}")
    assert written(sweep) == before


def test_a_crash_is_listed_with_its_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyp.data import cache

    def broken(*_: Any) -> None:
        raise MemoryError("nothing left")

    monkeypatch.setattr(cache, "resize_image", broken)
    sweep = tmp_path / "sweep"
    with pytest.raises(SystemExit, match=r"^1$"):
        run_script("-m", *QUICK, "seed=0,1", "data.image_size=96", f"hydra.sweep.dir={sweep}")
    said = capsys.readouterr().out
    assert said.count("MemoryError: nothing left") >= 2
    assert "Traceback" in (sweep / "0_seed-0" / "train.log").read_text()


def test_the_table_has_the_numbers_and_the_best_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    run_script("-m", *QUICK, "optim.decoder_lr=1e-3,3e-2", "seed=0,1", f"hydra.sweep.dir={sweep}")
    said = capsys.readouterr().out
    assert re.search(r"job +decoder_lr +seed +val/dice +test/dice +minutes", said)
    rows = table(said)
    jobs = {path.name.partition("_")[0]: read(path) for path in sweep.glob("*_*/")}
    assert len(rows) == len(jobs) == 4
    for row in rows:
        metrics = jobs[row[0]]
        assert float(row[1]) in (1e-3, 3e-2) and int(row[2]) == metrics["seed"]
        assert row[3] == f"{metrics['best']['value']:.3f}"
        assert row[4] == f"{metrics['test']['dice']:.3f}"
        assert row[5] == f"{metrics['seconds'] / 60:.1f}"
    assert [float(row[3]) for row in rows] == sorted((float(row[3]) for row in rows), reverse=True)
    with open(sweep / "results.csv") as file:
        stored = list(csv.DictReader(file))
    assert [row["job"] for row in stored] == [row[0] for row in rows]
    assert all(re.fullmatch(r"optim.decoder_lr=\S+ seed=\d", row["overrides"]) for row in stored)
    assert float(stored[0]["test/dice"]) == jobs[rows[0][0]]["test"]["dice"]


def test_a_job_has_one_device(train: Train) -> None:
    with pytest.raises(SystemExit, match=r"trainer.devices=2: a job of a sweep has one device"):
        train("-m", *QUICK, "seed=0,1", "trainer.devices=2")
