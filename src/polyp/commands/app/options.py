"""The options of `polyp app`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional

from polyp import terminal
from polyp.commands.options import Compute, Device, Flag, Root, option


@dataclass(frozen=True)
class Options:
    """Serve trained models as a page in the browser and an HTTP API.

    Choose or upload an image in the browser and see the polyps, or send it over HTTP. Works without a
    network. For research use, not for diagnosis.
    """

    models: Annotated[Positional[tuple[str, ...]], option("RUN...")] = ()
    """Run folders, sweeps over seeds or folds, or checkpoints; the first is the default."""
    demo: Flag = False
    """The newest run below outputs/; trains one if there is none."""
    root: Root = None
    host: Annotated[str, option("HOST")] = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    port: Annotated[int, option("N")] = 7860
    """0 is any that is free."""
    auth: Annotated[str | None, option("USER:PASSWORD")] = None
    """What page and API then require."""
    max_upload: Annotated[str, option("SIZE")] = "20MB"
    """The largest file that is accepted."""
    compute: Compute = "exact"
    device: Device = "auto"

    def run(self) -> None:
        """Serve until Ctrl-C."""
        with terminal.loading():
            from polyp.commands.app.launch import run

        run(self)
