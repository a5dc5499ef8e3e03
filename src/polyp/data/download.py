"""Downloads: with progress, continued after an interruption, and over TLS that is always verified."""

import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from http.client import HTTPException, HTTPResponse
from itertools import islice
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from aia_chaser import AiaChaser
from aia_chaser.exceptions import AiaChaserError
from cryptography.hazmat.primitives.serialization import Encoding
from tqdm import tqdm

from polyp.errors import describe_error

log = logging.getLogger(__name__)
T = TypeVar("T")

OPEN_TIMEOUT = 4.0  # seconds, from the look-up of the name to the first byte
READ_TIMEOUT = 30.0  # seconds without a byte


class DownloadError(Exception):
    """An address cannot be had, or not whole. The message is a clause for an InputError."""


def fetch(address: str, part: Path) -> None:
    """Complete the file `part`, going on from what it holds where the server can.

    Raises:
        DownloadError: the address cannot be reached or answers with an error, or the connection broke off.
    """
    with (
        _open(address, part.stat().st_size if part.exists() else 0) as response,
        part.open("ab" if response.status == 206 else "wb") as file,
    ):
        start, length = file.tell(), response.headers["Content-Length"]
        total = start + int(length) if length else None
        bar = tqdm.wrapattr(file, "write", total, desc=part.name[1:-5], initial=start, mininterval=0.5)
        with bar as out:
            for block in _blocks(response, start, total):
                out.write(block)


def _blocks(response: HTTPResponse, done: int, total: int | None) -> Iterator[bytes]:
    """The body. What goes wrong here is the network's doing, not the disk's: DownloadError."""
    ending = "the connection was closed"
    try:
        while block := response.read1(1 << 17):
            done += len(block)
            yield block
        if total is None or done == total:
            return
    except (OSError, HTTPException) as error:
        ending = describe_error(error)
    state = f"{done} of {total or 'unknown'} bytes ({ending})"
    raise DownloadError(f"the download of {response.url} broke off at {state}; run again to go on from there")


def _open(address: str, start: int) -> HTTPResponse:
    """Ask for the bytes from `start` on. The answer's status tells whether it has those (206) or all (200)."""
    request = Request(address, headers={"User-Agent": "polyp"} | ({"Range": f"bytes={start}-"} if start else {}))
    host, port = urlsplit(address).hostname or "", urlsplit(address).port or 443

    def connect(context: ssl.SSLContext) -> HTTPResponse:
        return _within(OPEN_TIMEOUT, lambda: urlopen(request, timeout=READ_TIMEOUT, context=context))

    try:
        try:
            return connect(ssl.create_default_context())
        except URLError as error:
            if not isinstance(error.reason, ssl.SSLCertVerificationError):
                raise
            log.info("%s: %s; looking for the missing intermediate certificate", host, error.reason)
            return connect(_within(OPEN_TIMEOUT, lambda: _completed_context(host, port)))
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing left to go on with: it is whole, or another file
            return _open(address, 0)
        raise DownloadError(f"could not download from {host} ({error.code} {error.reason})") from error
    except (OSError, HTTPException) as error:
        raise DownloadError(f"could not reach {host} ({describe_error(error)})") from error


def _completed_context(host: str, port: int) -> ssl.SSLContext:
    """A context that verifies in full and knows the intermediate certificates that the server omits.

    They come from the addresses that the certificates themselves name (AIA). They are links, not anchors: the handshake
    of the transfer still verifies the whole chain, up to a root that the system trusts.
    """
    try:
        chain = list(islice(AiaChaser().aia_chase(host, port), 8))  # issuers in a loop would have no end
        context = ssl.create_default_context()
        # Python sets it since 3.13; the chain could then end at a certificate that was just fetched from anywhere.
        context.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=b"".join(c.public_bytes(Encoding.DER) for c in chain[1:-1]))
        return context
    except (AiaChaserError, LookupError, ValueError) as error:
        raise OSError(f"its certificate cannot be verified: {describe_error(error)}") from error


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`, awaited for so long: in a thread, since no socket's timeout covers the look-up of names."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # handed to whoever waits, who raises it
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        raise TimeoutError(describe_error(error) if future.done() else f"no answer within {seconds:g} s") from error
