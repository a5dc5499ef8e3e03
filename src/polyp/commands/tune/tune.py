"""`polyp tune`: finds a learning rate or a batch size by short training."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyp import terminal
from polyp.commands.tune.options import Options
from polyp.errors import InputError, shell_word, train_command
from polyp.files import check_writable, write_bytes
from polyp.report.charts import FAINT, SERIES, make_axes, render_file, styled, use_log
from polyp.runs.configuration import compose_config
from polyp.runs.early_checks import check_names_and_paths
from polyp.runs.overrides import check_overrides
from polyp.training import sweeps  # noqa: F401, registers the resolvers of conf/


def run(options: Options) -> None:
    """Find a learning rate or a batch size, and print it with the command that trains with it.

    Raises InputError if the configuration cannot work, or there is no such value.
    """
    if options.steps < 20:
        raise InputError(f"--steps {options.steps} is too few for a curve: give at least 20")
    check_overrides(["polyp", *options.overrides])
    config = compose_config(options.overrides)
    check_names_and_paths(config)
    os.environ.setdefault("TQDM_DISABLE", "1")  # Lightning's bar, which has no option of its own
    with terminal.loading():
        from polyp.model import device  # torch
        from polyp.runs.data import build_data
        from polyp.training.build import build_model
        from polyp.training.tuning import find_batch_size, measure_losses

    data = build_data(config["data"], config["augment"], config["seed"])
    data.check()
    model = build_model(config)
    if options.setting == "batch_size":
        if not device.cuda(config["trainer"]["accelerator"]):
            raise InputError("polyp tune batch_size fills the memory of a GPU, and there is none here")
        size = find_batch_size(model, data.multiscale.sizes, config["trainer"], limit=4096)
        message, overrides = f"batches of {size} images fit", [f"data.batch_size={size}"]
    else:
        file = Path(options.out)
        check_writable(file.parent)
        rates, losses = measure_losses(model, data, config["trainer"], options.steps)
        rate = suggest_rate(rates, losses)
        write_bytes(file, _draw(rates, losses, rate))
        message = f"the loss falls fastest at a learning rate of {rate:.1g}, see {file}"
        overrides = [f"optim.encoder_lr={rate:.1g}", f"optim.decoder_lr={rate:.1g}"]
    terminal.console().print(message, markup=False)
    command = " ".join(map(shell_word, [*options.overrides, *overrides]))
    terminal.print_places({"train": f"{train_command()} {command}"})


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The learning rate at which the loss falls fastest over the logarithm of the rate (Smith, WACV 2017).

    `losses` are smoothed, after a step with each of the increasing `rates`; raises InputError if none falls.
    """
    start = len(losses) // 20  # before, the smoothed loss is that of the first batches
    slopes = np.gradient(np.asarray(losses[start:]), np.log(np.asarray(rates[start:])))
    index = int(np.argmin(slopes))
    if not slopes[index] < 0:
        message = "the loss falls at no learning rate: check the data and the loss, or give more --steps"
        raise InputError(message)
    return float(rates[start + index])


@styled
def _draw(rates: Sequence[float], losses: Sequence[float], rate: float) -> bytes:
    figure, axes = make_axes("learning rate", "smoothed training loss", (6, 4))
    figure.set_facecolor("white")
    start = len(losses) // 20  # as in `suggest_rate`
    axes.plot(rates[start:], losses[start:], color=SERIES[0])
    axes.axvline(rate, color=FAINT, linestyle="--")
    axes.annotate(f" {rate:.1g}", (rate, 1), xycoords=("data", "axes fraction"), va="top")
    use_log(axes, "x")
    axes.set_ylim(top=1.2 * max(losses[: len(losses) // 2]))  # not where the loss explodes
    return render_file(figure, "png")
