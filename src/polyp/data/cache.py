"""What is slow to make is kept on disk: the look at a data set, and its images and masks at the network's size."""

import hashlib
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO, TypeVar
from zipfile import ZipFile

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch.nn.functional import interpolate

from polyp.data.folder import Inspection, Pair, Visit, inspect, map_pairs, read_image, read_mask
from polyp.errors import InputError, describe_error
from polyp.files import WriteError, atomic_write
from polyp.images import resize

log = logging.getLogger(__name__)
T = TypeVar("T")

FORMAT = 3  # goes up when the pixels or the layout of the files change: older files are then made again


def cache_folder(setting: bool | str | None) -> Path | None:
    """The folder that `data.cache` means, made and known to be writable; None where nothing is to be kept.

    Args:
        setting: true for polyp/resized in the user's cache folder, false for no cache, or a folder.

    Raises:
        InputError: the folder cannot be made or written. For true, a temporary folder is tried first, with a warning.
    """
    if not setting:
        return None
    try:
        if setting is not True:
            return _writable(Path(setting).expanduser().absolute())
        return _writable(user_cache_path("polyp") / "resized")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        reason = f"data.cache={str(setting).lower() if setting is True else setting} cannot be written ({error})"
        if setting is not True:
            raise InputError(f"{reason}: give another folder, or data.cache=false") from error
    fallback = Path(tempfile.gettempdir()) / f"polyp-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    try:
        _writable(fallback)
    except OSError as error:
        raise InputError(f"{reason}, nor can {fallback}: data.cache=FOLDER, or data.cache=false") from error
    log.warning("%s: using %s instead", reason, fallback)
    return fallback


def _writable(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (*size, 3) uint8, as the model does when it predicts."""
    return resize(torch.from_numpy(image).permute(2, 0, 1), size).permute(1, 2, 0).contiguous().numpy()


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) uint8 to `size` by the nearest pixel: a mask in {0, 1} stays one."""
    return interpolate(torch.from_numpy(mask)[None, None], tuple(size), mode="nearest-exact")[0, 0].numpy()


def inspected(
    pairs: Sequence[Pair], problems: Sequence[str], cache: Path | None, allow_empty: bool = False
) -> Inspection:
    """`inspect`, whose answer is kept in the cache until a file of the data set changes; failures are not kept.

    Raises:
        InputError: as `inspect` does, or the cache cannot be written.
    """
    with _way_out():
        return _inspected(pairs, problems, cache, allow_empty)


def _inspected(
    pairs: Sequence[Pair],
    problems: Sequence[str],
    cache: Path | None,
    allow_empty: bool,
    visit: Visit | None = None,
) -> Inspection:
    if cache is None or problems:
        return inspect(pairs, problems, allow_empty)

    def read(file: Path) -> Inspection:
        with ZipFile(file) as members:
            if damaged := members.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            return Inspection(**{**kept, "fingerprint": str(kept["fingerprint"])})

    def build(stream: BinaryIO) -> None:
        np.savez(stream, **vars(inspect(pairs, problems, allow_empty, visit)))

    return _kept(cache / f"{_key(pairs, 'inspection', allow_empty)}.npz", read, build)


def resized(
    pairs: Sequence[Pair],
    problems: Sequence[str],
    size: tuple[int, int],
    cache: Path | None,
    allow_empty: bool = False,
) -> np.ndarray | None:
    """All pairs at one size, as a read-only memory map of shape (N, *size, 4) uint8: red, green, blue, mask in {0, 1}.

    The file holds a CRC-32 for each pair, which is verified here. Where the cache lacks the inspection as well, it is
    made in the same pass, so that each file is decoded once.

    Args:
        pairs: all of the data set: what is kept for a root and size is replaced when the pairs are others.
        problems: those that `find_pairs` met.
        size: height and width in pixels.
        cache: the folder; None where there is no cache.
        allow_empty: accept masks without a polyp.

    Returns:
        None where there is no cache, or are problems, which `inspected` reports: decode each time.

    Raises:
        InputError: an image is unreadable or wrong, or the cache cannot be written, as on a full disk.
    """
    if cache is None or problems:
        return None
    height, width = map(int, size)
    record = np.dtype([("pixels", "u1", (height, width, 4)), ("checksum", "<u4")])

    def read(file: Path) -> np.ndarray:
        rows = np.lib.format.open_memmap(file, mode="r")
        if rows.shape != (len(pairs),) or rows.dtype != record:
            raise ValueError("its header is wrong")
        with ThreadPoolExecutor() as pool:
            checksums = list(pool.map(_checksum, rows["pixels"]))
        if wrong := np.count_nonzero(rows["checksum"] != checksums):
            raise ValueError(f"wrong checksums: {wrong} of {len(rows)}")
        return rows["pixels"]

    def build(stream: BinaryIO) -> None:
        # Ordinary writes: a full disk is an OSError here, while in a writable memory map it would be a crash.
        header = {"descr": np.lib.format.dtype_to_descr(record), "fortran_order": False, "shape": (len(pairs),)}
        np.lib.format.write_array_header_1_0(stream, header)
        start, lock, written = stream.tell(), Lock(), set[int]()

        def write(number: int, image: np.ndarray, mask: np.ndarray) -> None:
            pixels = np.dstack((resize_image(image, (height, width)), resize_mask(mask, (height, width))))
            row = pixels.tobytes() + _checksum(pixels).to_bytes(4, "little")
            with lock:
                stream.seek(start + number * len(row))
                stream.write(row)
                written.add(number)

        _inspected(pairs, problems, cache, allow_empty, write)
        if not written:  # the inspection was in the cache
            map_pairs(
                lambda number, pair: write(number, read_image(pair.image), read_mask(pair.mask)), pairs, "resizing"
            )

    with _way_out():
        return _kept(cache / f"{_key(pairs, height, width)}.npy", read, build)


def _checksum(pixels: np.ndarray) -> int:
    return zlib.crc32(pixels.data)


def _key(pairs: Sequence[Pair], *settings: object) -> str:
    """`WHERE-STATE`: 12 hex digits for the folders and settings, and 12 for the state of every file and the format."""
    where = [os.path.abspath(path.parent) for path in (pairs[0].image, pairs[0].mask)], settings
    files = [path for pair in pairs for path in (pair.image, pair.mask)]
    state = [(os.path.abspath(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    # The 1 keeps WHERE as it was in format 1: files of an older format are replaced, not left behind.
    return "-".join(hashlib.sha256(repr(part).encode()).hexdigest()[:12] for part in ((1, where), (FORMAT, state)))


def _kept(file: Path, read: Callable[[Path], T], build: Callable[[BinaryIO], None]) -> T:
    """Read a file, and build it first if it is absent or damaged: one process builds, others wait for it.

    The file appears under its name only when it is complete; then those of the same WHERE and another STATE go, with
    what a killed process has left.
    """
    with suppress(Exception):  # absent or damaged: it is read again below, alone
        return read(file)
    where = file.name.split("-")[0]
    try:
        with FileLock(file.with_name(f"{where}.lock")):
            try:
                return read(file)  # another process has built it meanwhile
            except FileNotFoundError:
                pass
            except Exception as error:  # there is no end to what damaged bytes can raise
                log.warning("%s is damaged (%s): it is built again", file, describe_error(error))
            with atomic_write(file) as temporary, temporary.open("wb") as stream:
                build(stream)
            for stale in set(file.parent.glob(f"*{where}-*")) - {file}:
                stale.unlink(missing_ok=True)
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        raise WriteError(f"cannot write {file} ({describe_error(error)})") from error
    return read(file)


@contextmanager
def _way_out() -> Iterator[None]:
    try:
        yield
    except WriteError as error:
        raise WriteError(f"{error}: free some space, or data.cache=FOLDER elsewhere, or data.cache=false") from error
