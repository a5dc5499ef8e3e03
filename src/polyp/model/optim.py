"""How the weights move: optimiser, learning rates and their schedule. Mirrors conf/optim."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from polyp.errors import InputError, describe_error, pick
from polyp.settings import check_keys

OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
}
"""All of torch.optim, by lower-case name. Those that cannot train a network are refused by a trial step."""

# The factor on the learning rates, from the share of the steps after warm-up that are done, 0 to 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    # Loshchilov & Hutter, ICLR 2017, without restarts
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "poly": lambda progress: (1 - progress) ** 0.9,  # Chen et al., DeepLab, TPAMI 2018
    "constant": lambda progress: 1.0,
    # Smith & Topin, 2018, with the defaults of torch's OneCycleLR: up from 1/25, then down to 1/250000
    "onecycle": lambda progress: (
        _anneal(1 / 25, 1, progress / RISE)
        if progress < RISE
        else _anneal(1, 4e-6, (progress - RISE) / (1 - RISE))
    ),
}
RISE = 0.3  # share of the steps in which onecycle's learning rates rise
PLATEAU = "plateau"  # the one schedule that follows the validation instead of the steps
WITHOUT_WARMUP = ("onecycle", PLATEAU)  # the first has its own, the second goes by epochs, not steps


def _anneal(start: float, end: float, progress: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The keys of conf/optim, checked on construction.

    Attributes:
        optimizer: a class of torch.optim that takes dense gradients and no closure, in any case: adamw
            (weight decay apart from the gradient), adam (weight decay as an L2 penalty), sgd, RAdam, ...
        options: further arguments of that class, by name.
        encoder_lr: peak learning rate of the encoder, >= 0; 0 means the same as model.freeze=encoder.
        decoder_lr: peak learning rate of all other weights, > 0.
        layer_decay: factor in (0, 1] on the learning rate from each stage of the encoder to the one before
            it, as in timm (Bao et al., BEiT, ICLR 2022): the deepest has encoder_lr, the stem the lowest.
            None for the same rate everywhere.
        weight_decay: >= 0, the same for all weights.
        momentum: of sgd, in [0, 1); that of other optimisers is in `options`.
        schedule: cosine (to 0), poly (to 0, power 0.9), onecycle (up over 30 % of the steps, then down to
            almost 0; momentum stays as it is) or constant, all four per optimiser step; or plateau: halved
            when the monitored metric has not got better for more than 3 epochs.
        warmup: share of all steps, in [0, 1), over which the learning rates rise in a straight line (Goyal et
            al., 2017). onecycle and plateau need 0.
        ema_decay: decay of the running average of the weights that is validated and saved, in (0, 1); None
            for no average. Not used here, but by the trainer.

    Raises:
        InputError: a value cannot work; one line that names its key.
    """

    optimizer: str = "adamw"
    encoder_lr: float
    decoder_lr: float
    layer_decay: float | None = None
    weight_decay: float
    momentum: float = 0.9
    options: Mapping[str, Any] | None = None
    schedule: str = "cosine"
    warmup: float = 0.05
    ema_decay: float | None

    def __post_init__(self) -> None:
        """Check every value."""
        kind = pick("optim.optimizer", str(self.optimizer).lower(), OPTIMIZERS)
        pick("optim.schedule", self.schedule, {**SCHEDULES, PLATEAU: None})
        self._require("encoder_lr", lambda value: value >= 0, "a number >= 0 (0 freezes the encoder)")
        self._require("decoder_lr", lambda value: value > 0, "a number > 0")
        if self.layer_decay is not None:
            self._require("layer_decay", lambda value: 0 < value <= 1, "a number in (0, 1], or null")
        self._require("weight_decay", lambda value: value >= 0, "a number >= 0")
        self._require("momentum", lambda value: 0 <= value < 1, "a number in [0, 1)")
        self._require("warmup", lambda value: 0 <= value < 1, "a share of all steps in [0, 1)")
        if self.ema_decay is not None:
            self._require(
                "ema_decay", lambda value: 0 < value < 1, "a number between 0 and 1, or null for no average"
            )
        if self.schedule in WITHOUT_WARMUP and self.warmup:
            raise InputError(
                f"optim.warmup={self.warmup} does not work with optim.schedule={self.schedule}: set "
                "optim.warmup=0"
            )
        if self.options:
            check_keys("optim.options", self.options, kind, exclude=["params", *self._arguments()])
        self._try_step()
        if self.weight_decay and "weight_decay" not in self._arguments():
            raise InputError(
                f"optim.weight_decay={self.weight_decay} does not work with optim.optimizer="
                f"{self.optimizer}, which has none: set optim.weight_decay=0"
            )

    def _arguments(self) -> dict[str, Any]:
        """The arguments of the optimiser that have a key of their own; the learning rates are those of the
        groups.
        """
        name = self.optimizer.lower()
        arguments = {"lr": self.decoder_lr}
        if "weight_decay" in inspect.signature(OPTIMIZERS[name]).parameters:
            arguments["weight_decay"] = self.weight_decay
        return arguments | ({"momentum": self.momentum} if name == "sgd" else {})

    def _make(self, groups: list[dict[str, Any]]) -> Optimizer:
        return OPTIMIZERS[self.optimizer.lower()](groups, **self._arguments(), **(self.options or {}))

    def _try_step(self) -> None:
        """Make a step with two small weights, as of a convolution and its bias, in two groups."""
        weights = [nn.Parameter(torch.ones(2, 2, 3, 3)), nn.Parameter(torch.ones(2))]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        try:
            self._make([{"params": [weight], "lr": self.decoder_lr} for weight in weights]).step()
        except Exception as error:  # whatever the optimiser raises
            options = f" with optim.options={dict(self.options)}" if self.options else ""
            raise InputError(
                f"optim.optimizer={self.optimizer}{options} does not work: {describe_error(error)}"
            ) from error

    def _require(self, key: str, is_valid: Callable[[float], bool], rule: str) -> None:
        value = getattr(self, key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (is_number and is_valid(value)):
            raise InputError(f"optim.{key}={value!r} does not work: it must be {rule}")

    def factor(self, step: int, total_steps: int) -> float:
        """What the learning rates are multiplied with at optimiser step 0, 1, … of `total_steps`; not for
        plateau.

        With W warm-up steps: (step + 1) / (W + 1) during warm-up, 1 at step W, and from there the schedule.
        """
        warm = round(self.warmup * total_steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        return SCHEDULES[self.schedule](min(1.0, (step - warm) / max(1, total_steps - warm)))

    def share(self, epochs: int, max_epochs: int) -> float:
        """The factor after so many epochs of so many; 1 for plateau, which does not know its end."""
        fine = 1000  # steps of an epoch: any large number
        return 1.0 if self.schedule == PLATEAU else self.factor(epochs * fine, max_epochs * fine)

    def build(
        self,
        encoder: Sequence[Iterable[nn.Parameter]],
        decoder: Iterable[nn.Parameter],
        total_steps: float,
        monitor: str,
        mode: Literal["min", "max"] = "max",
    ) -> OptimizerLRSchedulerConfig:
        """Make what `LightningModule.configure_optimizers` returns.

        The state of optimiser and scheduler is tensors and plain numbers: a checkpoint loads with
        `weights_only=True`. The schedule itself is not part of it: a run that is resumed with more epochs
        follows the longer schedule.

        Args:
            encoder: the pretrained weights by stage, the stem first; parameter groups "encoder_1",
                "encoder_2", …, or "encoder" if there is one stage.
            decoder: all other weights, none of the encoder's; parameter group "decoder".
            total_steps: optimiser steps of the whole run, Lightning's `trainer.estimated_stepping_batches`.
            monitor: the validation metric that plateau follows, once per epoch.
            mode: "max" if more of that metric is better, else "min".

        Raises:
            InputError: the run has no known end, which every schedule but plateau needs.
        """
        decay = 1.0 if self.layer_decay is None else self.layer_decay
        groups: list[dict[str, Any]] = [
            {
                "name": f"encoder_{number}" if len(encoder) > 1 else "encoder",
                "params": list(stage),
                "lr": self.encoder_lr * decay ** (len(encoder) - number),
            }
            for number, stage in enumerate(encoder, 1)
        ]
        groups.append({"name": "decoder", "params": list(decoder), "lr": self.decoder_lr})
        optimizer = self._make(groups)

        if self.schedule == PLATEAU:
            plateau = ReduceLROnPlateau(optimizer, mode=mode, factor=0.5, patience=3)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plateau, "interval": "epoch", "monitor": monitor},
            }
        if not 1 <= total_steps < math.inf:
            raise InputError(
                f"optim.schedule={self.schedule} needs an end: set trainer.max_epochs or trainer.max_steps"
            )
        steps = LambdaLR(optimizer, lambda step: self.factor(step, int(total_steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": steps, "interval": "step"}}
