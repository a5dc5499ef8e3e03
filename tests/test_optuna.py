"""The search with Optuna: its trials, its storage, what it does when it is stopped, and what it refuses."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SMALL, Train
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hydra_plugins.optuna_search import MOST_CHECKED, representatives
from polyp.runs.resume import resolved
from polyp.training.build import build

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
optuna = pytest.importorskip("optuna")

SEARCH = ("-m", "experiment=optuna", *SMALL, "+trainer.limit_train_batches=1")
SPACE = {
    "model.arch": optuna.distributions.CategoricalDistribution(["unet", "linknet", "fpn"]),
    "optim.decoder_lr": optuna.distributions.LogUniformDistribution(1e-4, 1e-2),
}


def stored(sweep: Path) -> list[Any]:
    return optuna.load_study("optuna", f"sqlite:///{sweep}/optuna.db").trials


def asked(folder: Path, count: int, failing: tuple[int, ...] = (), batch: int = 1) -> list[dict[str, Any]]:
    """Run a study whose trials cost nothing and leave their record in folders; what each was given."""
    from polyp.search import RecordedTPESampler

    study = optuna.create_study(sampler=RecordedTPESampler(str(folder), seed=0), direction="maximize")
    for first in range(0, count, batch):
        trials = [study.ask() for _ in range(first, min(first + batch, count))]
        for trial in trials:
            given = {name: trial._suggest(name, distribution) for name, distribution in SPACE.items()}
            record = folder / f"{trial.number}_job" / ".hydra" / "overrides.yaml"
            record.parent.mkdir(parents=True, exist_ok=True)
            OmegaConf.save([f"{name}={value}" for name, value in given.items()], record)
        for trial in trials:
            if trial.number in failing:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, -abs(math.log10(trial.params["optim.decoder_lr"]) + 3))
    return [trial.params for trial in study.trials]


@pytest.mark.slow
def test_a_search_leaves_its_trials_and_their_numbers(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = train(*SEARCH, "hydra.sweeper.n_trials=3") / "sweep"
    said = capsys.readouterr()
    folders = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [path.name.split("_")[0] for path in folders] == ["0", "1", "2"]
    trials = stored(sweep)
    for folder, trial in zip(folders, trials, strict=True):
        assert trial.state.name == "COMPLETE"
        assert trial.value == json.loads((folder / "metrics.json").read_text())["best"]["value"]
        rates = "_".join(f"{name}_lr-{trial.params[f'optim.{name}_lr']:.3g}" for name in ("encoder", "decoder"))
        assert folder.name == f"{trial.number}_loss-{trial.params['model.loss']}_{rates}"
        assert set(trial.params) == {"model.loss", "optim.encoder_lr", "optim.decoder_lr"}
        assert 5e-5 <= trial.params["optim.encoder_lr"] <= 2e-3
        assert 1e-4 <= trial.params["optim.decoder_lr"] <= 5e-3
        config = OmegaConf.load(folder / "config.yaml")
        assert all(OmegaConf.select(config, name) == value for name, value in trial.params.items())
    best = max(trials, key=lambda trial: trial.value)
    first = next(line for line in said.out.splitlines() if line.split()[:1] == ["job"])
    row = said.out.splitlines()[said.out.splitlines().index(first) + 1]
    assert row.split()[0] == str(best.number) and f"{best.value:.3f}" in row
    assert not any(noise in said.out + said.err for noise in ("alembic", "Study name", "new study", "Warning"))


@pytest.mark.slow
def test_a_search_whose_trials_all_fail_says_so(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^1$"):
        train(
            "-m", "experiment=optuna", *SMALL, "hydra.sweeper.n_trials=2", "+trainer.max_steps=1"
        )  # less than an epoch
    assert capsys.readouterr().out.count("trainer.max_steps=1") >= 2
    assert [trial.state.name for trial in stored(train("--cfg", "job") / "sweep")] == ["FAIL", "FAIL"]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_search_started_anew_asks_for_the_same(tmp_path: Path, batch: int) -> None:
    before = asked(tmp_path / "stopped", 14, failing=(3, 11), batch=batch)
    assert asked(tmp_path / "other", 14, failing=(3, 11), batch=batch) == before
    assert asked(tmp_path / "stopped", 18, failing=(3, 11), batch=batch)[:14] == before
    whole = asked(tmp_path / "never stopped", 18, failing=(3, 11), batch=batch)
    assert asked(tmp_path / "stopped", 18, failing=(3, 11), batch=batch) == whole


def test_the_record_outlives_what_changes_the_draws(tmp_path: Path) -> None:
    before = asked(tmp_path / "record", 16, failing=(3,))
    assert asked(tmp_path / "other", 16) != before  # the seed alone does not do
    assert asked(tmp_path / "record", 16)[:16] == before
    assert asked(tmp_path / "record", 17, batch=4)[:16] == before


@pytest.mark.parametrize("torn", ["", "- model.arch=un\n- optim.dec", "- model.arch=pan\n- optim.decoder_lr=1.0"])
def test_a_record_that_cannot_be_used_is_not(tmp_path: Path, torn: str) -> None:
    before = asked(tmp_path / "record", 3)
    (tmp_path / "record" / "1_job" / ".hydra" / "overrides.yaml").write_text(torn)
    assert asked(tmp_path / "record", 3) == before


def test_a_search_that_cannot_work_is_refused_before_its_first_trial(train: Train) -> None:
    with pytest.raises(SystemExit, match=r"model\.loss=dise.*cannot work.*did you mean dice.*\nNo job was started"):
        train(*SEARCH, "model.loss=dice,dise", "optim.decoder_lr=tag(log,interval(1e-4,1e-2))")
    assert not (train("--cfg", "job") / "sweep" / "optuna.db").exists()


def test_representatives_of_a_search() -> None:
    few = representatives(
        ["model.arch=unet", "model.arch=fpn,pan", "seed=range(2)", "x=interval(1.5,2)", "data=folder"]
    )
    assert few[1] == (["model.arch=fpn", "seed=1", "x=1.5", "data=folder"], "model.arch=fpn seed=1")
    assert len(few) == 4
    many = representatives(["a=choice(1,2,3,4,5)", "b=1,2,3,4,5", "c=1,2,3,4,5", "d=tag(log,interval(1,2))"])
    assert MOST_CHECKED < 5**3
    assert {particular for _, particular in many} == {f"{key}={value}" for key in "abc" for value in range(1, 6)}
    assert (["a=1", "b=4", "c=1", "d=1.0"], "b=4") in many


@pytest.mark.slow
def test_every_combination_of_the_experiment_builds(tmp_path: Path) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        experiment = compose("train", ["experiment=optuna"], return_hydra_config=True)
        jobs = representatives([f"{key}={value}" for key, value in experiment.hydra.sweeper.params.items()])
        assert len(jobs) <= MOST_CHECKED
        for job, _ in jobs:
            config = compose("train", ["experiment=optuna", *job, "model.encoder_weights=null"])
            build(resolved(config), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-m", "experiment=optuna"], 1, "optuna is not installed: pip install -e '.[optuna]'\n"),
        (["experiment=optuna", "--cfg", "job"], 0, ""),
        (["--help"], 0, ""),
    ],
)
def test_without_the_extra(arguments: list[str], code: int, said: str) -> None:
    script = (
        "import runpy, sys, hydra_plugins\n"
        f"hydra_plugins.__path__ = [{str(ROOT / 'src' / 'hydra_plugins')!r}]\n"
        "sys.modules['optuna'] = None\n"
        f"sys.argv = ['train.py', *{arguments}]\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, said)


def test_asking_imports_no_optuna() -> None:
    script = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('HEAVY', sorted({'optuna', 'sqlalchemy', 'torch'} & set(sys.modules))))\n"
        "sys.argv = ['train.py', 'experiment=optuna', '--cfg', 'job']\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr


def test_a_stopped_search_goes_on(train: Train) -> None:
    sweep = train(*SEARCH, "hydra.sweeper.n_trials=2") / "sweep"
    before = stored(sweep)
    done, stopped = sorted(path for path in sweep.iterdir() if path.is_dir())
    written = (done / "metrics.json").stat().st_mtime_ns
    for path in (
        stopped / "metrics.json",
        stopped / "checkpoints" / "last.ckpt",
        stopped / "checkpoints" / "best.ckpt",
    ):
        path.unlink()  # as if it had been killed in its first epoch
    (sweep / "optuna.db").write_bytes(b"torn")
    train(*SEARCH, "hydra.sweeper.n_trials=3", "resume=auto", f"hydra.sweep.dir={sweep}")
    after = stored(sweep)
    assert [trial.params for trial in after[:2]] == [trial.params for trial in before]
    assert [trial.value for trial in after[:2]] == [trial.value for trial in before]
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 3
    folders = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert folders[:2] == [done, stopped] and len(folders) == 3
    assert (done / "metrics.json").stat().st_mtime_ns == written
