"""`polyp tune`, and the settings that are found: auto."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, Train

from polyp.cli import main
from polyp.commands.tune.tune import suggest_rate

NETWORK = [override for override in SMALL if not override.startswith("trainer.")]


def test_the_learning_rate_is_the_one_at_which_the_loss_falls_fastest() -> None:
    rates = np.geomspace(1e-6, 1, 200)
    losses = 1 - 1 / (1 + np.exp(-4 * np.log10(rates / 3e-3)))  # steepest at 3e-3, over the logarithm
    assert suggest_rate(list(rates), list(losses)) == pytest.approx(3e-3, rel=0.1)


def test_tune_lr_prints_a_command_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["tune", "lr", *SMALL, "--steps", "40", "--out", "charts/lr.png"])
    output = capsys.readouterr().out
    (command,) = [line for line in output.splitlines() if "optim.encoder_lr=" in line]
    rate = float(command.rpartition("=")[2])
    assert 1e-6 <= rate <= 1 and f"optim.encoder_lr={rate:.1g}" in command and SMALL[0] in command
    assert (tmp_path / "charts" / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} <= {"charts", "data"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lr", "model.encoder=resnet999"], "resnet999 is unknown"),
        (["lr", "model.encodr=resnet18"], "model.encodr"),
        (["lr", "+seeed=3"], "seeed is no setting"),
        (["lr", "data=folder", "data.root=nowhere"], "nowhere"),
        (["lr", "--steps", "3"], "--steps 3"),
        (["lr", *NETWORK, "model.loss=dise"], "dise"),
        pytest.param(
            ["batch_size", *NETWORK],
            "memory of a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_be_tuned_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["tune", *arguments])
    text = str(end.value.code) + capsys.readouterr().err
    assert message in text and end.value.code != 0
    assert not list(tmp_path.iterdir())


def test_batch_size_auto_needs_a_gpu(train: Train) -> None:
    with pytest.raises(SystemExit, match=r"data\.batch_size=auto .*GPU"):
        train(*SMALL, "data.batch_size=auto", "trainer.accelerator=cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batch_size_auto_is_a_power_of_two_that_the_run_records(train: Train) -> None:
    import yaml

    run = train(*SMALL, "data.count=700", "data.batch_size=auto", "trainer.accelerator=gpu") / "run"
    size = yaml.safe_load((run / "config.yaml").read_text())["data"]["batch_size"]
    assert math.log2(size).is_integer() and 2 <= size <= 64


def test_workers_auto_is_none_on_a_cpu(train: Train) -> None:
    """Which `SMALL` trains on: the same run as with 0."""
    with pytest.raises(SystemExit, match=r"data\.num_workers"):
        train(*SMALL, "data.num_workers=many")
    auto = train(*SMALL, "data.num_workers=auto", "data.eval_workers=auto")
    assert list(auto.rglob("metrics.json"))
