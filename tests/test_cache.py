"""What is kept on disk: whole or not at all, never out of date, and never beside the data."""

import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from ast import literal_eval
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from polyp.data import cache
from polyp.data.cache import cache_folder, load_inspection, load_resized, resize_image, resize_mask
from polyp.data.layouts import list_pairs
from polyp.data.pairs import Pair
from polyp.errors import InputError
from polyp.images import read_image

SIZE = (24, 32)

SCRIPT = """
import sys, time
from pathlib import Path
from PIL import Image
from polyp.data import cache
from polyp.data.layouts import list_pairs
root, folder = map(Path, sys.argv[1:])
listing = list_pairs(root)
pairs, problems = listing.pairs, listing.problems
decode, files = Image.open, []
"""


def write_pair(root: Path, stem: str, seed: int, white: int = 255) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(40, 90, 2)
    mask = np.zeros((height, width), np.uint8)
    mask[5:30, 10:35] = white
    for folder, pixels in (("images", rng.integers(0, 256, (height, width, 3), np.uint8)), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{stem}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for n in range(6):
        write_pair(tmp_path / "data", f"frame{n}", n)
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images that were decoded, by `load_resized` or by `load_inspection`."""
    files: list[Path] = []

    def watched(path: Path) -> np.ndarray:
        files.append(path)
        return read_image(path)

    monkeypatch.setattr("polyp.data.pairs.read_image", watched)
    return files


def pairs_of(root: Path) -> list[Pair]:
    listing = list_pairs(root)
    assert not listing.problems
    return listing.pairs


def pixels_of(root: Path, folder: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    pixels = load_resized(pairs_of(root), [], size, folder)
    assert isinstance(pixels, np.memmap)
    return pixels


def names(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def start(script: str, root: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT + script, str(root), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


# cache_folder


def test_cache_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(True) == tmp_path / "xdg/polyp/resized"
    assert (tmp_path / "xdg/polyp/resized").is_dir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unset in ("", "relative/is/invalid"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder(True) == tmp_path / "home/.cache/polyp/resized"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder(True) == tmp_path / "home/.cache/polyp/resized"


def test_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cache_folder("~/a/b") == tmp_path / "a/b"
    assert cache_folder("c") == tmp_path / "c"
    assert names(tmp_path / "c") == []
    for off in (False, None, ""):
        assert cache_folder(off) is None


def test_users_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"data.cache=\S+/file/x cannot be written .* or data.cache=false"
    ) as caught:
        cache_folder(str(tmp_path / "file/x"))
    assert "\n" not in str(caught.value)


def test_a_temporary_folder_is_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with caplog.at_level(logging.WARNING):
        folder = cache_folder(True)
    assert folder == tmp_path / f"temporary/polyp-{os.getuid()}" and folder.is_dir()
    assert "data.cache=true cannot be written" in caplog.text and f"using {folder} instead" in caplog.text
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(
        InputError, match=r"data.cache=true cannot be written .* data.cache=FOLDER, or data.cache=false"
    ):
        cache_folder(True)


# resize_image, resize_mask


def test_images_are_averaged_and_masks_are_not() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)  # a checkerboard, grey from afar
    image = resize_image(np.dstack([board] * 3), (8, 16))
    assert image.shape == (8, 16, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
    assert np.abs(image.astype(int) - 127).max() <= 3
    mask = resize_mask(board // 255, (8, 16))
    assert mask.shape == (8, 16) and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}


def test_resizing_keeps_positions() -> None:
    square = np.zeros((60, 90), np.uint8)
    square[20:40, 30:60] = 1
    expected = np.zeros((30, 30), np.uint8)
    expected[10:20, 10:20] = 1
    assert (resize_mask(square, (30, 30)) == expected).all()
    image = resize_image(np.dstack([square * 255] * 3), (30, 30))
    assert ((image[..., 0] > 127) == expected).all()
    assert (resize_image(image, (30, 30)) == image).all()


def test_resizing_does_not_depend_on_the_memory_layout() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    planar = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
    other = torch.nn.functional.interpolate(
        planar, SIZE, mode="bilinear", antialias=True, align_corners=False
    )
    assert (other[0].permute(1, 2, 0).numpy() == resize_image(image, SIZE)).all()


# load_inspection


def test_inspection_is_kept(root: Path, folder: Path, decoded: list[Path]) -> None:
    first = load_inspection(pairs_of(root), [], folder)
    assert len(decoded) == 6
    second = load_inspection(pairs_of(root), [], folder)
    assert len(decoded) == 6
    assert second.fingerprint == first.fingerprint and type(second.fingerprint) is str
    for name in ("sizes", "shares", "thumbnails"):
        old, new = getattr(first, name), getattr(second, name)
        assert (old == new).all() and old.dtype == new.dtype


@pytest.mark.parametrize("change", ["content", "time", "more", "fewer"])
def test_changes_are_noticed(root: Path, folder: Path, decoded: list[Path], change: str) -> None:
    old = load_inspection(pairs_of(root), [], folder)
    pixels_of(root, folder)
    decoded.clear()
    path = root / "masks/frame3.png"
    if change == "content":
        times = {file: file.stat().st_mtime_ns for file in root.glob("*/frame3.png")}
        write_pair(root, "frame3", 99)
        for file, mtime in times.items():  # as a copy that keeps times does
            os.utime(file, ns=(mtime, mtime))
    elif change == "time":
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    elif change == "more":
        write_pair(root, "frame9", 9)
    else:
        for subfolder in ("images", "masks"):
            (root / subfolder / "frame3.png").unlink()
    new = load_inspection(pairs_of(root), [], folder)
    pixels = pixels_of(root, folder)
    assert len(decoded) == 2 * len(pairs_of(root)) == 2 * len(pixels)
    assert (new.fingerprint == old.fingerprint) == (change == "time")
    assert (pixels == pixels_of(root, folder.parent)).all()
    assert len(names(folder, "*.npy")) == len(names(folder, "*.npz")) == 1  # what was out of date is gone


def test_failures_are_not_kept(root: Path, folder: Path) -> None:
    write_pair(root, "frame1", 1, white=0)
    for _ in range(2):
        with pytest.raises(InputError, match=r"frame1.png: the mask is empty"):
            load_inspection(pairs_of(root), [], folder)
    assert names(folder, "*np*") == []
    assert load_inspection(pairs_of(root), [], folder, allow_empty=True).shares[1] == 0
    with pytest.raises(InputError, match=r"frame1.png: the mask is empty"):
        load_inspection(pairs_of(root), [], folder)
    with pytest.raises(InputError, match="one more"):
        load_inspection(pairs_of(root), ["one more"], folder, allow_empty=True)


# resized


def test_pixels(root: Path, folder: Path, decoded: list[Path]) -> None:
    pixels = pixels_of(root, folder)
    assert pixels.shape == (6, *SIZE, 4) and pixels.dtype == np.uint8 and not pixels.flags.writeable
    for row, pair in enumerate(pairs_of(root)):
        assert (pixels[row, ..., :3] == resize_image(read_image(pair.image), SIZE)).all()
        assert (pixels[row, ..., 3] == resize_mask(pair.read()[1], SIZE)).all()
    assert set(np.unique(pixels[..., 3])) == {0, 1}
    decoded.clear()
    assert (pixels_of(root, folder) == pixels).all() and not decoded


def test_sizes_live_side_by_side(root: Path, folder: Path, decoded: list[Path]) -> None:
    for size in (SIZE, (32, 24), SIZE, (32, 24)):
        assert pixels_of(root, folder, size).shape == (6, *size, 4)
    assert len(decoded) == 12 and len(names(folder, "*.npy")) == 2


def test_a_relative_root_is_the_same_root(
    root: Path, folder: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels_of(root, folder)
    monkeypatch.chdir(root.parent)
    pixels_of(Path("data"), folder)
    assert len(decoded) == 6


@pytest.mark.parametrize("length", [0, 3, 100, -1])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_damaged_file_is_made_again(root: Path, folder: Path, length: int, suffix: str) -> None:
    pixels, inspection = np.array(pixels_of(root, folder)), load_inspection(pairs_of(root), [], folder)
    (path,) = folder.glob(f"*.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[:length])
    assert (pixels_of(root, folder) == pixels).all()
    assert load_inspection(pairs_of(root), [], folder).fingerprint == inspection.fingerprint
    assert path.read_bytes() == content or suffix == "npz"
    with path.open("wb") as stream:
        np.save(stream, pixels[:3])
    assert (pixels_of(root, folder) == pixels).all()
    path.write_bytes(b"\x93NUMPY\x01\x00 nonsense" + content[:length])
    assert (pixels_of(root, folder) == pixels).all()
    assert load_inspection(pairs_of(root), [], folder).fingerprint == inspection.fingerprint


def flip_a_bit(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << place % 8
    file.write_bytes(content)


@pytest.mark.slow
def test_a_flipped_bit_is_noticed_wherever_it_is(
    root: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.array(pixels_of(root, folder))
    inspection = load_inspection(pairs_of(root), [], folder)
    (file,) = folder.glob("*.npy")
    header = file.stat().st_size - len(pixels) * (SIZE[0] * SIZE[1] * 4 + 4)
    for place in (0, 9, 30, header, header + 5000, header + SIZE[0] * SIZE[1] * 4, file.stat().st_size - 1):
        caplog.clear()
        flip_a_bit(file, place)
        assert (pixels_of(root, folder) == pixels).all()
        assert [str(file) in record.message for record in caplog.records] == [True], place
    (file,) = folder.glob("*.npz")
    for place in range(0, file.stat().st_size, 37):  # spare bytes of the format may do without
        flip_a_bit(file, place)
        second = load_inspection(pairs_of(root), [], folder)
        assert second.fingerprint == inspection.fingerprint, place
        for name in ("sizes", "shares", "thumbnails"):
            assert (getattr(second, name) == getattr(inspection, name)).all(), (name, place)
        if cache.log.name in {record.name for record in caplog.records}:
            assert str(file) in caplog.records[-1].message


def test_a_damaged_file_that_cannot_be_replaced_gets_one_line(root: Path, folder: Path) -> None:
    pixels_of(root, folder)
    (file,) = folder.glob("*.npy")
    flip_a_bit(file, file.stat().st_size // 2)
    lock = file.with_name(f"{file.name.split('-')[0]}.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()  # as good as a folder that cannot be written; to root every folder can
    with pytest.raises(InputError) as caught:
        pixels_of(root, folder)
    text = str(caught.value)
    assert str(file) in text and "data.cache=" in text and "\n" not in text


def test_resizing_inspects_in_the_same_pass(root: Path, folder: Path, decoded: list[Path]) -> None:
    pixels = pixels_of(root, folder)
    inspection = load_inspection(pairs_of(root), [], folder)
    assert len(decoded) == 6
    (folder / "apart").mkdir()
    apart = load_inspection(pairs_of(root), [], folder / "apart")
    assert (pixels_of(root, folder / "apart") == pixels).all() and apart.fingerprint == inspection.fingerprint


def test_problems_of_all_files_are_reported_before_anything_is_kept(root: Path, folder: Path) -> None:
    write_pair(root, "frame1", 1, white=0)
    (root / "images/frame5.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2 problems(?s:.*)frame5\.png(?s:.*)frame1\.png"):
        pixels_of(root, folder)
    assert names(folder, "*-*") == []


def test_without_a_cache_nothing_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    old = sorted(tmp_path.rglob("*"))
    folder = cache_folder(False)
    assert load_resized(pairs_of(root), [], SIZE, folder) is None
    assert len(load_inspection(pairs_of(root), [], folder).shares) == 6
    assert sorted(tmp_path.rglob("*")) == old


def test_the_data_folder_is_only_read(root: Path, folder: Path) -> None:
    def state() -> list[tuple[Path, int]]:
        return [(path, path.stat().st_mtime_ns) for path in sorted([root, *root.rglob("*")])]

    old = state()
    folders = [root / "images", root / "masks", root]
    for each in folders:
        each.chmod(0o555)
    pixels_of(root, folder)
    load_inspection(pairs_of(root), [], folder)
    for each in folders:
        each.chmod(0o755)
    assert state() == old


def test_an_unreadable_image_leaves_nothing(root: Path, folder: Path) -> None:
    (root / "images/frame5.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"frame5.png: not a readable image"):
        load_resized(pairs_of(root), [], SIZE, folder)
    assert names(folder, "*-*") == []


# processes


def test_one_of_four_processes_builds(root: Path, folder: Path) -> None:
    script = """
import hashlib
from multiprocessing import get_context
Image.open = lambda *a, **b: (files.append(1), time.sleep(.05), decode(*a, **b))[-1]
def work(barrier, queue):
    barrier.wait()
    pixels = cache.load_resized(pairs, problems, (24, 32), folder)
    queue.put((len(files), hashlib.sha256(pixels.tobytes()).hexdigest()))
fork = get_context("fork")
barrier, queue = fork.Barrier(4), fork.Queue()
for _ in range(4): fork.Process(target=work, args=(barrier, queue)).start()
print(sorted(queue.get(timeout=30) for _ in range(4)))
"""
    output, _ = start(script, root, folder).communicate(timeout=60)
    answers = literal_eval(output)
    assert [count for count, _ in answers] == [0, 0, 0, 12]
    assert len({digest for _, digest in answers}) == 1
    assert len(names(folder, "*-*")) == 2  # pixels and inspection


def test_killed_build_leaves_no_valid_file(root: Path, folder: Path, decoded: list[Path]) -> None:
    script = """
Image.open = lambda *a, **b: (files.append(1), time.sleep(600 if len(files) > 60 else 0), decode(*a, **b))[-1]
cache.load_resized(pairs, problems, (24, 32), folder)
"""
    for n in range(6, 40):
        write_pair(root, f"frame{n}", n)
    process = start(script, root, folder)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 4096 for path in folder.glob(".part-*.npy")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert names(folder, "[!.]*-*") == [] and len(names(folder, ".part-*")) == 2
    write_pair(root, "frame99", 99)  # the data change too, so that the parts are of another name
    assert len(pixels_of(root, folder)) == 41 and len(decoded) == 41
    assert len(names(folder, "*-*")) == 2


def test_full_disk_is_reported_and_leaves_no_file(root: Path, folder: Path) -> None:
    pairs, limits = pairs_of(root), resource.getrlimit(resource.RLIMIT_FSIZE)
    for make in (
        lambda: load_resized(pairs, [], SIZE, folder),
        lambda: load_inspection(pairs * 20, [], folder),
    ):
        # Python ignores the signal: it is an OSError
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            with pytest.raises(InputError) as caught:
                make()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        text = str(caught.value)
        assert text.startswith(f"cannot write {folder}/") and "(File too large): free some space" in text
        assert text.endswith("data.cache=FOLDER elsewhere, or data.cache=false") and "\n" not in text
        assert names(folder, "*-*") == []
