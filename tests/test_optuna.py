"""The search with Optuna: its trials, its study, what it does when it is stopped, and what it refuses."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SMALL, Train, run_script, start
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.optuna_sweeper import (
    MAX_CHECKED_JOBS,
    OptunaSweeper,
    make_distribution,
    open_storage,
    representative_jobs,
)
from polyp.errors import InputError
from polyp.runs.configuration import resolve_config
from polyp.runs.folder import RunFolder
from polyp.training.build import build
from polyp.training.run import Run

optuna = pytest.importorskip("optuna")

SEARCH = ("-m", "experiment=optuna", *SMALL, "+trainer.limit_train_batches=1")
METRICS = {
    "test": dict.fromkeys(("dice", "iou", "precision", "recall", "mae", "pooled_dice", "n"), 1),
    "best": {"monitor": "val/dice", "value": 0.5, "epoch": 0},
    "definitions": {},
    "seed": 0,
    "data": {
        **{"dataset": "drawn", "fingerprint": "", "split": "random", "image_size": [64, 64]},
        "images": dict.fromkeys(("train", "val", "test"), 1),
    },
    **dict.fromkeys(("parameters", "epochs", "seconds", "peak_memory_mb"), 1),
    **{"device": "", "precision": "", "versions": {}},
}


def trials_of(sweep: Path) -> list[Any]:
    return optuna.load_study(study_name=None, storage=open_storage(sweep)).trials


def states(sweep: Path) -> list[str]:
    return [trial.state.name for trial in trials_of(sweep)]


def search(
    folder: Path, n_trials: int, fails: tuple[int, ...] = (), more: tuple[str, ...] = (), **settings: Any
) -> list[dict[str, str]]:
    """Run a search whose jobs only write metrics.json, unless they fail; the overrides of each."""
    folder.mkdir(exist_ok=True)
    launched: list[dict[str, str]] = []

    class Launcher:
        def launch(self, jobs: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
            for number, job in enumerate(jobs, initial_job_idx):
                values = dict(override.split("=") for override in job)
                launched.append(values)
                if number not in fails:
                    (folder / f"{number}_job").mkdir(exist_ok=True)
                    best = METRICS["best"] | {"value": 1 - abs(float(values["optim.decoder_lr"]) - 1e-3)}
                    metrics = METRICS | {"best": best, "latency_ms": len(values["model.arch"])}
                    RunFolder(folder / f"{number}_job").write_metrics(metrics)
            return []

    defaults = {"n_jobs": 1, "seed": 0, "objectives": ["val/dice"], "prune_after_trials": None}
    sweeper = OptunaSweeper(n_trials=n_trials, prune_after_epochs=0, **(defaults | settings))
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    sweeper.launcher = Launcher()  # type: ignore[assignment]
    sweeper.sweep(
        ["model.arch=unet,linknet,fpn", "optim.decoder_lr=tag(log,interval(1e-4,1e-2))", "seed=3", *more]
    )
    return launched


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", ["experiment=optuna", *overrides], return_hydra_config=True)


@pytest.mark.slow
def test_search_leaves_trials_and_numbers(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = train(*SEARCH, "hydra.sweeper.n_trials=3") / "sweep"
    output = capsys.readouterr()
    folders = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [path.name.split("_")[0] for path in folders] == ["0", "1", "2"]
    trials = trials_of(sweep)
    for folder, trial in zip(folders, trials, strict=True):
        assert trial.state.name == "COMPLETE"
        assert trial.value == json.loads((folder / "metrics.json").read_text())["best"]["value"]
        rates = "_".join(
            f"{name}_lr-{trial.params[f'optim.{name}_lr']:.3g}" for name in ("encoder", "decoder")
        )
        assert folder.name == f"{trial.number}_loss-{trial.params['model.loss']}_{rates}"
        assert set(trial.params) == {"model.loss", "optim.encoder_lr", "optim.decoder_lr"}
        assert 5e-5 <= trial.params["optim.encoder_lr"] <= 2e-3
        assert 1e-4 <= trial.params["optim.decoder_lr"] <= 5e-3
        config = OmegaConf.load(folder / "config.yaml")
        assert all(OmegaConf.select(config, name) == value for name, value in trial.params.items())
    best = max(trials, key=lambda trial: trial.value)
    first = next(line for line in output.out.splitlines() if line.split()[:1] == ["job"])
    row = output.out.splitlines()[output.out.splitlines().index(first) + 1]
    assert row.split()[0] == str(best.number) and f"{best.value:.3f}" in row
    assert not any(noise in output.out + output.err for noise in ("new study", "Warning"))


@pytest.mark.slow
def test_search_whose_trials_all_fail_says_so(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    less_than_an_epoch = "+trainer.max_steps=1"
    with pytest.raises(SystemExit, match=r"^1$"):
        train("-m", "experiment=optuna", *SMALL, "hydra.sweeper.n_trials=2", less_than_an_epoch)
    assert capsys.readouterr().out.count("trainer.max_steps=1") >= 2
    assert states(train("--cfg", "job") / "sweep") == ["RUNNING", "RUNNING"]  # resuming tries them again


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_interrupted_search_draws_what_a_whole_one_draws(tmp_path: Path, n_jobs: int) -> None:
    whole = search(tmp_path / "whole", 16, n_jobs=n_jobs)
    parts = [search(tmp_path / "parts", count, n_jobs=n_jobs) for count in (2, 12, 16)]
    assert list(map(len, parts)) == [2, 10, 4]
    assert parts[0] + parts[1] + parts[2] == whole
    assert len({job["optim.decoder_lr"] for job in whole}) == 16
    assert search(tmp_path / "parts", 16, n_jobs=n_jobs) == []
    assert search(tmp_path / "other seed", 2, seed=1) != whole[:2]


def test_failed_trial_is_tried_again_with_its_parameters(tmp_path: Path) -> None:
    before = search(tmp_path / "sweep", 4, fails=(1, 3))
    assert states(tmp_path / "sweep") == ["COMPLETE", "RUNNING", "COMPLETE", "RUNNING"]
    assert search(tmp_path / "sweep", 4) == [before[1], before[3]]
    assert states(tmp_path / "sweep") == ["COMPLETE"] * 4


def test_finished_trial_whose_folder_was_deleted_is_run_again(tmp_path: Path) -> None:
    before = search(tmp_path / "sweep", 2)
    (tmp_path / "sweep" / "1_job" / "metrics.json").unlink()
    assert search(tmp_path / "sweep", 2) == before[1:]


def test_two_objectives(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    objectives = ["val/dice", "latency_ms"]
    with caplog.at_level("INFO"):
        jobs = search(tmp_path / "sweep", 12, objectives=objectives)
    study = optuna.load_study(study_name=None, storage=open_storage(tmp_path / "sweep"))
    expected = [(1 - abs(float(job["optim.decoder_lr"]) - 1e-3), len(job["model.arch"])) for job in jobs]
    assert [tuple(trial.values) for trial in study.trials] == expected
    front = [
        number
        for number, (dice, latency) in enumerate(expected)
        if not any((d >= dice and ms <= latency) and (d, ms) != (dice, latency) for d, ms in expected)
    ]
    assert [trial.number for trial in study.best_trials] == front
    assert [f"Pareto-optimal job {number}: val/dice" in caplog.text for number in range(12)] == [
        n in front for n in range(12)
    ]
    with pytest.raises(
        InputError, match=r"was started with hydra.sweeper.objectives=\[val/dice,latency_ms\]"
    ):
        search(tmp_path / "sweep", 12)


@pytest.mark.parametrize("content", ["torn", '{"op_code":0}\n{"op_', "[]\n", "\0" * 50])
def test_damaged_study_is_one_line_and_can_be_deleted(content: str, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    before = search(sweep, 12)
    file = sweep / "optuna.journal"
    file.write_text(content)
    with pytest.raises(InputError, match=r"optuna\.journal is damaged .*: delete it") as error:
        search(sweep, 12)
    assert "\n" not in str(error.value)
    file.unlink()
    assert search(sweep, 13)[:12] == before


def test_code_that_a_study_names_is_not_imported(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    fails, more = tuple(range(12)), ("model.loss=dice_bce,structure",)
    search(sweep, 12, fails, more)
    file = sweep / "optuna.journal"
    file.write_text(file.read_text().replace("structure", "os.abort"))
    with pytest.raises(InputError, match=r"model\.loss=os\.abort of trial \d+ would import code"):
        search(sweep, 12, fails, more)
    overrides = ("model.loss=dice_bce,os.abort",)  # the user's command names it
    assert {job["model.loss"] for job in search(sweep, 12, fails, overrides)} == {"dice_bce", "os.abort"}


def test_search_of_an_older_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "optuna.db").touch()
    with pytest.raises(InputError, match="older, which cannot be continued: start a new one"):
        search(tmp_path / "sweep", 2)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("x=interval(1.5,2)", optuna.distributions.FloatDistribution(1.5, 2)),
        ("x=tag(log,interval(1e-4,1e-2))", optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)),
        ("x=int(interval(1,8))", optuna.distributions.IntDistribution(1, 8)),
        ("x=tag(log,int(interval(1,8)))", optuna.distributions.IntDistribution(1, 8, log=True)),
        ("x=range(3,6)", optuna.distributions.IntDistribution(3, 5)),
        ("x=range(6,0,-2)", optuna.distributions.IntDistribution(2, 6, step=2)),
        ("x=range(0,1,0.25)", optuna.distributions.FloatDistribution(0, 0.75, step=0.25)),
        ("x=a,null,1", optuna.distributions.CategoricalDistribution(["a", "null", "1"])),
        ("x=choice([64,32],'a b')", optuna.distributions.CategoricalDistribution(["[64,32]", r"a\ b"])),
        ("x=shuffle(choice(2,1,3))", optuna.distributions.CategoricalDistribution(["2", "1", "3"])),
    ],
)
def test_search_space_of_an_override(override: str, expected: Any) -> None:
    assert make_distribution(OverridesParser.create().parse_override(override)) == expected


@pytest.mark.parametrize("override", ["x=interval(2,1)", "x=range(3,3)", "x=tag(log,interval(-1,1))"])
def test_search_space_without_values_is_refused(override: str) -> None:
    with pytest.raises(InputError, match=r"^x=.* cannot be searched: "):
        make_distribution(OverridesParser.create().parse_override(override))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param(
            ["model.loss=dice,dise"],
            r"model\.loss=dise.*cannot work.*did you mean dice",
            marks=pytest.mark.slow,
        ),
        (
            ["hydra.sweeper.objectives=[val/dice,latency]"],
            r"objectives=latency is unknown: did you mean latency_ms",
        ),
        (["hydra.sweeper.objectives=[test/dice]"], r"objectives=test/dice is unknown"),
        (["hydra.sweeper.n_trials=0"], r"n_trials=0 must be a whole number, at least 1"),
    ],
)
def test_search_that_cannot_work_is_refused_before_its_first_trial(
    arguments: list[str], reason: str, train: Train
) -> None:
    with pytest.raises(SystemExit, match=reason + r"(.|\n)*\nNo job was started"):
        train(*SEARCH, "optim.decoder_lr=tag(log,interval(1e-4,1e-2))", *arguments)
    assert not (train("--cfg", "job") / "sweep" / "optuna.journal").exists()


def test_representative_jobs_of_a_search() -> None:
    few = representative_jobs(
        ["model.arch=unet", "model.arch=fpn,pan", "seed=range(2)", "x=interval(1.5,2)", "data=folder"]
    )
    assert few[1] == ["model.arch=fpn", "seed=1", "x=1.5", "data=folder"]
    assert len(few) == 4
    many = representative_jobs(
        ["a=choice(1,2,3,4,5)", "b=1,2,3,4,5", "c=1,2,3,4,5", "d=tag(log,interval(1,2))"]
    )
    assert len(many) == 15 < MAX_CHECKED_JOBS < 5**3
    assert {override for job in many for override in job} == {
        "d=1.0",
        *(f"{key}={value}" for key in "abc" for value in range(1, 6)),
    }


@pytest.mark.slow
def test_every_combination_of_the_experiment_builds(tmp_path: Path) -> None:
    params = composed().hydra.sweeper.params
    jobs = representative_jobs([f"{key}={value}" for key, value in params.items()])
    assert len(jobs) <= MAX_CHECKED_JOBS
    for job in jobs:
        build(Run(RunFolder(tmp_path), resolve_config(composed(*job, "model.encoder_weights=null"))))


def test_trials_at_once_are_the_launchers() -> None:
    assert composed().hydra.sweeper.n_jobs == 1
    assert composed("launcher=joblib").hydra.sweeper.n_jobs == 2
    assert composed("launcher=slurm").hydra.sweeper.n_jobs == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-m", "experiment=optuna"], 1, "optuna is not installed: pip install -e '.[optuna]'\n"),
        (["experiment=optuna", "--cfg", "job"], 0, ""),
        (["--help"], 0, ""),
    ],
)
def test_search_without_the_extra(arguments: list[str], code: int, message: str) -> None:
    script = (
        "import runpy, sys\n"
        "sys.modules['optuna'] = None\n"
        f"sys.argv = ['train.py', *{arguments}]\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (code, message)


def test_asking_imports_no_optuna() -> None:
    script = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('HEAVY', sorted({'optuna', 'torch'} & set(sys.modules))))\n"
        "sys.argv = ['train.py', 'experiment=optuna', '--cfg', 'job']\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "HEAVY []", result.stderr


@pytest.mark.slow
def test_killed_search_continues_in_its_folder(tmp_path: Path) -> None:
    sweep, log = tmp_path / "sweep", tmp_path / "log"
    process = start(*SEARCH, "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={sweep}", log=log)
    deadline = time.time() + 120
    while not list(sweep.glob("1_*/config.yaml")):
        assert process.is_alive() and time.time() < deadline, log.read_text()
        time.sleep(0.02)
    process.kill()
    process.join()
    before = trials_of(sweep)
    assert [trial.state.name for trial in before] == ["COMPLETE", "RUNNING"]
    first, second = sorted(sweep.glob("[01]_*"))
    written = (first / "metrics.json").stat().st_mtime_ns
    run_script(f"resume={sweep}", "hydra.sweeper.n_trials=3")
    after = trials_of(sweep)
    assert [trial.params for trial in after[:2]] == [trial.params for trial in before]
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 3
    assert sorted(sweep.glob("[0-9]_*"))[:2] == [first, second]
    assert (first / "metrics.json").stat().st_mtime_ns == written
    assert after[1].value == json.loads((second / "metrics.json").read_text())["best"]["value"]


@pytest.mark.slow
def test_hopeless_trial_is_pruned_and_counts_as_finished(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A rate of 1e-9 learns nothing: whichever of the two finishes later is stopped, if it is the worse one.
    options = ("trainer.max_epochs=6", "optim.ema_decay=null", "model.loss=dice", "optim.encoder_lr=1e-3")
    options += ("augment=light", "optim.decoder_lr=1e-9,1e-2", "hydra.sweeper.prune_after_trials=1")
    command = (
        "-m",
        "experiment=optuna",
        *SMALL,
        *options,
        "hydra.sweeper.prune_after_epochs=2",
        "hydra.sweep.dir=sweep",
    )
    run_script(*command, "hydra.sweeper.n_trials=6")
    sweep = Path("sweep")
    trials = trials_of(sweep)
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert pruned and {trial.state.name for trial in trials} == {"PRUNED", "COMPLETE"}
    for trial in trials:
        (folder,) = sweep.glob(f"{trial.number}_*")
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["pruned"] == (trial in pruned)
        assert metrics["epochs"] == len(trial.intermediate_values)
        assert 3 <= metrics["epochs"] < 6 if trial in pruned else metrics["epochs"] == 6
    output = capfd.readouterr().out
    assert "failed job" not in output
    assert output.count("pruned job") == len(pruned)
    assert len(output.split(" test/dice ")[-1].splitlines()) > len(trials)
    before = {file: file.stat().st_mtime_ns for file in sweep.rglob("metrics.json")}
    run_script("resume=sweep")
    assert {file: file.stat().st_mtime_ns for file in sweep.rglob("metrics.json")} == before
    assert [trial.state for trial in trials_of(sweep)] == [trial.state for trial in trials]


@pytest.mark.slow
def test_search_for_dice_and_latency(tmp_path: Path) -> None:
    space = (
        "model.arch=unet,fpn",
        "model.decoder_channels=null",
        "hydra.sweeper.objectives=[val/dice,latency_ms]",
    )
    run_script(*SEARCH, *space, "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    for trial in trials_of(tmp_path / "sweep"):
        (file,) = tmp_path.glob(f"sweep/{trial.number}_*/metrics.json")
        metrics = json.loads(file.read_text())
        assert trial.values == [metrics["best"]["value"], metrics["latency_ms"]]
        assert metrics["latency_ms"] > 0 and not metrics["pruned"]
