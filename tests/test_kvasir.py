"""KvasirSeg against real archives, a real HTTP(S) server on the loopback and real processes."""

import csv
import hashlib
import io
import ipaddress
import logging
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from polyp.data import download, kvasir
from polyp.data.sources import KvasirSeg
from polyp.errors import InputError

Files = dict[str, bytes]  # by the name below the data set's folder
STEMS = [f"frame{i:02d}" for i in range(12)]
NAME = "/kvasir-seg.zip"


def jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


def zip_of(
    files: Files, top: str = "Kvasir-SEG/", extra: tuple[tuple[str | zipfile.ZipInfo, bytes], ...] = ()
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr(f"{top}kavsir_bboxes.json", "{}")
        for name, data in files.items():
            zipped.writestr(top + name, data)
        for member, data in extra:
            zipped.writestr(member, data)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def files() -> Files:
    return {
        f"{kind}/{stem}.jpg": jpeg(2 * i + (kind == "masks"))
        for i, stem in enumerate(STEMS)
        for kind in ("images", "masks")
    }


@pytest.fixture(scope="session")
def zipped(files: Files) -> bytes:
    return zip_of(files)


@pytest.fixture(autouse=True)
def small_world(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest of 12 pairs, a cache of one's own, and no address to go to but the test's."""
    manifest = tmp_path / "manifest.csv"
    with manifest.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["stem", "width", "height", "image_sha", "mask_sha"])
        for stem in STEMS:
            shas = (
                hashlib.sha256(files[f"{kind}/{stem}.jpg"]).hexdigest()[:12] for kind in ("images", "masks")
            )
            rows.writerow([stem, 64, 48, *shas])
    monkeypatch.setattr(kvasir, "MANIFEST", manifest)
    monkeypatch.setattr(kvasir, "ADDRESSES", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def lay(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def refused(data: KvasirSeg, *parts: str) -> str:
    """prepare() raises an InputError of one line that has all the parts."""
    with pytest.raises(InputError) as caught:
        data.prepare()
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    return text


# ---- a server


class Server(ThreadingHTTPServer):
    """Serves `files` by path. `cuts` are byte counts after which the next answers close, or stall if `stall`
    is set.
    """

    daemon_threads = True

    def __init__(self, files: Files, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.sized, self.pause = files, True, 0.0
        self.cuts: list[int] = []
        self.stall: threading.Event | None = None
        self.requests: list[str] = []
        if tls:  # the handshake is left to the answering thread
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.base = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(self.path)
        data = server.files.get(self.path)
        if data is None:
            return self.send_error(404)
        self.send_response(200)
        if server.sized:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        body = data[: server.cuts.pop(0) if server.cuts else None]
        for i in range(0, len(body), 1 << 14):
            self.wfile.write(body[i : i + (1 << 14)])
            time.sleep(server.pause)
        if server.stall and len(body) < len(data):
            self.wfile.flush()
            server.stall.wait(10)


@contextmanager
def serving(files: Files, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server(files, tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(zipped: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving({NAME: zipped}) as server:
        monkeypatch.setattr(kvasir, "ADDRESSES", {server.base + NAME: None})
        yield server


# ---- folders


@pytest.mark.parametrize("below", [".", "Kvasir-SEG", "segmented-images"])
def test_a_users_folder_is_used_and_left_untouched(files: Files, tmp_path: Path, below: str) -> None:
    root = tmp_path / "mine"
    folder = lay(root / below, files | {"images/._frame00.jpg": b"resource fork", "masks/Thumbs.db": b""})

    def state() -> list[tuple[str, int, int]]:
        return sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in [root, *root.rglob("*")])

    before = state()
    assert KvasirSeg(root=str(root)).prepare() == folder
    assert state() == before


def test_repacked_files_are_used_with_a_warning(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay(tmp_path / "mine", files | {"images/frame00.jpg": jpeg(99), "masks/frame03.jpg": jpeg(98)})
    assert KvasirSeg(root=str(tmp_path / "mine")).prepare() == tmp_path / "mine"
    assert "2 of 24 files differ" in caplog.text


def test_the_owners_files_give_no_warning(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    KvasirSeg(root=str(lay(tmp_path / "mine", files))).prepare()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_missing_and_unknown_stems_are_named(files: Files, tmp_path: Path) -> None:
    wrong = {name: data for name, data in files.items() if not name.startswith("images/frame0")}
    folder = lay(tmp_path / "mine", wrong | {"masks/other.jpg": b""})
    text = refused(
        KvasirSeg(root=str(folder)),
        str(folder),
        "lacks 10 of",
        "images/frame04.jpg, ...",
        "data=folder data.root=",
    )
    assert "has 1 files" in text and "masks/other.jpg" in text and "frame05" not in text


def test_a_folder_of_something_else_is_not_downloaded_into(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "thesis.tex").write_text("")
    refused(KvasirSeg(root=str(root)), f"data.root={root}", "images/ and masks/", "data.archive=")
    assert [p.name for p in root.iterdir()] == ["thesis.tex"] and not server.requests


def test_half_a_folder_in_the_way_is_reported_before_any_download(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache/polyp/kvasir-seg/Kvasir-SEG/images").mkdir(parents=True)
    refused(KvasirSeg(), "Kvasir-SEG lacks images/ or masks/", "delete it")
    assert not server.requests


def test_a_root_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(KvasirSeg(root=str(root)), str(root), "data.root=")


def test_a_home_directory_is_understood(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    lay(tmp_path / "mine", files)
    (tmp_path / "my.zip").write_bytes(zip_of(files))
    assert KvasirSeg(root="~/mine").prepare() == tmp_path / "mine"
    assert KvasirSeg(root="~/new", archive="~/my.zip").prepare() == tmp_path / "new/Kvasir-SEG"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert KvasirSeg(archive="~/my.zip").prepare() == tmp_path / ".cache/polyp/kvasir-seg/Kvasir-SEG"


# ---- archives


@pytest.fixture
def make_source(tmp_path: Path) -> Callable[[bytes], KvasirSeg]:
    def give(data: bytes) -> KvasirSeg:
        (tmp_path / "given.zip").write_bytes(data)
        return KvasirSeg(root=str(tmp_path / "root"), archive=str(tmp_path / "given.zip"))

    return give


MakeSource = Callable[[bytes], KvasirSeg]


def nothing_unpacked(tmp_path: Path) -> bool:
    return not (tmp_path / "root").exists() and (tmp_path / "given.zip").exists()


@pytest.mark.parametrize("top", ["Kvasir-SEG/", "segmented-images/", "", "some/where/"])
def test_an_archive_is_unpacked_whatever_its_folder(
    make_source: MakeSource, files: Files, tmp_path: Path, top: str
) -> None:
    data = make_source(zip_of(files, top, extra=((f"__MACOSX/{top}images/._frame00.jpg", b"resource fork"),)))
    folder = data.prepare()
    assert folder == tmp_path / "root/Kvasir-SEG" and read(folder) == files
    assert {p.name for p in (tmp_path / "root").iterdir()} == {".lock", "Kvasir-SEG"}
    (tmp_path / "given.zip").write_bytes(b"no longer needed")
    assert data.prepare() == folder


def test_archive_of_a_published_sum_may_hold_other_bytes(
    make_source: MakeSource, files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zip_of(files | {"images/frame00.jpg": jpeg(99)})
    monkeypatch.setattr(kvasir, "ADDRESSES", {"http://127.0.0.1:9/": hashlib.sha256(archive).hexdigest()})
    make_source(archive).prepare()
    assert "1 of 24 files differ" in caplog.text


def bad_archives(files: Files, zipped: bytes) -> dict[str, tuple[bytes, str]]:
    link = zipfile.ZipInfo("Kvasir-SEG/images/link.jpg")
    link.external_attr = 0o120777 << 16
    lacking = {name: data for name, data in files.items() if "frame07" not in name}
    return {
        "truncated": (zipped[: len(zipped) // 2], "cut short"),
        "empty": (b"", "cut short"),
        "no zip": (b"<html>Sign in to continue</html>" * 100, "not a zip"),
        "flipped bit": (zipped[:5000] + bytes([zipped[5000] ^ 1]) + zipped[5001:], "damaged"),
        "lacks a pair": (
            zip_of(lacking),
            "lacks 2 of Kvasir-SEG's 24 files (images/frame07.jpg, masks/frame07.jpg)",
        ),
        "other content": (zip_of(files | {"masks/frame02.jpg": jpeg(77)}), "masks/frame02.jpg"),
        "unknown": (
            zip_of(files | {"images/new.jpg": jpeg(5)}),
            "has 1 files that are not Kvasir-SEG's (images/new.jpg)",
        ),
        "escape": (zip_of(files, extra=(("../../escaped.jpg", b"x"),)), "leads outside (../../escaped.jpg)"),
        "hidden escape": (
            zip_of(files, extra=(("Kvasir-SEG/images/../../../x.jpg", b"x"),)),
            "leads outside",
        ),
        "backslashes": (zip_of(files, extra=(("..\\..\\escaped.jpg", b"x"),)), "leads outside"),
        "absolute": (zip_of(files, extra=(("/tmp/polyp-escaped.jpg", b"x"),)), "leads outside"),
        "link": (
            zip_of(files, extra=((link, b"/etc/passwd"),)),
            "leads outside (Kvasir-SEG/images/link.jpg)",
        ),
    }


@pytest.mark.parametrize("case", bad_archives({}, b" " * 9999))
def test_a_bad_archive_is_refused_and_kept(
    make_source: MakeSource, files: Files, zipped: bytes, tmp_path: Path, case: str
) -> None:
    data, reason = bad_archives(files, zipped)[case]
    refused(
        make_source(data), f"data.archive={tmp_path / 'given.zip'}", reason, "delete it and download https://"
    )
    assert nothing_unpacked(tmp_path)
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(
    make_source: MakeSource, files: Files, tmp_path: Path
) -> None:
    buffer = io.BytesIO(zip_of(files))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("Kvasir-SEG/images/bomb.jpg", bytes(kvasir.MAX_BYTES + 1))
    assert len(buffer.getvalue()) < 1_000_000
    refused(make_source(buffer.getvalue()), "50000001 bytes", "bomb.jpg")
    assert nothing_unpacked(tmp_path)


def test_no_damage_raises_anything_but_an_input_error(
    make_source: MakeSource, files: Files, zipped: bytes, tmp_path: Path
) -> None:
    chance = random.Random(0)
    directory = zipped.find(b"PK\x01\x02")  # where the list of members begins
    for _ in range(150):
        damaged = bytearray(zipped)
        for _ in range(chance.choice((1, 4, 30))):
            damaged[chance.randrange(chance.choice((0, directory)), len(zipped))] = chance.randrange(256)
        data = make_source(bytes(damaged))
        try:
            folder = data.prepare()
        except InputError:
            assert nothing_unpacked(tmp_path)
        else:  # the damage hit what does not count, such as a date
            assert read(folder) == files
            folder.parent.rename(tmp_path / f"whole{os.urandom(4).hex()}")


def test_an_archive_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.zip", tmp_path):
        refused(
            KvasirSeg(root=str(tmp_path / "root"), archive=str(path)),
            f"data.archive={path} cannot be read",
            "data.root=",
        )


def test_what_a_killed_process_left_is_not_taken_for_whole(
    make_source: MakeSource, files: Files, zipped: bytes, tmp_path: Path
) -> None:
    data = make_source(zipped)
    half = {name: content for name, content in files.items() if "frame0" in name}
    lay(tmp_path / "root/.unpacking", half | {"images/junk.jpg": b"junk"})
    assert read(data.prepare()) == files
    assert not (tmp_path / "root/.unpacking").exists()


# ---- other processes

SCRIPT = """
import sys
from pathlib import Path
from polyp.data import download, kvasir, sources
kvasir.MANIFEST, kvasir.ADDRESSES = Path(sys.argv[1]), {sys.argv[2]: None}
root, archive, limit = sys.argv[3], sys.argv[4] or None, int(sys.argv[5])
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print(sources.KvasirSeg(root, archive).prepare())
"""


def process(
    root: Path, address: str = "", archive: str = "", limit: int = 0, stderr: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    arguments = [str(kvasir.MANIFEST), address, str(root), archive, str(limit)]
    command = [sys.executable, "-W", "error", "-c", SCRIPT, *arguments]
    environment = os.environ | {"TERM": "xterm"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)


def test_two_processes_at_once_download_once(server: Server, files: Files, tmp_path: Path) -> None:
    server.pause = 0.1
    running = [process(tmp_path / "root", server.base + NAME) for _ in range(2)]
    outputs = [p.communicate(timeout=30) for p in running]
    assert [p.returncode for p in running] == [0, 0], outputs
    assert [out.strip() for out, _ in outputs] == [str(tmp_path / "root/Kvasir-SEG")] * 2
    assert len(server.requests) == 1 and read(tmp_path / "root/Kvasir-SEG") == files


def test_killed_download_is_started_again(
    server: Server, files: Files, zipped: bytes, tmp_path: Path
) -> None:
    server.cuts, server.stall = [len(zipped) // 2], threading.Event()
    root = tmp_path / "root"
    with process(root, server.base + NAME) as killed:
        deadline = time.monotonic() + 60
        while server.cuts and time.monotonic() < deadline:
            time.sleep(0.02)
        killed.kill()
    server.stall.set()
    assert list(root.glob(".download/*"))
    assert read(KvasirSeg(root=str(root)).prepare()) == files
    assert {path.name for path in root.iterdir()} == {".lock", "Kvasir-SEG"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("source", ["archive", "download"])
def test_a_full_disk_names_the_folder(server: Server, zipped: bytes, tmp_path: Path, source: str) -> None:
    (tmp_path / "given.zip").write_bytes(zipped)
    archive = str(tmp_path / "given.zip") if source == "archive" else ""
    with process(tmp_path / "root", server.base + NAME, archive, limit=1000) as limited:
        _, error = limited.communicate(timeout=30)
    last = error.strip().splitlines()[-1]
    assert (
        last.startswith("polyp.errors.InputError") and str(tmp_path / "root") in last and "data.root=" in last
    )
    assert not (tmp_path / "root/.unpacking").exists() and not (tmp_path / "root/Kvasir-SEG").exists()


# ---- download


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_a_download_shows_its_progress_in_a_terminal(server: Server, tmp_path: Path) -> None:
    screen, terminal = os.openpty()
    with process(tmp_path / "root", server.base + NAME, stderr=terminal) as download:
        assert download.communicate(timeout=60)[0].strip() == str(tmp_path / "root/Kvasir-SEG")
    os.close(terminal)
    output = os.read(screen, 100_000).decode()
    os.close(screen)
    assert "kvasir-seg.zip" in output and " kB" in output


def test_download(server: Server, files: Files, tmp_path: Path) -> None:
    folder = KvasirSeg().prepare()
    assert folder == tmp_path / "cache/polyp/kvasir-seg/Kvasir-SEG" and read(folder) == files
    # the archive has done its service
    assert {p.name for p in folder.parent.iterdir()} == {".lock", "Kvasir-SEG"}
    assert KvasirSeg().prepare() == folder and len(server.requests) == 1


def test_download_to_an_empty_or_absent_root(server: Server, files: Files, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "deep/er"):
        assert read(KvasirSeg(root=str(root)).prepare()) == files


@pytest.mark.parametrize("sized", [True, False], ids=["size known", "size unknown"])
def test_interrupted_download_leaves_nothing_and_can_be_repeated(
    server: Server, files: Files, zipped: bytes, tmp_path: Path, sized: bool
) -> None:
    server.cuts, server.sized = [30_000], sized
    reason = (
        f"closed at 30000 of {len(zipped)} bytes" if sized else f"what {server.base}{NAME} sent is cut short"
    )
    root = tmp_path / "root"
    refused(KvasirSeg(root=str(root)), reason, f"{server.base}{NAME} in a browser", "data.archive=")
    assert not root.exists()
    assert read(KvasirSeg(root=str(root)).prepare()) == files


def test_archive_left_by_a_killed_process_is_used(
    server: Server, files: Files, zipped: bytes, tmp_path: Path
) -> None:
    (tmp_path / "root/.download").mkdir(parents=True)
    (tmp_path / "root/.download/kvasir-seg.zip").write_bytes(zipped)
    assert read(KvasirSeg(root=str(tmp_path / "root")).prepare()) == files and not server.requests


def test_stalled_connection_ends(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 1.0)
    server.cuts, server.stall = [30_000], threading.Event()
    refused(KvasirSeg(root=str(tmp_path / "root")), f"could not download {server.base}{NAME}", "timed out")
    server.stall.set()


def test_the_second_address_stands_in(
    server: Server, files: Files, zipped: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/segmented-images.zip"] = hyper = zip_of(files, "segmented-images/")
    addresses = {
        f"{server.base}/gone.zip": None,
        f"{server.base}/segmented-images.zip": hashlib.sha256(hyper).hexdigest(),
    }
    monkeypatch.setattr(kvasir, "ADDRESSES", addresses)
    assert read(KvasirSeg().prepare()) == files
    assert server.requests == ["/gone.zip", "/segmented-images.zip"]


def test_a_wrong_sum_and_wrong_content_are_told_apart(
    server: Server, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/other.zip"] = zip_of(files | {"masks/frame02.jpg": jpeg(77)})
    monkeypatch.setattr(kvasir, "ADDRESSES", {f"{server.base}/other.zip": None, server.base + NAME: "0" * 64})
    refused(
        KvasirSeg(),
        "other than the owners' (masks/frame02.jpg)",
        "SHA256 hash",
        "000000000000",
        "data.archive=",
    )
    assert len(server.requests) == 2


def test_error_status_is_reported(server: Server) -> None:
    server.files.clear()
    refused(KvasirSeg(), f"could not download {server.base}{NAME} (HTTP Error 404", "data.archive=PATH.zip")


def test_unreachable_address_is_reported_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert download.TIMEOUT <= 10
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        addresses = [f"http://127.0.0.1:{port}{NAME}", f"https://127.0.0.1:{silent.getsockname()[1]}{NAME}"]
        monkeypatch.setattr(kvasir, "ADDRESSES", dict.fromkeys(addresses))
        monkeypatch.setattr(download, "TIMEOUT", 0.5)
        start = time.monotonic()
        text = refused(KvasirSeg(), *addresses, "Connection refused", "timed out")
        assert time.monotonic() - start < 5
    assert text.endswith(f"download {addresses[0]} in a browser and give it as data.archive=PATH.zip")


# ---- TLS


class Authority:
    """A certificate with its key, which can issue others. Its issuer is itself unless given."""

    def __init__(
        self, name: str, issuer: "Authority | None" = None, ca: bool = True, host: str = "", aia: str = ""
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.issue(issuer or self, ca, host, aia)

    def issue(self, issuer: "Authority", ca: bool = True, host: str = "", aia: str = "") -> None:
        today, public = datetime.now(UTC), self.key.public_key()
        builder = (
            x509.CertificateBuilder(issuer.name, self.name, public, x509.random_serial_number())
            .not_valid_before(today - timedelta(days=1))
            .not_valid_after(today + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, ca, ca, False, False), critical=True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
            )
        )
        if host:
            name = x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
            builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=False)
        if aia:
            access = x509.AccessDescription(
                x509.AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(aia)
            )
            builder = builder.add_extension(x509.AuthorityInformationAccess([access]), critical=False)
        self.certificate = builder.sign(issuer.key, hashes.SHA256())

    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


class Chain:
    """Root > intermediate > server on 127.0.0.1, which sends but its own certificate; that names the next
    address.
    """

    def __init__(self, shop: Server, host: str = "127.0.0.1", intermediate_is_ca: bool = True) -> None:
        self.shop = shop
        self.root = Authority("root")
        self.intermediate = Authority(
            "intermediate", self.root, intermediate_is_ca, aia=f"{shop.base}/root.cer"
        )
        self.leaf = Authority("server", self.intermediate, False, host, aia=f"{shop.base}/intermediate.cer")
        shop.files = {"/root.cer": self.root.der(), "/intermediate.cer": self.intermediate.der()}


@pytest.fixture
def shop() -> Iterator[Server]:
    """Where the certificates can be fetched."""
    with serving({}) as server:
        yield server


@contextmanager
def https(
    chain: Chain,
    trusted: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    zipped: bytes,
    with_intermediate: bool = False,
) -> Iterator[Server]:
    (tmp_path / "no-more-roots").mkdir()
    (tmp_path / "roots.pem").write_bytes(trusted.pem())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "no-more-roots"))
    key = chain.leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "server.pem").write_bytes(
        key + chain.leaf.pem() + (chain.intermediate.pem() if with_intermediate else b"")
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    with serving({NAME: zipped}, context) as server:
        monkeypatch.setattr(kvasir, "ADDRESSES", {server.base + NAME: None})
        yield server


def test_an_omitted_intermediate_is_fetched(
    shop: Server, files: Files, zipped: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(shop)
    with https(chain, chain.root, tmp_path, monkeypatch, zipped) as server:
        assert read(KvasirSeg().prepare()) == files
    assert "/intermediate.cer" in shop.requests and len(server.requests) == 1


def test_a_whole_chain_needs_no_fetching(
    shop: Server, files: Files, zipped: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(shop)
    with https(chain, chain.root, tmp_path, monkeypatch, zipped, with_intermediate=True):
        assert read(KvasirSeg().prepare()) == files
    assert not shop.requests


@pytest.mark.parametrize(
    "case",
    ["untrusted root", "namesake root", "other host", "no CA", "not to be had", "no certificate", "loop"],
)
def test_verification_is_never_off(
    shop: Server, zipped: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    chain = Chain(
        shop, "example.org" if case == "other host" else "127.0.0.1", intermediate_is_ca=case != "no CA"
    )
    trusted = chain.root
    if case == "untrusted root":
        trusted = Authority("another root")
    elif case == "namesake root":
        trusted = Authority("root")
    elif case == "not to be had":
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/intermediate.cer"
        chain.leaf.issue(chain.intermediate, False, "127.0.0.1", nowhere)
    elif case == "no certificate":
        shop.files = {"/intermediate.cer": b"<html></html>"}
    elif case == "loop":
        other = Authority("other", chain.intermediate, aia=f"{shop.base}/intermediate.cer")
        chain.intermediate.issue(other, aia=f"{shop.base}/other.cer")
        shop.files = {"/intermediate.cer": chain.intermediate.der(), "/other.cer": other.der()}
    with https(chain, trusted, tmp_path, monkeypatch, zipped) as server:
        text = refused(KvasirSeg(), "could not download https://127.0.0.1", "data.archive=PATH.zip")
        assert "certificate" in text and not server.requests  # not one request was sent


# ---- the real one


@pytest.mark.real_data
def test_the_real_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, data_folder: Path
) -> None:
    archive = data_folder / "kvasir-seg.zip"
    monkeypatch.setattr(kvasir, "MANIFEST", Path(kvasir.__file__).with_name("kvasir_seg.csv"))
    folder = KvasirSeg(root=str(tmp_path / "root"), archive=str(archive)).prepare()
    stems = [{p.stem for p in (folder / kind).iterdir()} for kind in ("images", "masks")]
    assert len(stems[0]) == 1000 and stems[0] == stems[1]
    assert KvasirSeg(root=str(tmp_path / "root")).prepare() == folder
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with kvasir.MANIFEST.open(newline="") as file:
        for row in list(csv.DictReader(file))[::50]:
            for kind in ("images", "masks"):
                image = cv2.imread(str(folder / kind / f"{row['stem']}.jpg"))
                assert image is not None and image.shape == (int(row["height"]), int(row["width"]), 3)
