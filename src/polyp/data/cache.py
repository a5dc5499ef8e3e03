"""What is slow to make is kept on disk: the look at a data set, and its images and masks at the network's size."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch.nn.functional import interpolate
from tqdm import tqdm

from polyp.data.folder import Inspection, Pair, inspect, read_image, read_mask
from polyp.errors import InputError, describe_error
from polyp.files import WriteError, atomic_write
from polyp.images import resize

log = logging.getLogger(__name__)
T = TypeVar("T")

FORMAT = 1  # goes up when the pixels or the layout of the files change: older files are then made again
BATCH = 64  # pairs in memory at a time
DAMAGED = (OSError, ValueError, KeyError, EOFError, BadZipFile)  # what an absent, short or spoilt file raises


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
    if cache is None or problems:
        return inspect(pairs, problems, allow_empty)

    def read(file: Path) -> Inspection:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            return Inspection(kept["sizes"], kept["shares"], kept["thumbnails"], str(kept["fingerprint"]))

    def build(stream: BinaryIO) -> None:
        np.savez(stream, **vars(inspect(pairs, problems, allow_empty)))

    return _kept(cache / f"{_key(pairs, 'inspection', allow_empty)}.npz", read, build)


def resized(pairs: Sequence[Pair], size: tuple[int, int], cache: Path | None) -> np.ndarray | None:
    """All pairs at one size, as a read-only memory map of shape (N, *size, 4) uint8: red, green, blue, mask in {0, 1}.

    Give it all pairs of the data set at once: what is kept for a root and size is replaced when the pairs are others.

    Returns:
        None where there is no cache: decode each time.

    Raises:
        InputError: an image is unreadable, or the cache cannot be written, as on a full disk.
    """
    if cache is None:
        return None
    height, width = map(int, size)
    shape = (len(pairs), height, width, 4)

    def read(file: Path) -> np.ndarray:
        pixels = np.lib.format.open_memmap(file, mode="r")
        if pixels.shape != shape or pixels.dtype != np.uint8:
            raise ValueError(f"{file} is damaged")
        return pixels

    def build(stream: BinaryIO) -> None:
        # Ordinary writes: a full disk is an OSError here, while in a writable memory map it would be a crash.
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        progress = tqdm(_resize_all(pairs, (height, width)), "resizing", len(pairs), leave=False, disable=None, delay=3)
        for pixels in progress:
            stream.write(pixels.tobytes())

    return _kept(cache / f"{_key(pairs, height, width)}.npy", read, build)


def _resize_all(pairs: Sequence[Pair], size: tuple[int, int]) -> Iterator[np.ndarray]:
    def load(pair: Pair) -> np.ndarray:
        return np.dstack((resize_image(read_image(pair.image), size), resize_mask(read_mask(pair.mask), size)))

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(pairs), BATCH):
            yield from pool.map(load, pairs[start : start + BATCH])


def _key(pairs: Sequence[Pair], *settings: object) -> str:
    """`WHERE-STATE`: 12 hex digits for the folders and settings, and 12 for the state of every file."""
    where = [os.path.abspath(path.parent) for path in (pairs[0].image, pairs[0].mask)], settings
    files = [path for pair in pairs for path in (pair.image, pair.mask)]
    state = [(os.path.abspath(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    return "-".join(hashlib.sha256(repr((FORMAT, part)).encode()).hexdigest()[:12] for part in (where, state))


def _kept(file: Path, read: Callable[[Path], T], build: Callable[[BinaryIO], None]) -> T:
    """Read a file, and build it first if it is not there whole: one process builds, others wait for it.

    The file appears under its name only when it is complete; then those of the same WHERE and another STATE go.
    """
    try:
        return read(file)
    except DAMAGED:
        pass
    where = file.name.split("-")[0]
    try:
        with FileLock(file.with_name(f"{where}.lock")):
            try:
                return read(file)  # another process has built it meanwhile
            except DAMAGED:
                pass
            with atomic_write(file) as temporary, temporary.open("wb") as stream:
                build(stream)
            for pattern in (f"{where}-*", f".part-{where}-*"):  # the latter of a process that was killed
                for stale in set(file.parent.glob(pattern)) - {file}:
                    stale.unlink(missing_ok=True)
    except WriteError as error:
        raise WriteError(f"{error}: free some space, or data.cache=FOLDER elsewhere, or data.cache=false") from error
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        way_out = "data.cache=FOLDER elsewhere, or data.cache=false"
        raise WriteError(f"cannot write {file} ({describe_error(error)}): {way_out}") from error
    return read(file)
