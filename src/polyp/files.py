"""Files: written in one piece or not at all, read as plain data."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from polyp.errors import InputError, describe_error


class WriteError(InputError):
    """A file cannot be written: the disk is full, or the folder is read-only."""


class DamagedError(InputError):
    """A file is not what was written: empty, cut short or altered."""


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Write a file in one piece: yields a temporary path in the same folder, which becomes `file` at the end.

    The content is on the disk (fsync) before the file has its name. If anything is raised, `file` stays as it was and
    the temporary file is removed. The temporary name keeps the suffix, by which some libraries choose a format.

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
    """The content of a YAML file as plain dicts, lists and values; interpolations such as ${oc.env:HOME} stay text.

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


def fingerprint(file: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
