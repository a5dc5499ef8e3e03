"""The Dockerfile and the development container, as far as they can be tested without Docker."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT

FOLDER = ROOT / ".devcontainer"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()


def test_the_image_has_what_the_package_needs(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="needs pip install -e '.[test]'")
    for *sources, target in (line.split() for line in re.findall(r"COPY --chown=\S+ (.+)", DOCKERFILE)):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / "clone" / target)
            else:
                (tmp_path / "clone" / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / "clone" / target)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=tmp_path / "clone" / "source", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as packed:
        files = set(packed.namelist())
    assert {"polyp/cli.py", "polyp/script/train.py", "polyp/script/conf/train.yaml"} <= files
    assert "polyp/commands/app/static/app.js" in files


def test_development_container() -> None:
    config = json.loads((FOLDER / "devcontainer.json").read_text())
    assert (FOLDER / config["build"]["dockerfile"]).is_file()
    assert (FOLDER / config["build"]["context"]).resolve() == ROOT
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert config["build"]["args"].keys() <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    (default,) = re.findall(r"^ARG EXTRAS=(.+)", DOCKERFILE, re.MULTILINE)
    assert {config["build"]["args"]["EXTRAS"], *default.split(",")} <= extras.keys()
