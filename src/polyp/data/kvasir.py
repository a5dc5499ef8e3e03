"""The files of Kvasir-SEG: unpacked or downloaded, and always compared with those of the owners."""

import csv
import hashlib
import logging
import shutil
import stat
from pathlib import Path, PurePosixPath
from zipfile import ZipFile, ZipInfo

from polyp.data.download import DownloadError
from polyp.data.download import download as download_file
from polyp.errors import InputError, describe_error, override_word
from polyp.files import find_disk_error, fingerprint

log = logging.getLogger(__name__)

MANIFEST = Path(__file__).with_name("kvasir_seg.csv")
"""The owners' files, with the columns stem, width, height, image_sha and mask_sha."""

OWNERS = "https://datasets.simula.no/downloads/kvasir-seg.zip"
HYPER_KVASIR = "https://datasets.simula.no/downloads/hyper-kvasir/hyper-kvasir-segmented-images.zip"
ADDRESSES: dict[str, str | None] = {  # in the order of trial, with the SHA-256 where one is published
    OWNERS: None,
    HYPER_KVASIR: "4463011f991dcdc74ec56399788b1a93822593f17ed18a662bdeb7392ffcdd9a",
}
MAX_BYTES = 50_000_000  # of one unpacked file; the largest real one has half a million


class ArchiveError(Exception):
    """An archive cannot be used. The message is a clause for an InputError."""


def verify(folder: Path) -> None:
    """Check that a folder holds Kvasir-SEG; files of other content are allowed, with a warning.

    Raises:
        InputError: a file is missing, or one is unknown.
    """
    manifest = _read_manifest()
    paths = [path for kind in ("images", "masks") for path in (folder / kind).glob("[!.]*.jpg")]
    if difference := _describe_difference(
        {path.relative_to(folder).as_posix() for path in paths}, set(manifest)
    ):
        raise InputError(
            f"{folder} {difference}: repair or delete it; if it is another data set, give data=folder "
            f"{override_word('data.root', folder)}"
        )
    if changed := sum(_sha((folder / name).read_bytes()) != sha for name, sha in manifest.items()):
        log.warning("%s: %d of %d files differ from the owners' release", folder, changed, len(manifest))


def download(folder: Path) -> None:
    """Download and unpack the first archive that can be used.

    Raises:
        InputError: there is none; the message has the reason for each address.
        OSError: the folder cannot be written.
    """
    temporary = folder.with_name(".download")
    failures = []
    for address, sha256 in ADDRESSES.items():
        try:
            return unpack(download_file(address, temporary, sha256), folder)
        except DownloadError as error:
            failures.append(str(error))
        except ArchiveError as error:
            failures.append(f"what {address} sent {error}")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    advice = f"download {next(iter(ADDRESSES))} in a browser and give it as data.archive=PATH.zip"
    raise InputError(f"{'; '.join(dict.fromkeys(failures))}: {advice}")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive to a folder, which appears only when it is complete and verified.

    Raises:
        ArchiveError: it is damaged, or not Kvasir-SEG's.
        OSError: the folder cannot be written.
    """
    manifest = _read_manifest()
    temporary = folder.with_name(".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left it
    try:
        for kind in ("images", "masks"):
            (temporary / kind).mkdir(parents=True)
        is_published = fingerprint(archive) in ADDRESSES.values()  # its files may differ from the manifest
        with ZipFile(archive) as zipped:
            members = _find_members(zipped)
            if difference := _describe_difference(set(members), set(manifest)):
                raise ArchiveError(difference)
            for name, sha in manifest.items():
                data = zipped.read(members[name])
                if _sha(data) != sha and not is_published:
                    raise ArchiveError(f"has a file other than the owners' ({name})")
                (temporary / name).write_bytes(data)
        temporary.rename(folder)
    except ArchiveError:
        raise
    except Exception as error:  # a damaged zip file can raise anything
        if find_disk_error(error):
            raise
        raise ArchiveError(f"is cut short, damaged or not a zip file ({describe_error(error)})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("unpacked %s to %s", archive, folder)


def _read_manifest() -> dict[str, str]:
    """The first 12 digits of the SHA-256 of each file, by its name in the data set's folder."""
    with MANIFEST.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {f"{kind}s/{row['stem']}.jpg": row[f"{kind}_sha"] for kind in ("image", "mask") for row in rows}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _describe_difference(names: set[str], expected: set[str]) -> str:
    """The missing and the unknown names, as a clause; empty if there are none."""
    clauses = []
    if absent := expected - names:
        clauses.append(f"lacks {len(absent)} of Kvasir-SEG's {len(expected)} files ({_list_first(absent)})")
    if unknown := names - expected:
        clauses.append(f"has {len(unknown)} files that are not Kvasir-SEG's ({_list_first(unknown)})")
    return " and ".join(clauses)


def _list_first(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5] + ["..."] * (len(names) > 5))


def _find_members(zipped: ZipFile) -> dict[str, ZipInfo]:
    """The JPEGs by the last two parts of their names, such as images/x.jpg; only those are unpacked."""
    members = {}
    for info in zipped.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(info.external_attr >> 16):
            raise ArchiveError(f"has a member that leads outside ({info.filename})")
        if info.file_size > MAX_BYTES:
            raise ArchiveError(f"has a member of {info.file_size} bytes ({info.filename})")
        if path.match("images/[!.]*.jpg") or path.match("masks/[!.]*.jpg"):
            members["/".join(path.parts[-2:])] = info
    return members
