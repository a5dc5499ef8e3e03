"""The user's own loss: imported where the command names it, never because a file of a run does."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Train
from omegaconf import OmegaConf

import polyp
from polyp.commands.compare.read_runs import read_run
from polyp.runs.folder import RunFolder
from polyp.runs.model import load_run_model
from polyp.training import sweeps

OWN = """
from pathlib import Path
from torch.nn.functional import binary_cross_entropy_with_logits
Path("imported").touch()
def half(logits, target):
    return binary_cross_entropy_with_logits(logits, target) / 2
"""
LOSS = "model.loss={own_losses.half: 2, dice: 0.5}"
MORE = "trainer.max_epochs=2"


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the command is given in, with a module of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_losses.py").write_text(OWN)
    yield tmp_path
    forget(tmp_path)


def forget(folder: Path) -> None:
    """As if the module had not been imported yet."""
    sys.modules.pop("own_losses", None)
    (folder / "imported").unlink(missing_ok=True)


@pytest.mark.slow
def test_own_loss_trains_and_nothing_else_needs_it(code: Path, train: Train) -> None:
    run = train(*SMALL, LOSS) / "run"
    weights = {"own_losses.half": 2, "dice": 0.5}
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["loss"] == weights
    assert type(checkpoint["hyper_parameters"]["loss"]) is dict
    assert read_run(run).settings["model.loss"] == "dice 0.5 + own_losses.half 2"

    forget(code)
    image = torch.zeros(3, 48, 48, dtype=torch.uint8)
    assert polyp.load(str(run)).predict(image.permute(1, 2, 0).numpy()).mask.shape == (48, 48)
    polyp.evaluate(str(run))
    # Another loss is no repetition of the run's.
    for given in ([], ["model.loss={own_losses.half: 1, dice: 0.5}"], ["model.loss=own_losses.half"]):
        with pytest.raises(SystemExit, match=r"own_losses\.half: 2"):
            train(f"resume={run}", MORE, *given)
    assert not (code / "imported").exists()

    train(f"resume={run}", MORE, LOSS)
    assert (code / "imported").exists() and RunFolder(run).read_metrics()["epochs"] == 2
    assert RunFolder(run).read_config()["model"]["loss"] == weights


def test_no_file_of_a_run_or_sweep_imports_code(code: Path, train: Train) -> None:
    run = train(*SMALL) / "run"
    config = OmegaConf.load(run / "config.yaml")
    config.model.loss = "own_losses.half"
    OmegaConf.save(config, run / "config.yaml")
    last = run / "checkpoints" / "best.ckpt"
    content = torch.load(last, weights_only=True)
    content["hyper_parameters"]["loss"] = "own_losses.half"
    torch.save(content, last)
    (code / "rows.csv").write_text("seed,model.loss\n1,own_losses.half\n")
    sweep = code / "sweep"
    sweep.mkdir()
    OmegaConf.save(
        {"hydra": {"overrides": {"task": ["model.loss=own_losses.half"], "hydra": []}}},
        sweep / "multirun.yaml",
    )

    with pytest.raises(SystemExit, match=r"add model\.loss=own_losses\.half to the command"):
        train(f"resume={run}", MORE)
    with pytest.raises(SystemExit, match=r"model\.loss=own_losses\.half would import code"):
        sweeps.expand_resume(["train.py", f"resume={sweep}"])
    with pytest.raises(SystemExit, match="would import code"):
        train("-m", *SMALL, "hydra/sweeper=csv", "hydra.sweeper.path=rows.csv")
    load_run_model(RunFolder(run))
    assert not (code / "imported").exists()
