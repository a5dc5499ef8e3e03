"""Runs that begin with trained weights, with a frozen encoder, or with rates that fall towards its stem."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Train, train_once
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import polyp
from polyp.runs.data import read_recorded_split
from polyp.runs.folder import RunFolder
from polyp.runs.model import load_run_model

FROZEN = ("model.freeze=encoder", "optim.ema_decay=0.8")


def state(run: Path, name: str = "best") -> dict[str, Tensor]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def encoder(run: Path, name: str = "best") -> dict[str, Tensor]:
    return {key: value for key, value in state(run, name).items() if ".encoder." in key}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[bool]:
    return [torch.equal(value, second[key]) for key, value in first.items()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    return train_once(tmp_path_factory, "seed=0")


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another_and_needs_them_no_more(
    source: Path, train: Train, tmp_path: Path
) -> None:
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    # imagenet: what the encoder has already is not downloaded
    run = train(*SMALL, *FROZEN, f"model.init_from={copy}", "model.encoder_weights=imagenet") / "run"
    before = encoder(source)
    count, decoder = len(before), len(state(source)) - len(before) - 2  # mean and std
    assert (
        f"{count} of {count} tensors of the encoder, {decoder} of {decoder} of the decoder\n"
        in (run / "train.log").read_text()
    )
    for name in ("best", "last"):
        assert all(equal(before, encoder(run, name)))  # and its batch statistics
    assert not all(equal(state(source), state(run)))
    assert RunFolder(run).read_config()["model"]["init_from"] == str(copy)
    parameters = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]
    assert type(parameters["init_from"]) is str and parameters["freeze"] == "encoder"

    shutil.rmtree(copy)
    train(f"resume={run}", "trainer.max_epochs=2")
    assert RunFolder(run).read_metrics()["epochs"] == 2
    assert all(equal(before, encoder(run, "last")))
    assert all(equal(load_run_model(RunFolder(run)).state_dict(), state(run)))


def test_the_encoder_trains_from_its_epoch_on(source: Path, train: Train) -> None:
    command = (*SMALL, *FROZEN, f"model.init_from={source}/checkpoints/last.ckpt")
    run = train(*command, "model.unfreeze_epoch=1", "trainer.max_epochs=2") / "run"
    moved = equal(encoder(source, "last"), encoder(run, "last"))
    assert not any(same for same, value in zip(moved, encoder(run).values(), strict=True) if value.ndim == 4)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    statistics = {key: value for key, value in last["current_model_state"].items() if "running" in key}
    assert not any(equal(statistics, state(source, "last")))
    steps = {int(moments["step"]) for moments in last["optimizer_states"][0]["state"].values()}
    assert steps == {4, 8}  # 4 steps an epoch, 2 epochs: the encoder has taken half of them


@pytest.mark.slow
def test_rates_fall_from_the_deepest_stage_to_the_stem(train: Train) -> None:
    rates = ("optim.encoder_lr=0.001", "optim.decoder_lr=0.01", "optim.warmup=0", "optim.schedule=constant")
    run = train(*SMALL, *rates, "optim.layer_decay=0.5", "trainer.log_every_n_steps=1") / "run"
    events = EventAccumulator(str(run))
    events.Reload()
    tags = {tag.rpartition("/")[2]: tag for tag in events.Tags()["scalars"] if tag.startswith("lr/")}
    scalars = {name: events.Scalars(tag)[-1].value for name, tag in tags.items()}
    expected = {f"encoder_{number}": 0.001 * 0.5 ** (5 - number) for number in range(1, 6)}
    assert scalars == pytest.approx(expected | {"decoder": 0.01})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.init_from=nowhere"], "model.init_from=nowhere"),
        (["model.init_from=tests"], "tests is not the folder of a run"),
        (["model.freeze=decoder"], "model.freeze=decoder"),
        (["model.unfreeze_epoch=1"], "model.freeze=encoder"),
        (["model.freeze=encoder", "model.unfreeze_epoch=0"], "model.unfreeze_epoch=0"),
        (["model.freeze=encoder", "model.unfreeze_epoch=1"], "trainer.max_epochs=1"),
        (["model.freeze=encoder", "model.unfreeze_epoch=1", "optim.encoder_lr=0"], "optim.encoder_lr"),
        (["optim.layer_decay=2"], "optim.layer_decay=2"),
        (["+init_from=x"], "model.init_from"),
        (["+pretrained=true"], "model.init_from"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(train: Train, overrides: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as error:
        train(*SMALL, *overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_weights_of_which_nothing_fits_are_refused(source: Path, train: Train) -> None:
    with pytest.raises(SystemExit, match=r"model\.init_from=.*best\.ckpt has no weights that fit"):
        train(
            *SMALL,
            "model.arch=linknet",
            "model.encoder=resnet18",
            "model.decoder_channels=null",
            f"model.init_from={source}",
        )


@pytest.mark.slow
def test_images_that_the_first_weights_were_fitted_to_are_noticed(train: Train, tmp_path: Path) -> None:
    folds = (*SMALL, "data.folds=2")
    first, same, second = (tmp_path / name for name in ("first", "same", "other"))
    train(*folds, f"hydra.run.dir={first}")
    train(*folds, f"model.init_from={first}", f"hydra.run.dir={same}")
    train(*folds, "data.fold=1", f"model.init_from={first}", f"hydra.run.dir={second}")
    subsets = [set(read_recorded_split(RunFolder(first))[name]) for name in ("train", "val")]
    test = set(read_recorded_split(RunFolder(second))["test"])
    count = len(test & set.union(*subsets))
    assert count > 0
    assert f"was fitted to {count} of the {len(test)} test images" in (second / "train.log").read_text()
    assert "was fitted to" not in (same / "train.log").read_text()

    def warnings(run: Path, name: str) -> list[str]:
        texts = polyp.evaluate(run, name=name)["test"]["warnings"]
        return [warning for warning in texts if str(first) in warning]

    assert not warnings(same, "a")
    (warning,) = warnings(second, "b")
    assert "too good" in warning
    shutil.rmtree(first)
    (warning,) = warnings(second, "c")
    assert "not known" in warning
