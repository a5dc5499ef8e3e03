"""Downloads: complete and verified files only, over TLS that is always verified."""

import logging
import ssl
from http.client import HTTPException, HTTPResponse
from itertools import islice
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from rich.progress import DownloadColumn

from polyp import terminal
from polyp.errors import describe_error
from polyp.files import find_disk_error

log = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds to connect, and without a byte


class DownloadError(Exception):
    """A download failed. The message is a clause for an InputError."""


def download(address: str, folder: Path, sha256: str | None = None) -> Path:
    """Download a file into a folder, unless it is there already.

    Args:
        address: of the file; the last part of its path is the file's name.
        folder: created if it is missing.
        sha256: of the file, 64 hex digits, where it is known.

    Returns:
        The file, which is complete.

    Raises:
        DownloadError: the address cannot be reached, answers with an error, or sends an incomplete or another
            file.
        OSError: the folder cannot be written.
    """
    import pooch  # imported here, as aia_chaser: most runs download nothing

    pooch.get_logger().setLevel(logging.WARNING)
    name = PurePosixPath(urlsplit(address).path).name
    try:
        return Path(pooch.retrieve(address, sha256, name, folder, downloader=_fetch))
    except ValueError as error:  # how pooch reports another SHA-256
        raise DownloadError(f"{address} sent another file: {describe_error(error)}") from error


def _fetch(address: str, file: str, pooch: object) -> None:
    """The downloader for pooch, whose own takes no SSL context: it writes a file and shows its progress."""
    name = PurePosixPath(urlsplit(address).path).name
    try:
        with _open(address) as response, Path(file).open("wb") as out:
            total = response.length
            with terminal.progress(DownloadColumn()) as bar:
                task = bar.add_task(name, total=total)
                while block := response.read(2**20):
                    out.write(block)
                    bar.advance(task, len(block))
            if total and response.length:  # the bytes that are still to come
                size = f"{total - response.length} of {total} bytes"
                raise ConnectionError(f"the connection was closed at {size}")
    except (OSError, HTTPException) as error:
        if find_disk_error(error):
            raise
        if isinstance(error, HTTPError):
            error.close()
        reason = str(error) if isinstance(error, HTTPError) else describe_error(error)
        raise DownloadError(f"could not download {address} ({reason})") from error


def _open(address: str) -> HTTPResponse:
    request = Request(address, headers={"User-Agent": "polyp"})
    try:
        return urlopen(request, timeout=TIMEOUT, context=ssl.create_default_context())
    except URLError as error:
        if not isinstance(error.reason, ssl.SSLCertVerificationError):
            raise
        log.info("%s: %s; looking for the missing intermediate certificate", address, error.reason)
        return urlopen(request, timeout=TIMEOUT, context=_complete_context(address))


def _complete_context(address: str) -> ssl.SSLContext:
    """A context that knows the intermediate certificates that the server omits, and verifies the whole chain.

    They come from the addresses that the certificates themselves name (AIA). They are links, not anchors: the
    chain must still end at a root that the system trusts.
    """
    from aia_chaser import AiaChaser
    from aia_chaser.exceptions import AiaChaserError
    from aia_chaser.utils.http_utils import RetryConfig
    from cryptography.hazmat.primitives.serialization import Encoding

    host, port = urlsplit(address).hostname or "", urlsplit(address).port or 443
    context = ssl.create_default_context()
    # Python 3.13 sets this flag, with which every certificate would be an anchor.
    context.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
    chaser = AiaChaser(retry_config=RetryConfig(max_attempts=1))
    try:
        chain = list(islice(chaser.aia_chase(host, port), 8))  # a loop of issuers would never end
        context.load_verify_locations(cadata=b"".join(c.public_bytes(Encoding.DER) for c in chain[1:-1]))
    except (AiaChaserError, LookupError, ValueError) as error:
        raise OSError(f"its certificate cannot be verified: {describe_error(error)}") from error
    return context
