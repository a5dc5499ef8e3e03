"""Names and paths are checked before torch is imported, with the names that the packages have."""

import subprocess
import sys
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
from conftest import ROOT, SMALL
from segmentation_models_pytorch.encoders import encoders
from timm.models import _registry

from polyp.errors import InputError
from polyp.model import losses, names, optim


def test_the_names_are_those_of_the_packages() -> None:
    assert set(names.list_architectures()) == set(smp.MODEL_ARCHITECTURES_MAPPING)
    assert set(names.list_encoders()) == {*encoders, *(f"tu-{name}" for name in timm.list_models())}
    assert set(names.list_optimizers()) - {"optimizer"} == set(optim.OPTIMIZERS)
    assert set(names.LOSSES) == set(losses.LOSSES)
    assert set(names.SCHEDULES) == {*optim.SCHEDULES, optim.PLATEAU}


def test_a_name_that_is_in_the_package_but_not_listed_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a later version writes its lists in another style."""
    for function in ("list_architectures", "list_optimizers", "list_encoders"):
        monkeypatch.setattr(names, function, list)
    names.check_names({"arch": "unetplusplus", "encoder": "mit_b0"}, {"optimizer": "AdamW"})
    with pytest.raises(InputError, match="3 settings cannot work"):
        names.check_names({"arch": "unett", "encoder": "mit_b9"}, {"optimizer": "adamm"})


def test_former_names_of_timm_are_left_to_it() -> None:
    former = sorted(set(_registry._model_entrypoints) - set(timm.list_models()))
    assert len(former) > 100
    for name in former[::20]:
        names.check_names({"encoder": f"tu-{name}"}, {})


TRAIN = str(ROOT / "train.py")
REFUSED = [
    [TRAIN, *SMALL, "model.loss={dise: 1}", "model.encoder_weights=nope.pt", "optim.optimizer=adamm"],
    [TRAIN, "data=folder", "data.root=nope", "data.split=ofical", "model.init_from=nope"],
    [TRAIN, "-m", *SMALL, "model.encoder=mobilenet_v2,resnt34"],
    ["-m", "polyp.cli", "tune", "lr", *SMALL, "model.encoder=resnt34"],
    ["-m", "polyp.cli", "predict", "nope", "image.png"],
    ["-m", "polyp.cli", "compare", "outputs", "--root", "nope"],
]


@pytest.mark.parametrize("command", REFUSED, ids=lambda command: command[-1])
def test_a_wrong_name_or_path_is_refused_without_torch(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    process = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=tmp_path, capture_output=True, text=True
    )
    lines = process.stderr.splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert process.returncode and "polyp" in modules and not modules & {"torch", "timm", "pytorch_lightning"}
    output = " ".join(line for line in lines if not line.startswith("import time:"))
    assert any(word in output for word in ("nope", "unknown", "neither"))
