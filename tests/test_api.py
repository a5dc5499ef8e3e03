"""polyp in Python: what the documentation shows works, and importing costs nothing."""

import doctest
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, train_once
from PIL import Image

import polyp
from polyp import api
from polyp.data.sources import Synthetic
from polyp.errors import InputError

RUN, OTHER = "outputs/runs/default/2026-11-23_10-00-00", "outputs/runs/default/2026-11-23_12-00-00"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small run and an image."""
    folder = tmp_path_factory.mktemp("api")
    for seed, run in enumerate((RUN, OTHER)):
        shutil.copytree(train_once(tmp_path_factory, f"seed={seed}"), folder / run)
    drawn = Synthetic(root=str(folder / "drawn"), count=20, size=48).prepare()
    shutil.copy(min((drawn / "images").iterdir()), folder / "frame.png")
    return folder


@pytest.fixture
def workspace(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the working folder."""
    monkeypatch.chdir(trained)
    return trained


def test_importing_polyp_imports_nothing_heavy() -> None:
    code = (
        "import polyp, sys; print(polyp.__version__, sorted({'torch', 'numpy', 'hydra'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == f"{polyp.__version__} []\n"


@pytest.mark.slow
def test_docstrings_are_true(workspace: Path) -> None:
    failed, attempted = doctest.testmod(api)
    assert attempted > 8 and failed == 0


def test_arrays_paths_and_lists_are_predicted_alike(workspace: Path) -> None:
    model = polyp.load(Path(RUN), device="cpu")
    image = np.asarray(Image.open("frame.png").convert("RGB"))
    alone, (first, second) = model.predict("frame.png"), model.predict([image, Path("frame.png")])
    np.testing.assert_array_equal(alone.probability, first.probability)
    np.testing.assert_array_equal(alone.probability, second.probability)
    assert alone.probability.dtype == np.float32 and alone.mask.dtype == bool
    np.testing.assert_array_equal(alone.mask, alone.probability >= model.threshold)
    everything = model.predict("frame.png", threshold=1e-9)
    assert [region.pixels for region in everything.polyps] == [image.shape[0] * image.shape[1]]


def test_several_models_are_averaged(workspace: Path) -> None:
    first, second, both = (
        polyp.load(run).predict("frame.png").probability for run in (RUN, OTHER, [RUN, OTHER])
    )
    np.testing.assert_allclose(both, (first + second) / 2, atol=1e-6)
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), "nowhere.png"]
)
def test_what_is_no_image_is_refused(image: np.ndarray | str, workspace: Path) -> None:
    with pytest.raises(InputError):
        polyp.load(RUN).predict(image)


def test_evaluate_gives_what_it_writes(workspace: Path) -> None:
    metrics = polyp.evaluate(RUN, name="again", overwrite=True)["test"]
    (tested,) = (
        run.metrics["test"]["dice"] for run in polyp.compare("outputs").runs if run.folder == Path(RUN)
    )
    assert metrics["numbers"]["dice"]["value"] == pytest.approx(tested, abs=1e-9)
    assert (workspace / RUN / "evaluations" / "again" / "metrics.json").is_file()
    with pytest.raises(InputError, match="--overwrite"):
        polyp.evaluate(RUN, name="again")


def count_pictures(notebook: Any) -> list[int]:
    """Of each cell."""
    return [
        sum("image/png" in output.get("data", ()) for output in cell.get("outputs", ()))
        for cell in notebook.cells
    ]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    saved = count_pictures(notebook)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert len(list(tmp_path.glob("outputs/sweeps/*/*/*/metrics.json"))) == 2
    assert count_pictures(notebook) == saved


def test_the_notebook_has_its_pictures_and_is_small() -> None:
    nbformat, file = pytest.importorskip("nbformat"), ROOT / "docs" / "notebook.ipynb"
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert sum(count_pictures(notebook)) == 3
    assert file.stat().st_size < 300_000
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert "stderr" not in {output.get("name") for output in outputs}
