"""Kvasir-SEG: found on the disk, unpacked from its archive, or downloaded; always compared with the owners' files."""

import csv
import hashlib
import logging
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar
from zipfile import ZipFile, ZipInfo

from filelock import FileLock
from platformdirs import user_cache_path

from polyp.data.download import DownloadError, download
from polyp.errors import InputError, describe_error
from polyp.files import find_disk_error, fingerprint

log = logging.getLogger(__name__)

MANIFEST = Path(__file__).with_name("kvasir_seg.csv")  # stem,width,height,image_sha,mask_sha of the owners' files
OWNERS = "https://datasets.simula.no/downloads/kvasir-seg.zip"
HYPER_KVASIR = "https://datasets.simula.no/downloads/hyper-kvasir/hyper-kvasir-segmented-images.zip"
ADDRESSES: dict[str, str | None] = {  # in the order of trial, with the SHA-256 where one is published
    OWNERS: None,
    HYPER_KVASIR: "4463011f991dcdc74ec56399788b1a93822593f17ed18a662bdeb7392ffcdd9a",
}
MAX_BYTES = 50_000_000  # of one unpacked file; the largest real one has half a million


class _ArchiveError(Exception):
    """An archive cannot be used. The message is a clause for an InputError."""


@dataclass(frozen=True)
class KvasirSeg:
    """1000 images with masks (Jha et al., MMM 2020); see `polyp.data.sources.Source` for the methods.

    Args:
        root: the folder that holds `images/` and `masks/`, or an empty or absent one to put them in; by default one in
            the user's cache folder.
        archive: the owners' zip file, or HyperKvasir's of the segmented images; by default it is downloaded.
    """

    root: str | None = None
    archive: str | None = None

    images: ClassVar[str] = "images"
    masks: ClassVar[str] = "masks"
    default_split: ClassVar[str | None] = "official"
    licence: ClassVar[str] = (
        "Kvasir-SEG may be used for research and education; cite Jha et al., Kvasir-SEG: A Segmented Polyp Dataset, "
        "MMM 2020."
    )

    @property
    def _home(self) -> Path:
        return Path(self.root).expanduser() if self.root else user_cache_path("polyp") / "kvasir-seg"

    def _find(self) -> Path | None:
        """The folder that holds `images/` and `masks/`, if it is there already."""
        folders = (self._home, self._home / "Kvasir-SEG", self._home / "segmented-images")
        return next((f for f in folders if (f / "images").is_dir() and (f / "masks").is_dir()), None)

    def available(self) -> bool:
        """Whether it was downloaded or unpacked already."""
        return self._find() is not None

    def check(self) -> None:
        """Check the arguments before anything is unpacked or downloaded.

        Raises:
            InputError: there is something else in the folder, or the archive cannot be read.
        """
        if self.available():
            return
        if self.archive:
            try:
                Path(self.archive).expanduser().open("rb").close()
            except OSError as error:
                reason = f"data.archive={self.archive} cannot be read ({describe_error(error)})"
                raise InputError(f"{reason}: give the path of the zip file; a folder goes to data.root=") from error
        elif self.root:
            try:
                empty = not self._home.exists() or all(path.name[0] == "." for path in self._home.iterdir())
            except OSError as error:  # a file, for example
                reason = f"data.root={self.root} cannot be read ({describe_error(error)})"
                raise InputError(f"{reason}: give a folder") from error
            if not empty:
                way_out = "give the folder that has them, or an empty one to download into, or data.archive=PATH.zip"
                raise InputError(f"data.root={self.root} has no images/ and masks/: {way_out}")

    def prepare(self) -> Path:
        """Find, unpack or download the data set. A complete one that is already there is only read.

        Returns:
            The folder that holds `images/` and `masks/`: 1000 JPEGs each, of equal stems.

        Raises:
            InputError: folder or archive are not Kvasir-SEG, the folder cannot be written, or the download fails.
        """
        try:
            self.check()
            folder = self._find() or self._make()
            _verify_folder(folder)
        except OSError as error:
            way_out = "give a folder that can be written, with 100 MiB free, as data.root=, a zip file as data.archive="
            raise InputError(f"cannot use the folder {self._home} ({describe_error(error)}): {way_out}") from error
        return folder

    def _make(self) -> Path:
        home, folder = self._home, self._home / "Kvasir-SEG"
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock"):
            if made := self._find():  # by another process, meanwhile
                return made
            if folder.exists():
                raise InputError(f"{folder} lacks images/ or masks/: delete it, or give another folder as data.root=")
            if not self.archive:
                _download(folder)
                return folder
            try:
                _unpack(Path(self.archive).expanduser(), folder)
            except _ArchiveError as error:
                way_out = f"delete it and download {OWNERS} again"
                raise InputError(f"data.archive={self.archive} {error}: {way_out}") from error
        return folder


def _read_manifest() -> dict[str, str]:
    """The first 12 digits of the SHA-256 of each file, by its name in the data set's folder."""
    with MANIFEST.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {f"{kind}s/{row['stem']}.jpg": row[f"{kind}_sha"] for kind in ("image", "mask") for row in rows}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _verify_folder(folder: Path) -> None:
    manifest = _read_manifest()
    names = {f"{kind}/{path.name}" for kind in ("images", "masks") for path in (folder / kind).glob("[!.]*.jpg")}
    if difference := _difference(names, set(manifest)):
        way_out = f"repair or delete it; if it is another data set, give data=folder data.root={folder}"
        raise InputError(f"{folder} {difference}: {way_out}")
    if changed := sum(_sha((folder / name).read_bytes()) != sha for name, sha in manifest.items()):
        log.warning("%s: %d of %d files differ from the owners' release", folder, changed, len(manifest))


def _difference(names: set[str], expected: set[str]) -> str:
    """The missing and the unknown names, as a clause; empty if there are none."""

    def some(names: set[str]) -> str:
        return ", ".join([*sorted(names)[:5], *["..."] * (len(names) > 5)])

    clauses = []
    if missing := expected - names:
        clauses.append(f"lacks {len(missing)} of Kvasir-SEG's {len(expected)} files ({some(missing)})")
    if unknown := names - expected:
        clauses.append(f"has {len(unknown)} files that are not Kvasir-SEG's ({some(unknown)})")
    return " and ".join(clauses)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive to a folder, which appears only when it is complete and verified.

    Raises:
        _ArchiveError: it is damaged, or not Kvasir-SEG's.
        OSError: the folder cannot be written.
    """
    manifest, temporary = _read_manifest(), folder.with_name(".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left it
    try:
        for kind in ("images", "masks"):
            (temporary / kind).mkdir(parents=True)
        published = fingerprint(archive) in ADDRESSES.values()  # then files may differ from those of the manifest
        with ZipFile(archive) as zipped:
            members = _find_members(zipped)
            if difference := _difference(set(members), set(manifest)):
                raise _ArchiveError(difference)
            for name, sha in manifest.items():
                data = zipped.read(members[name])
                if _sha(data) != sha and not published:
                    raise _ArchiveError(f"has a file other than the owners' ({name})")
                (temporary / name).write_bytes(data)
        temporary.rename(folder)
    except _ArchiveError:
        raise
    except Exception as error:  # a damaged zip file can raise anything
        if find_disk_error(error):
            raise
        raise _ArchiveError(f"is cut short, damaged or not a zip file ({describe_error(error)})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("unpacked %s to %s", archive, folder)


def _find_members(zipped: ZipFile) -> dict[str, ZipInfo]:
    """The JPEGs by the last two parts of their names, such as images/x.jpg; nothing is written under other names."""
    members = {}
    for info in zipped.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(info.external_attr >> 16):
            raise _ArchiveError(f"has a member that leads outside ({info.filename})")
        if info.file_size > MAX_BYTES:
            raise _ArchiveError(f"has a member of {info.file_size} bytes ({info.filename})")
        if path.match("images/[!.]*.jpg") or path.match("masks/[!.]*.jpg"):
            members["/".join(path.parts[-2:])] = info
    return members


def _download(folder: Path) -> None:
    """Download and unpack the first archive that can be used."""
    temporary, failures = folder.with_name(".download"), []
    for address, sha256 in ADDRESSES.items():
        try:
            return _unpack(download(address, temporary, sha256), folder)
        except DownloadError as error:
            failures.append(str(error))
        except _ArchiveError as error:
            failures.append(f"what {address} sent {error}")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        log.info("%s", failures[-1])
    way_out = f"download {next(iter(ADDRESSES))} in a browser and give it as data.archive=PATH.zip"
    raise InputError(f"{'; '.join(dict.fromkeys(failures))}: {way_out}")
