"""Every configuration composes, its keys are what the code takes, and asking costs no heavy import."""

import inspect
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from polyp.data.augment import Augmentation
from polyp.data.datamodule import PolypDataModule
from polyp.data.sources import DATASETS
from polyp.model.optim import Optim
from polyp.model.segmenter import PolypSegmenter
from polyp.runs.model import TRAINING_SETTINGS
from polyp.training.module import TrainingModule

CONF = ROOT / "conf"
GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in CONF.iterdir()
    if folder.is_dir() and folder.name != "hydra"
}
EVERY = [(group, name) for group, names in GROUPS.items() for name in names]


def composed(*overrides: str, conf: Path = CONF) -> DictConfig:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def arguments(factory: Any) -> set[str]:
    parameters = inspect.signature(factory).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_every_config_composes(group: str, name: str) -> None:
    cfg = composed(f"{group}={name}", *(["data.root=somewhere"] if name == "folder" else []))
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("name", GROUPS["data"])
def test_data_keys_are_the_constructors(name: str) -> None:
    keys = set(composed(f"data={name}").data)
    assert keys == (arguments(PolypDataModule) - {"augment", "scales", "seed"}) | arguments(DATASETS[name])


def test_model_keys_are_the_constructors() -> None:
    assert set(composed().model) == arguments(TrainingModule) - {"optim"}
    assert arguments(TrainingModule) - arguments(PolypSegmenter) == set(TRAINING_SETTINGS)


def test_optim_keys_are_the_constructors() -> None:
    assert set(composed().optim) == arguments(Optim)


@pytest.mark.parametrize("name", GROUPS["augment"])
def test_augment_keys_are_the_constructors(name: str) -> None:
    keys = arguments(Augmentation) | ({"scales"} if name == "multiscale" else set())
    assert set(composed(f"augment={name}").augment) == keys


@pytest.mark.parametrize("name", GROUPS["trainer"])
def test_trainer_keys_are_lightnings(name: str) -> None:
    assert set(composed(f"trainer={name}").trainer) <= arguments(pl.Trainer)


def test_experiment_is_on_one_screen() -> None:
    text = (CONF / "train.yaml").read_text()
    printed = OmegaConf.create(text)
    assert len(text.splitlines()) <= 50
    assert {"arch", "encoder", "encoder_weights", "loss"} <= set(printed.model)
    assert {"encoder_lr", "decoder_lr"} <= set(printed.optim)
    assert {"image_size", "batch_size"} <= set(printed.data)
    assert "max_epochs" in printed.trainer and {"augment": "strong"} in printed.defaults
    assert "hydra" not in printed


def test_own_group_file_overrides_train_yaml_and_experiment_overrides_both(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "optim" / "mine.yaml").write_text("defaults: [default]\nencoder_lr: 1e-3\nwarmup: 0\n")
    (conf / "data" / "mine.yaml").write_text("defaults: [folder]\nroot: mine\nimage_size: 256\n")
    (conf / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /optim: mine\noptim: {decoder_lr: 2e-3, warmup: 0.1}\n"
    )
    config = composed("optim=mine", "data=mine", conf=conf)
    assert (config.optim.encoder_lr, config.optim.decoder_lr, config.optim.warmup) == (1e-3, 5e-4, 0)
    assert (config.data.image_size, config.data.batch_size, config.data.split) == (256, 8, "auto")
    experiment = composed("experiment=mine", "optim.encoder_lr=3e-3", conf=conf)
    assert (experiment.optim.encoder_lr, experiment.optim.decoder_lr, experiment.optim.warmup) == (
        3e-3,
        2e-3,
        0.1,
    )


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_experiment_opens_with_its_command(name: str) -> None:
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].removeprefix("# ") in (
        f"python train.py experiment={name}",
        f"python train.py -m experiment={name}",
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--cfg", "job"], ["--cfg", "job", "experiment=quickstart"]]
)
def test_asking_imports_no_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import atexit, runpy, sys\n"
        "heavy = {'torch', 'pytorch_lightning', 'albumentations', 'cv2', 'timm', 'pandas'}\n"
        "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['train.py', *{arguments}]\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "HEAVY []"
