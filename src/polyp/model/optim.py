"""How the weights move: optimiser, learning rates and their schedule. Mirrors conf/optim."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from polyp.errors import InputError, pick

OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "adam": Adam, "sgd": SGD}

# The factor on the learning rates, from the share of the steps after warm-up that are done, 0 to 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    # Loshchilov & Hutter, ICLR 2017, without restarts
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "poly": lambda done: (1 - done) ** 0.9,  # Chen et al., DeepLab, TPAMI 2018
    "constant": lambda done: 1.0,
}
PLATEAU = "plateau"  # the one schedule that follows the validation instead of the steps


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The keys of conf/optim, checked on construction.

    Attributes:
        optimizer: adamw (weight decay apart from the gradient), adam (weight decay as an L2 penalty) or sgd.
        encoder_lr: peak learning rate of the encoder, >= 0; 0 means the same as model.freeze=encoder.
        decoder_lr: peak learning rate of all other weights, > 0.
        layer_decay: factor in (0, 1] on the learning rate from each stage of the encoder to the one before
            it, as in timm (Bao et al., BEiT, ICLR 2022): the deepest has encoder_lr, the stem the lowest.
            None for the same rate everywhere.
        weight_decay: >= 0, the same for all weights.
        momentum: of sgd, in [0, 1); adam and adamw have none.
        schedule: cosine (to 0), poly (to 0, power 0.9) or constant, all three per optimiser step; or plateau:
            halved when the monitored metric has not got better for more than 3 epochs.
        warmup: share of all steps, in [0, 1), over which the learning rates rise in a straight line (Goyal et
            al., 2017). plateau goes by epochs, not steps, and needs 0.
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
    schedule: str = "cosine"
    warmup: float = 0.05
    ema_decay: float | None

    def __post_init__(self) -> None:
        """Check every value."""
        pick("optim.optimizer", self.optimizer, OPTIMIZERS)
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
        if self.schedule == PLATEAU and self.warmup:
            raise InputError(
                f"optim.warmup={self.warmup} does not work with optim.schedule=plateau: set optim.warmup=0"
            )

    def _require(self, key: str, holds: Callable[[float], bool], rule: str) -> None:
        value = getattr(self, key)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (number and holds(value)):
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
        options: dict[str, Any] = {"weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            options["momentum"] = self.momentum
        optimizer = OPTIMIZERS[self.optimizer](groups, **options)

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
