"""Kvasir-SEG: found on the disk, unpacked from its archive, or downloaded; always checked against the owners' files."""

import csv
import hashlib
import logging
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar
from urllib.parse import urlsplit
from zipfile import ZipFile, ZipInfo

from filelock import FileLock
from platformdirs import user_cache_path

from polyp.data.download import DownloadError, fetch
from polyp.errors import InputError, describe_error

log = logging.getLogger(__name__)

MANIFEST = Path(__file__).with_name("kvasir_seg.csv")  # stem,width,height,image_sha,mask_sha of the owners' files
OWNERS = "https://datasets.simula.no/downloads/kvasir-seg.zip"
HYPER_KVASIR = "https://datasets.simula.no/downloads/hyper-kvasir/hyper-kvasir-segmented-images.zip"
ADDRESSES: dict[str, str | None] = {  # in the order of trial, with the SHA-256 where one is published
    OWNERS: None,
    HYPER_KVASIR: "4463011f991dcdc74ec56399788b1a93822593f17ed18a662bdeb7392ffcdd9a",
}
MAX_BYTES = 50_000_000  # of one unpacked file; the biggest real one has half a million


@dataclass(frozen=True)
class KvasirSeg:
    """Where Kvasir-SEG is or shall be.

    Args:
        root: the folder that holds `images/` and `masks/`, or an empty or absent one to make them in; by default one in
            the user's cache.
        archive: the owners' zip, or HyperKvasir's of the segmented images; by default it is downloaded.
    """

    root: str | None = None
    archive: str | None = None

    images: ClassVar[str] = "images"
    masks: ClassVar[str] = "masks"
    published_split: ClassVar[str] = "official"  # what `polyp data` looks at by default

    def present(self) -> Path | None:
        """The folder that holds `images/` and `masks/`, if it is there already; nothing is checked or written."""
        return _found(Path(self.root).expanduser() if self.root else user_cache_path("polyp") / "kvasir-seg")

    def check(self) -> None:
        """Check what is given, before anything is unpacked or downloaded.

        Raises:
            InputError: there is something else in the folder, or the archive cannot be read.
        """
        if self.present() is not None:
            return
        if self.archive:
            _check_archive(Path(self.archive).expanduser())
        elif self.root:
            _check_empty(Path(self.root).expanduser())

    def prepare(self) -> Path:
        """Find, unpack or download the data set. A whole one that is already there is only read.

        Returns:
            The folder that holds `images/` and `masks/`: 1000 JPEGs each, of equal stems.

        Raises:
            InputError: folder or archive are not Kvasir-SEG, the folder cannot be written, or the download fails.
        """
        home = Path(self.root).expanduser() if self.root else user_cache_path("polyp") / "kvasir-seg"
        try:
            if not _found(home):
                self._make(home)
            return _checked(_found(home) or home)
        except OSError as error:
            way_out = "give a folder that can be written, with 100 MiB free, as data.root=, a zip file as data.archive="
            raise InputError(f"cannot use the folder {home} ({describe_error(error)}): {way_out}") from error

    def _make(self, home: Path) -> None:
        if self.root and not self.archive:
            _check_empty(home)
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock"):
            if _found(home):
                log.info("%s was made by another process meanwhile", home)
            elif (folder := home / "Kvasir-SEG").exists():
                raise InputError(f"{folder} lacks images/ or masks/: delete it, or give another folder as data.root=")
            elif self.archive:
                _unpack_given(Path(self.archive).expanduser(), home)
            else:
                _download_any(home)


class _FailedError(Exception):
    """An archive will not do. The message is a clause for an InputError."""


# ---- what Kvasir-SEG is


def _manifest() -> dict[str, str]:
    """The first 12 digits of each file's SHA-256, by its name below the data set's folder."""
    with MANIFEST.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {f"{kind}s/{row['stem']}.jpg": row[f"{kind}_sha"] for kind in ("image", "mask") for row in rows}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _found(home: Path) -> Path | None:
    folders = (home, home / "Kvasir-SEG", home / "segmented-images")
    return next((f for f in folders if (f / "images").is_dir() and (f / "masks").is_dir()), None)


def _check_empty(home: Path) -> None:
    try:
        if not home.exists() or not any(path.name[0] != "." for path in home.iterdir()):
            return
    except OSError as error:  # it is a file, say
        raise InputError(f"data.root={home} cannot be read ({describe_error(error)}): give a folder") from error
    way_out = "give the folder that has them, or an empty one to download into, or data.archive=PATH.zip"
    raise InputError(f"data.root={home} has no images/ and masks/: {way_out}")


def _checked(folder: Path) -> Path:
    wanted = _manifest()
    names = {f"{kind}/{path.name}" for kind in ("images", "masks") for path in (folder / kind).glob("[!.]*.jpg")}
    if problem := _difference(names, wanted):
        way_out = f"repair or delete it; if it is another data set, give data=folder data.root={folder}"
        raise InputError(f"{folder} {problem}: {way_out}")
    if changed := sum(_sha((folder / name).read_bytes()) != sha for name, sha in wanted.items()):
        log.warning("%s: %d of %d files differ from the owners' release", folder, changed, len(wanted))
    return folder


def _difference(names: set[str], wanted: dict[str, str]) -> str:
    """What is missing and what is unknown, as a clause; empty if nothing is."""
    sides = {
        f"lacks {{}} of Kvasir-SEG's {len(wanted)} files": sorted(wanted.keys() - names),
        "has {} files that are not Kvasir-SEG's": sorted(names - wanted.keys()),
    }
    clauses = (
        f"{text.format(len(side))} ({', '.join(side[:5])}{', ...' if len(side) > 5 else ''})"
        for text, side in sides.items()
        if side
    )
    return " and ".join(clauses)


# ---- archives


def _check_archive(archive: Path) -> None:
    try:
        archive.open("rb").close()
    except OSError as error:
        way_out = "give the path of the zip file; a folder goes to data.root="
        raise InputError(f"data.archive={archive} cannot be read ({describe_error(error)}): {way_out}") from error


def _unpack_given(archive: Path, home: Path) -> None:
    _check_archive(archive)
    try:
        _unpack(archive, home)
    except _FailedError as error:
        raise InputError(f"data.archive={archive} {error}: delete it and download {OWNERS} again") from error


def _unpack(archive: Path, home: Path, sha256: str | None = None) -> None:
    """Unpack to `home`/Kvasir-SEG, which appears only when it is whole and verified, or raise _FailedError."""
    folder, temporary = home / "Kvasir-SEG", home / ".unpacking"
    shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left it
    try:
        for kind in ("images", "masks"):
            (temporary / kind).mkdir(parents=True)
        for name, data in _contents(archive, sha256):
            (temporary / name).write_bytes(data)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("unpacked %s to %s", archive, folder)


def _contents(archive: Path, sha256: str | None) -> Iterator[tuple[str, bytes]]:
    """Kvasir-SEG's files, each under its name in the manifest whatever the archive calls its folder, and verified."""
    wanted = _manifest()
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 and digest != sha256:
                raise _FailedError(f"has the SHA-256 {digest[:12]}..., not {sha256[:12]}...")
            with ZipFile(file) as zipped:
                members = _members(zipped)
                if problem := _difference(set(members), wanted):
                    raise _FailedError(problem)
                for name, sha in wanted.items():
                    data = zipped.read(members[name])
                    # A published SHA-256 vouches for the whole, should it not be the owners' byte for byte.
                    if _sha(data) != sha and digest not in ADDRESSES.values():
                        raise _FailedError(f"has a file other than the owners' ({name})")
                    yield name, data
    except _FailedError:
        raise
    except Exception as error:  # there is no end to what a damaged zip can raise
        raise _FailedError(f"is cut short, damaged or not a zip file ({describe_error(error)})") from error


def _members(zipped: ZipFile) -> dict[str, ZipInfo]:
    """The JPEGs by the last two parts of their names, such as images/x.jpg; nothing is written under other names."""
    members = {}
    for info in zipped.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(info.external_attr >> 16):
            raise _FailedError(f"has a member that leads outside ({info.filename})")
        if info.file_size > MAX_BYTES:
            raise _FailedError(f"has a member of {info.file_size} bytes ({info.filename})")
        if path.match("images/[!.]*.jpg") or path.match("masks/[!.]*.jpg"):
            members["/".join(path.parts[-2:])] = info
    return members


# ---- download


def _download_any(home: Path) -> None:
    failures = []
    for address, sha256 in ADDRESSES.items():
        try:
            return _download(address, sha256, home)
        except (DownloadError, _FailedError) as error:
            log.info("%s", error)
            failures.append(str(error))
    way_out = f"download {next(iter(ADDRESSES))} in a browser and give it as data.archive=PATH.zip"
    raise InputError(f"{'; '.join(dict.fromkeys(failures))}: {way_out}")


def _download(address: str, sha256: str | None, home: Path) -> None:
    archive = home / f".{PurePosixPath(urlsplit(address).path).name}"
    part = archive.with_name(f"{archive.name}.part")
    fresh = not archive.exists() and not part.exists()
    if not archive.exists():
        fetch(address, part)
        part.replace(archive)
    try:
        _unpack(archive, home, sha256)
    except _FailedError as error:
        archive.unlink()
        if fresh:
            raise _FailedError(f"what {address} sent {error}") from error
        log.info("the continued download %s: once more from the start", error)
        return _download(address, sha256, home)
    archive.unlink()
