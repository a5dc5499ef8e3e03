"""The cache: the inspection of a data set, and its images and masks at the network's size."""

import hashlib
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch.nn.functional import interpolate

from polyp.data.pairs import Inspection, Pair, Visit, inspect, map_pairs
from polyp.errors import InputError, describe_error
from polyp.files import WriteError, atomic_write, check_zip
from polyp.images import resize

log = logging.getLogger(__name__)
T = TypeVar("T")

FORMAT = 4  # of the files' pixels and layout: files of another format are built again


class CacheError(WriteError):
    """The cache cannot be written."""


def cache_folder(setting: bool | str | None) -> Path | None:
    """The folder for the setting `data.cache`, which is made if necessary; None if nothing is cached.

    Args:
        setting: true for polyp/resized in the user's cache folder, false for no cache, or a folder.

    Raises:
        InputError: the folder cannot be made or written. For true, a temporary folder is tried first, with a
            warning.
    """
    if not setting:
        return None
    try:
        if setting is True:
            return _make_writable(user_cache_path("polyp") / "resized")
        return _make_writable(Path(setting).expanduser().absolute())
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        reason = f"data.cache={'true' if setting is True else setting} cannot be written ({error})"
        if setting is not True:
            raise InputError(f"{reason}: give another folder, or data.cache=false") from error
    fallback = Path(tempfile.gettempdir()) / f"polyp-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    try:
        _make_writable(fallback)
    except OSError as error:
        raise InputError(f"{reason}, nor can {fallback}: data.cache=FOLDER, or data.cache=false") from error
    log.warning("%s: using %s instead", reason, fallback)
    return fallback


def _make_writable(folder: Path) -> Path:
    """Make a folder, and write to it; OSError if that is not possible."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (*size, 3) uint8, as the model does when it predicts."""
    return resize(torch.from_numpy(image).permute(2, 0, 1), size).permute(1, 2, 0).contiguous().numpy()


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) uint8 to `size` by the nearest pixel: a mask in {0, 1} stays one."""
    return interpolate(torch.from_numpy(mask)[None, None], tuple(size), mode="nearest-exact")[0, 0].numpy()


def load_inspection(
    pairs: Sequence[Pair],
    problems: Sequence[str],
    cache: Path | None,
    allow_empty: bool = False,
    visit: Visit | None = None,
) -> Inspection:
    """`inspect`, whose result is cached until a file of the data set changes; failures are not cached.

    Raises:
        InputError: as `inspect`, or the cache cannot be written.
    """
    if cache is None or problems:
        return inspect(pairs, problems, allow_empty)

    def read(file: Path) -> Inspection:
        check_zip(file)
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            texts = {name: str(arrays[name]) for name in ("fingerprint", "notes")}
            return Inspection(**{**arrays, **texts})

    def build(stream: BinaryIO) -> None:
        np.savez(stream, **vars(inspect(pairs, problems, allow_empty, visit)))

    return _load_or_build(cache / f"{_key(pairs, 'inspection', allow_empty)}.npz", read, build)


def load_resized(
    pairs: Sequence[Pair],
    problems: Sequence[str],
    size: tuple[int, int],
    cache: Path | None,
    allow_empty: bool = False,
) -> np.ndarray | None:
    """All pairs at one size, as a read-only memory map (N, *size, 4) uint8: red, green, blue, mask in {0, 1}.

    The file holds a CRC-32 for each pair, which is verified here. If the inspection is not cached either, it
    is made in the same pass, so that each file is decoded once.

    Args:
        pairs: all of the data set: what is cached for its folders and size is replaced when the pairs change.
        problems: of the search for the files.
        size: height and width in pixels.
        cache: the folder; None without a cache.
        allow_empty: accept masks without a polyp.

    Returns:
        None without a cache, or with problems, which `load_inspection` reports: decode each time.

    Raises:
        InputError: an image is unreadable or wrong, or the cache cannot be written, as on a full disk.
    """
    if cache is None or problems:
        return None
    record = np.dtype([("pixels", "u1", (*size, 4)), ("checksum", "<u4")])

    def read(file: Path) -> np.ndarray:
        rows = np.lib.format.open_memmap(file, mode="r")
        if rows.shape != (len(pairs),) or rows.dtype != record:
            raise ValueError("its header is wrong")
        with ThreadPoolExecutor() as pool:
            checksums = list(pool.map(zlib.crc32, rows["pixels"]))
        if wrong := np.count_nonzero(rows["checksum"] != checksums):
            raise ValueError(f"wrong checksums: {wrong} of {len(rows)}")
        return rows["pixels"]

    def build(stream: BinaryIO) -> None:
        # Ordinary writes: a full disk is an OSError here, while in a writable memory map it would be a crash.
        descr = np.lib.format.dtype_to_descr(record)
        header = {"descr": descr, "fortran_order": False, "shape": (len(pairs),)}
        np.lib.format.write_array_header_1_0(stream, header)
        start, lock = stream.tell(), Lock()

        def write(number: int, image: np.ndarray, mask: np.ndarray) -> None:
            pixels = np.dstack((resize_image(image, size), resize_mask(mask, size))).tobytes()
            with lock:
                stream.seek(start + number * record.itemsize)
                stream.write(pixels + zlib.crc32(pixels).to_bytes(4, "little"))

        load_inspection(pairs, problems, cache, allow_empty, write)
        if stream.tell() == start:  # the inspection was cached, so that nothing is written yet
            map_pairs(lambda number, pair: write(number, *pair.read()), pairs, "resizing")

    return _load_or_build(cache / f"{_key(pairs, *size)}.npy", read, build)


def _key(pairs: Sequence[Pair], *settings: object) -> str:
    """`LOCATION-STATE`, 12 hex digits each: of folders and settings, and of the files and the format."""
    folders = []
    state: list[Any] = [(pair.stem, pair.coding, pair.mask is None) for pair in pairs]
    for paths in ([pair.image for pair in pairs], [pair.mask for pair in pairs if pair.mask]):
        parents = {os.path.abspath(path.parent) for path in paths}
        folders.append(os.path.commonpath(parents) if parents else "")
        for path in paths:
            status = path.stat()
            state.append((os.path.abspath(path), status.st_size, status.st_mtime_ns))
    # The 1 keeps LOCATION as it was in format 1: files of an older format are replaced, not left behind.
    location = 1, (folders, settings)
    digests = [hashlib.sha256(repr(part).encode()).hexdigest() for part in (location, (FORMAT, state))]
    return "-".join(digest[:12] for digest in digests)


def _load_or_build(file: Path, read: Callable[[Path], T], build: Callable[[BinaryIO], None]) -> T:
    """Read a file, and build it first if it is absent or damaged: one process builds, others wait for it.

    The file appears under its name only when it is complete; then those of the same LOCATION and another
    STATE are removed, and what a killed process has left.
    """
    with suppress(Exception):  # absent or damaged: it is read again below, under the lock
        return read(file)
    location = file.name.split("-")[0]
    try:
        with FileLock(file.with_name(f"{location}.lock")):
            try:
                return read(file)  # another process has built it meanwhile
            except FileNotFoundError:
                pass
            except Exception as error:  # damaged bytes can raise anything
                log.warning("%s is damaged (%s): it is built again", file, describe_error(error))
            with atomic_write(file) as temporary, temporary.open("wb") as stream:
                build(stream)
            for stale in set(file.parent.glob(f"*{location}-*")) - {file}:
                stale.unlink(missing_ok=True)
    except CacheError:  # of the inspection, while the pixels are built
        raise
    except (OSError, NotImplementedError, WriteError) as error:  # NotImplementedError: no locks there
        reason = error if isinstance(error, WriteError) else f"cannot write {file} ({describe_error(error)})"
        advice = "free some space, or data.cache=FOLDER elsewhere, or data.cache=false"
        raise CacheError(f"{reason}: {advice}") from error
    return read(file)
