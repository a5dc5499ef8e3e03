"""The options of `polyp tune`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional

from polyp import terminal
from polyp.commands.options import option


@dataclass(frozen=True)
class Options:
    """Find a learning rate, or the largest batch that fits in a GPU's memory, before training.

    lr trains for some hundred steps while the learning rate grows, and suggests the one at which the loss
    falls fastest. batch_size tries powers of two. Both print the overrides to train with; no run is made.
    """

    setting: Annotated[Positional[Literal["lr", "batch_size"]], option("lr|batch_size")]
    """What to find."""
    overrides: Annotated[Positional[tuple[str, ...]], option("KEY=VALUE...")] = ()
    """Overrides as for train.py: model.encoder=resnet34 data=folder data.root=FOLDER."""
    steps: Annotated[int, option("N")] = 200
    """Of the learning rate finder."""
    out: Annotated[str, option("FILE.png")] = "outputs/tune/lr.png"
    """The chart of loss by learning rate; it is replaced."""

    def run(self) -> None:
        """Find the value and print it."""
        with terminal.loading():
            from polyp.commands.tune.tune import run

        run(self)
