import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from polyp.data import sources
from polyp.data.drawing import draw
from polyp.data.sources import Synthetic
from polyp.errors import InputError

SMALL = {"count": 10, "size": 32}


def check_complete(folder: Path, count: int, size: int) -> None:
    images, masks = (sorted((folder / part).iterdir()) for part in ("images", "masks"))
    assert [path.name for path in images] == [f"synthetic_{i:04}.jpg" for i in range(count)]
    assert [path.stem for path in masks] == [path.stem for path in images]
    for image_path, mask_path in zip(images, masks, strict=True):
        image, mask = cv2.imread(str(image_path)), cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED)
        assert image.shape == (*mask.shape, 3)
        assert size <= mask.shape[0] <= 1.3 * size
        assert size <= mask.shape[1] <= 1.5 * size
        assert set(np.unique(mask)) == {0, 255}


def test_a_picture_depends_on_its_arguments_alone() -> None:
    np.random.seed(1)
    image, mask = draw(3, 70, 90)
    np.random.seed(2)
    repeated, repeated_mask = draw(3, 70, 90)
    assert image.tobytes() == repeated.tobytes()
    assert mask.tobytes() == repeated_mask.tobytes()
    different, different_mask = draw(4, 70, 90)
    assert (image != different).any()
    assert (mask != different_mask).any()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (97, 61)])
def test_shapes_and_values(height: int, width: int) -> None:
    image, mask = draw(0, height, width)
    assert image.shape == (height, width, 3)
    assert mask.shape == (height, width)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}


def test_polyps_are_of_all_sizes_and_never_in_the_black_frame() -> None:
    shares = []
    for seed in range(50):
        image, mask = draw(seed, 64, 80)
        shares.append(mask.mean())
        assert not mask[0, 0] and not mask[-1, -1]  # the frame's corners
        assert image[mask == 1].mean() > 20  # what is marked can be seen
        assert image[mask == 0].std() > 10  # and there is something else
    assert 0.003 < min(shares) < 0.05
    assert 0.2 < max(shares) < 0.5
    assert 0.06 < np.median(shares) < 0.18


def test_a_polyp_is_where_the_mask_says() -> None:
    """The picture changes more across the mask's outline than elsewhere within the frame."""
    across, elsewhere = [], []
    for seed in range(20):
        image, mask = draw(seed, 96, 96)
        steps = cv2.morphologyEx(cv2.GaussianBlur(image, (3, 3), 0), cv2.MORPH_GRADIENT, np.ones((3, 3))).max(
            2
        )
        outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        visible = cv2.erode((image.max(2) > 20).astype(np.uint8), np.ones((9, 9))) > 0
        across.append(steps[outline & visible].mean())
        elsewhere.append(steps[~outline & visible].mean())
    assert np.mean(across) > 1.5 * np.mean(elsewhere)


def test_prepare_makes_a_whole_set_once(tmp_path: Path) -> None:
    synthetic = Synthetic(root=str(tmp_path / "a" / "b"), **SMALL)
    folder = synthetic.prepare()
    assert folder == tmp_path / "a" / "b" / f"10x32_seed0_v{Synthetic.version}"
    check_complete(folder, 10, 32)
    assert list(folder.parent.iterdir()) == [folder]  # nothing is left over
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert synthetic.prepare() == folder
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_seed_names_and_makes_another_set(tmp_path: Path) -> None:
    folders = [Synthetic(root=str(tmp_path), drawing_seed=seed, **SMALL).prepare() for seed in (0, 1)]
    bytes_of = [{path.read_bytes() for path in (folder / "images").iterdir()} for folder in folders]
    assert len(bytes_of[0]) == 10
    assert not bytes_of[0] & bytes_of[1]


def test_the_cache_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Synthetic(**SMALL).prepare().parent == tmp_path / "polyp" / "synthetic"


def test_what_a_killed_process_left_is_not_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    # As if killed: drawing stops half-way and nothing is cleaned up.
    monkeypatch.setattr("tempfile.TemporaryDirectory.cleanup", lambda self: self._finalizer.detach())
    monkeypatch.setattr("os.rename", killed)
    with pytest.raises(KeyboardInterrupt):
        Synthetic(root=str(tmp_path), **SMALL).prepare()
    assert len(list(tmp_path.rglob("*.jpg"))) == 10
    monkeypatch.undo()
    folder = Synthetic(root=str(tmp_path), **SMALL).prepare()
    check_complete(folder, 10, 32)


def test_two_processes_end_with_one_set(tmp_path: Path) -> None:
    code = (
        "import sys; from polyp.data.sources import Synthetic as S; print(S(sys.argv[1], 30, 32).prepare())"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    check_complete(Path(outputs[0]), 30, 32)
    assert list(tmp_path.iterdir()) == [Path(outputs[0])]


def test_the_slower_of_two_keeps_the_set_of_the_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, draw_dataset = Synthetic(root=str(tmp_path), **SMALL), sources.draw_dataset

    def overtaken(*arguments: Any) -> None:
        draw_dataset(*arguments)
        monkeypatch.undo()
        Synthetic(root=str(tmp_path), **SMALL).prepare()
        (tmp_path / late.prepare().name / "images" / "synthetic_0000.jpg").write_bytes(b"theirs")

    monkeypatch.setattr(sources, "draw_dataset", overtaken)
    folder = late.prepare()
    assert (folder / "images" / "synthetic_0000.jpg").read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 3}, r"data\.count=3: "),
        ({"size": 31}, r"data\.size=31: "),
        ({"drawing_seed": -1}, r"data\.drawing_seed=-1: "),
    ],
)
def test_bad_values_are_refused(tmp_path: Path, values: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Synthetic(root=str(tmp_path), **values).prepare()
    assert not list(tmp_path.iterdir())


def test_a_set_that_lost_files_is_refused(tmp_path: Path) -> None:
    folder = Synthetic(root=str(tmp_path), **SMALL).prepare()
    (folder / "masks" / "synthetic_0004.png").unlink()
    with pytest.raises(InputError, match="delete it"):
        Synthetic(root=str(tmp_path), **SMALL).prepare()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*data\.root=FOLDER"):
        Synthetic(root=str(tmp_path / "file"), **SMALL).prepare()
