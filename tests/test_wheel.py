"""An installed package, outside the repository: it trains, resumes, sweeps and predicts as a clone does."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import ROOT

import polyp

pytest.importorskip("hatchling", reason="needs pip install -e '.[test]'")

TINY = ("experiment=quickstart", "data.count=20", "data.size=48")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, and with what is installed beside polyp in this one."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"  # so that the build leaves nothing in the repository
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, clone / name)
    for name in ("train.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=clone, check=True)
    shutil.rmtree(clone)
    (wheel,) = folder.glob("polyp_segmentation-*.whl")
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return environment


@pytest.mark.slow
def test_an_installed_package_does_what_a_clone_does(environment: Path, tmp_path: Path) -> None:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def call(program: str, *arguments: str) -> str:
        command = [str(environment / "bin" / program), *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    file = call("python", "-c", "import polyp; print(polyp.__file__)").strip()
    assert Path(file).is_relative_to(environment), "this tests another polyp"
    assert call("polyp", "--version") == f"polyp {polyp.__version__}\n"

    output = call("polyp", "train", *TINY, "trainer.max_epochs=1")
    assert "polyp train" in output and "train.py" not in output  # there is no train.py in the folder
    (run,) = tmp_path.glob("outputs/runs/quickstart/*")
    call("polyp", "train", f"resume={run.relative_to(tmp_path)}", "trainer.max_epochs=2")
    assert (run / "metrics_after_1_epochs.json").is_file() and (run / "metrics.json").is_file()

    call("polyp", "predict", str(run), str(run / "pictures" / "overview.png"), "--out", "masks")
    assert (tmp_path / "masks" / "overview_mask.png").is_file()

    call("polyp", "train", "-m", *TINY, "trainer.max_epochs=1", "seed=0,1")
    assert len(list(tmp_path.glob("outputs/sweeps/quickstart/*/*/metrics.json"))) == 2
