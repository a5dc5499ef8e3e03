"""`polyp tune`: what to set before a run, found by training a little."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyp import terminal
from polyp.commands.tune.options import Options
from polyp.errors import InputError, shell_word, train_command
from polyp.files import check_writable, write_bytes
from polyp.model import device
from polyp.report.charts import FAINT, SERIES, make_axes, render_file, styled, use_log
from polyp.runs.configuration import compose_config
from polyp.runs.data import build_data
from polyp.runs.overrides import check_overrides
from polyp.training.build import build_model
from polyp.training.tuning import find_batch_size, measure_losses


def run(options: Options) -> None:
    """Find the value that the options name.

    Raises:
        InputError: the configuration cannot work, or no value can be found.
    """
    if options.steps < 20:
        raise InputError(f"--steps {options.steps} is too few for a curve: give at least 20")
    check_overrides(["polyp", *options.overrides])
    config = compose_config(options.overrides)
    data = build_data(config["data"], config["augment"], config["seed"])
    data.check()
    model = build_model(config)
    if options.setting == "batch_size":
        if not device.cuda(config["trainer"]["accelerator"]):
            raise InputError("polyp tune batch_size fills the memory of a GPU, and there is none here")
        size = find_batch_size(model, data.multiscale.sizes, config["trainer"], limit=4096)
        _print(f"batches of {size} images fit", options, [f"data.batch_size={size}"])
        return
    file = Path(options.out)
    check_writable(file.parent)
    rates, losses = measure_losses(model, data, config["trainer"], options.steps)
    rate = suggest(rates, losses)
    write_bytes(file, _draw(rates, losses, rate))
    found = [f"optim.{part}_lr={rate:.1g}" for part in ("encoder", "decoder")]
    _print(f"the loss falls fastest at a learning rate of {rate:.1g}, see {file}", options, found)


def suggest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The learning rate at which the loss falls fastest over the logarithm of the rate (Smith, WACV 2017).

    Args:
        rates: growing learning rates.
        losses: the smoothed loss after a step with each.

    Raises:
        InputError: it falls nowhere.
    """
    start = len(losses) // 20  # the smoothed loss begins with the first batch's
    slopes = np.gradient(np.asarray(losses[start:]), np.log(np.asarray(rates[start:])))
    place = int(np.argmin(slopes))
    if not slopes[place] < 0:
        raise InputError(
            "the loss falls at no learning rate: check the data and the loss, or give more --steps"
        )
    return float(rates[start + place])


@styled
def _draw(rates: Sequence[float], losses: Sequence[float], rate: float) -> bytes:
    figure, axes = make_axes("learning rate", "smoothed training loss", (6, 4))
    figure.set_facecolor("white")
    start = len(losses) // 20  # as `suggest`
    axes.plot(rates[start:], losses[start:], color=SERIES[0])
    axes.axvline(rate, color=FAINT, linestyle="--")
    axes.annotate(f" {rate:.1g}", (rate, 1), xycoords=("data", "axes fraction"), va="top")
    use_log(axes, "x")
    axes.set_ylim(top=1.2 * max(losses[: len(losses) // 2]))  # where it explodes is of no interest
    return render_file(figure, "png")


def _print(text: str, options: Options, found: Sequence[str]) -> None:
    console = terminal.console()
    console.print(text, markup=False)
    command = " ".join(map(shell_word, [*options.overrides, *found]))
    terminal.print_places({"train": f"{train_command()} {command}"})
