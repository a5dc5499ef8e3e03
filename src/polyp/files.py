"""Files: written in one piece or not at all, read as plain data."""

import errno
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from polyp.errors import InputError, describe_error, printable


class WriteError(InputError):
    """A file cannot be written: the disk is full, or the folder is read-only."""


class DamagedError(InputError):
    """A file is not what was written: empty, cut short or altered."""


DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""What the system says where a disk is full, over its quota, read-only or broken."""

PROBE = 2**16
"""Bytes that are written to find out whether a folder can be written."""


def check_writable(folder: Path) -> None:
    """Find out whether files can be written to a folder, which need not exist; nothing is left behind.

    Raises:
        WriteError: there is a file in its place, it is read-only, or the disk is full.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise WriteError(f"cannot write to {folder}: {existing} is a file")
    try:
        with tempfile.TemporaryFile(dir=existing) as stream:
            stream.write(bytes(PROBE))
            stream.flush()
    except OSError as error:
        raise WriteError(f"cannot write to {folder} ({describe_error(error)})") from error


@contextmanager
def catch_disk_errors(way_out: str) -> Iterator[None]:
    """Turn an error of the disk into a WriteError, wherever it was met: in a library, or in a library's
    thread.

    Libraries wrap such errors in their own; TensorBoard's writer raises them in its thread as well, where
    they would be printed with a traceback.

    Args:
        way_out: what to do, the end of the message.

    Raises:
        WriteError: the disk is full, read-only or broken.
    """
    print_exception = threading.excepthook

    def print_others(arguments: threading.ExceptHookArgs) -> None:
        if find_disk_error(arguments.exc_value) is None:
            print_exception(arguments)

    threading.excepthook = print_others
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # only those of the disk are caught
        if (cause := find_disk_error(error)) is None:
            raise
        where = f"{cause.filename}: " if cause.filename else ""
        raise WriteError(f"{where}{describe_error(cause)}: {way_out}") from error
    finally:
        threading.excepthook = print_exception


def find_disk_error(error: BaseException | None) -> OSError | None:
    """The error of the disk that an exception was caused by; None if it was not."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK:
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Write a file in one piece: yields a temporary path in the same folder, which becomes `file` at the end.

    The content is on the disk (fsync) before the file has its name. If anything is raised, `file` stays as it
    was and the temporary file is removed. The temporary name keeps the suffix, by which some libraries choose
    a format.

    Args:
        file: the file to create or replace; its folder is made if it is missing.

    Raises:
        WriteError: the file cannot be written. Errors other than OSError are raised as they are.
    """
    temporary = file.with_name(f".part-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, file)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f"cannot write {file} ({describe_error(error)})") from error


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Make a folder in one piece: yields a temporary folder beside it, which becomes `folder` at the end.

    If another process has made `folder` meanwhile, that one stays.

    Raises:
        OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as temporary:
        content = Path(temporary, "content")
        content.mkdir()
        yield content
        try:
            os.rename(content, folder)
        except OSError:
            if not folder.is_dir():
                raise


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file in one piece, see `atomic_write`."""
    with atomic_write(file) as temporary:
        temporary.write_bytes(content)


def write_text(file: Path, text: str) -> None:
    """Write a text file (UTF-8, line ends as given) in one piece, see `atomic_write`."""
    write_bytes(file, text.encode("utf-8"))


def write_json(file: Path, content: Any, indent: int = 2) -> None:
    """Write a JSON file in one piece, see `atomic_write`.

    Raises:
        ValueError: NaN or an infinity, which JSON does not have.
    """
    write_text(file, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DamagedError: the file cannot be read, is empty, cut short, or holds something else.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{file} is damaged ({describe_error(error)})") from error


def read_yaml(file: Path) -> Any:
    """The content of a YAML file as plain dicts, lists and values; interpolations such as ${oc.env:HOME} stay
    text.

    Raises:
        DamagedError: the file cannot be read, is empty, cut short, or holds no keys and no list.
    """
    from omegaconf import OmegaConf

    try:
        if not file.stat().st_size:
            raise ValueError("it is empty")
        return OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:  # there is no end to what a damaged YAML file can raise
        raise DamagedError(f"{file} is damaged ({describe_error(error)})") from error


def check_zip(file: Path) -> None:
    """Compare the content of a ZIP archive, which torch's files are, with its checksums: torch does not.

    Raises:
        ValueError: a checksum is wrong.
        BadZipFile: it is no ZIP archive, or cut short.
    """
    with ZipFile(file) as members:
        if damaged := members.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")


def walk_files(
    folder: Path, suffixes: Collection[str], problems: list[str], exclude: Path | None = None
) -> Iterator[Path]:
    """The files with some endings in a folder and its subfolders, sorted; each folder once, despite links.

    Hidden ones are left out, and the folder that archives of macOS add. What is found may be a broken link.

    Args:
        folder: the uppermost one.
        suffixes: the endings, in lower case, such as ".jpg".
        problems: takes a line for each folder that cannot be read.
        exclude: a folder that is left out, with those in it.
    """

    def report(error: OSError) -> None:
        problems.append(f"{printable(error.filename)}: the folder cannot be read ({describe_error(error)})")

    visited = {os.path.realpath(exclude)} if exclude else set()
    for parent, folders, names in os.walk(folder, onerror=report, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__MACOSX")
        for path in (Path(parent, name) for name in sorted(names) if name[0] != "."):
            if path.suffix.lower() in suffixes:
                yield path


def fingerprint(file: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
