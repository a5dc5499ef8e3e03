"""An app behind a real socket, in this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from starlette.applications import Starlette

from polyp.commands.app import launch
from polyp.commands.app.connections import Connection, make_server


@contextmanager
def serve(app: Starlette, connection: type[Connection] = Connection) -> Iterator[httpx.Client]:
    """A client of the app."""
    listening = launch.listen("127.0.0.1", 0)
    server = make_server(app, connection)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        port = listening.getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
