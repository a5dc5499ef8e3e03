"""A disk that is full: one line, nothing lost, no half-written file, and the command works once there is
room.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, SMALL
from run_writers import on_drawn_images, write_model_run, write_run

from polyp.cli import main
from polyp.files import WriteError, atomic_write, write_text


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    result = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)], capture_output=True
    )
    if result.returncode:
        pytest.skip(f"no disk can be made here: {result.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, room: int = 0) -> Path:
    """Take all the room but `left` bytes, and return the file that does."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler = disk / ".filler"
    with filler.open("wb") as stream:
        stream.write(bytes(max(0, free - room)))
    return filler


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", ".filler"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def drawn_images(folder: Path, count: int = 12) -> Path:
    """A data set of noise with a bright square."""
    for number in range(count):
        random = np.random.default_rng(number)
        image, mask = random.integers(60, 120, (80, 96, 3), dtype=np.uint8), np.zeros((80, 96), np.uint8)
        mask[20:40, 10 + number : 40] = 255
        for kind, pixels in (("images", image), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / kind / f"{number}.png"), pixels)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "predict",
        "compare",
        "data",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("evaluate", "export")),
    ],
)
def test_a_full_disk_is_one_line_and_loses_nothing(disk: Path, tmp_path: Path, command: str) -> None:
    run = on_drawn_images(write_model_run(disk / "run"))
    images = drawn_images(tmp_path / "images")
    arguments: dict[str, list[str]] = {
        "evaluate": [str(run), "--overwrite", "--name", "it"],
        "predict": [str(run), str(images / "images"), "--overwrite"],
        "compare": [str(run), str(disk / "other"), "--out", str(disk / "out"), "--overwrite"],
        "data": [str(images), "--out", str(disk / "page.html")],
        "export": [str(run), "--onnx", "--overwrite"],
    }
    write_run(disk / "other", [0.4])
    call: Callable[[], None] = lambda: main([command, *arguments[command]])  # noqa: E731
    call()
    before = contents(disk)
    for room in (0,) if command in ("compare", "predict") else (0, 100_000):  # their files are small
        filler = fill(disk, room)
        with pytest.raises(SystemExit) as error:
            call()
        text = str(error.value.code)
        assert text.startswith("polyp: ") and "No space left on device" in text and "\n" not in text
        after = contents(disk)
        assert [name for name in after if ".part" in name] == []
        if command == "predict":  # an image that is finished before the disk is full is written anew
            assert before.keys() <= after.keys() | {
                name for name in before if name.startswith("run/predictions")
            }
        elif command == "compare":  # pages are replaced one by one
            assert before.keys() == after.keys()
        else:
            assert after == before
        filler.unlink()
    call()
    assert contents(disk).keys() == before.keys()


def test_a_half_written_file_is_never_seen(disk: Path) -> None:
    file = disk / "file.txt"
    write_text(file, "old")
    filler = fill(disk, 50_000)
    with pytest.raises(WriteError, match=r"cannot write .*file\.txt \(No space left on device\)"):
        write_text(file, "new" * 100_000)
    with pytest.raises(KeyboardInterrupt), atomic_write(file) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    filler.unlink()
    assert contents(disk) == {"file.txt": b"old"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "room",
    [
        *(0, 60_000, 30_000_000),
        *(pytest.param(room, marks=pytest.mark.nightly) for room in (20_000, 60_000_000, 110_000_000)),
    ],
)
def test_training_on_a_full_disk_goes_on_once_there_is_room(disk: Path, room: int) -> None:
    fresh = [*SMALL, "model.encoder=resnet18", "trainer.max_epochs=2", f"hydra.run.dir={disk}/outputs/run"]
    run = disk / "outputs" / "run"
    (disk / "outputs").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}

    def train(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "train.py"), *overrides]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    filler = fill(disk, room)
    full = train(*fresh)
    assert full.returncode == 1, full.stderr
    assert (
        "Traceback" not in full.stderr + full.stdout
        and "No space left on device" in full.stderr.splitlines()[-1]
    )
    assert [path for path in run.rglob("*") if ".part" in path.name] == []
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=600m", str(disk)], check=True)
    again = train(*([f"resume={run}"] if (run / "config.yaml").is_file() else fresh))
    assert again.returncode == 0, again.stderr
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 2
    shutil.rmtree(run)
