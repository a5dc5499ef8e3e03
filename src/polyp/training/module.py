"""The Lightning modules that train, validate and test a network."""

import gc
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from polyp.errors import InputError
from polyp.metrics.detection import detection_scores
from polyp.metrics.overlap import SegmentationScores, image_scores
from polyp.model.losses import build_loss
from polyp.model.optim import Optim
from polyp.model.segmenter import PolypSegmenter
from polyp.settings import check_keys

Batch = dict[str, Any]

CHECK_EVERY = 50
"""Training steps between two checks of the losses and of the scores' inputs: each check waits for the GPU."""


class MeanLoss(Metric):
    """The mean loss of an epoch's images.

    Unlike torchmetrics' MeanMetric it does not check for NaN, which would wait for the GPU.
    """

    mean_value: Tensor  # the sum, under the names that MeanMetric gave in older checkpoints
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean_value", "weight"):
            self.add_state(name, default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        """Add a batch's loss, a scalar, and the number of its images."""
        self.mean_value += loss * images
        self.weight += images

    def compute(self) -> Tensor:
        """A float32 scalar."""
        return self.mean_value / self.weight


class TrainingModule(PolypSegmenter, pl.LightningModule):
    """A segmenter with its loss and its optimiser, trained and validated on images resized to `image_size`.

    Args:
        arch, encoder, encoder_weights, encoder_depth, decoder_channels, decoder_attention, stages: see
            `PolypSegmenter`, also for image_size, threshold and init_from.
        loss: a name, weights of names, or an import path, see `polyp.model.losses.build_loss`.
        freeze: encoder, to train the rest only: no gradients, fixed batch statistics, no dropout in it; or
            None.
        unfreeze_epoch: epochs after which a frozen encoder trains as well, at least 1; None for never.
        compile: compile the network with torch.compile for training; the names of its weights stay.
        gradient_checkpointing: compute the encoder's stages again in the backward pass, which saves memory;
            encoders of timm (tu-NAME).
        optim: the keyword arguments of `polyp.model.optim.Optim`; None for a module that is not trained.

    Raises:
        InputError: a value or a combination cannot work.
    """

    def __init__(
        self,
        arch: str,
        encoder: str,
        encoder_weights: str | None,
        encoder_depth: int | None,
        decoder_channels: Sequence[int] | int | None,
        decoder_attention: str | None,
        stages: int,
        image_size: int | Sequence[int],
        loss: str | Mapping[str, float],
        threshold: float,
        init_from: str | None = None,
        freeze: Literal["encoder"] | None = None,
        unfreeze_epoch: int | None = None,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        optim: Mapping[str, Any] | None = None,
    ) -> None:
        if optim is not None:
            check_keys("optim", optim, Optim)
        optimiser = None if optim is None else Optim(**optim)
        no_encoder_lr = optimiser is not None and optimiser.encoder_lr == 0
        if freeze not in (None, "encoder"):
            raise InputError(f"model.freeze={freeze} is not possible: choose encoder or null")
        if unfreeze_epoch is not None:
            if type(unfreeze_epoch) is not int or unfreeze_epoch < 1:
                raise InputError(f"model.unfreeze_epoch={unfreeze_epoch} must be a number of epochs, or null")
            if freeze is None or no_encoder_lr:
                raise InputError(
                    f"model.unfreeze_epoch={unfreeze_epoch} needs model.freeze=encoder and an "
                    "optim.encoder_lr above 0"
                )
        if compile and gradient_checkpointing:
            raise InputError(
                "model.compile=true and model.gradient_checkpointing=true do not work together: choose one"
            )
        loss_function = build_loss(loss)
        network = arch, encoder, encoder_weights, encoder_depth, decoder_channels, decoder_attention, stages
        super().__init__(*network, image_size, threshold, init_from)
        # all of them plain, so that a checkpoint loads with weights_only=True
        self.save_hyperparameters(logger=False)
        self.loss, self.optim, self.unfreeze_epoch = loss_function, optimiser, unfreeze_epoch
        if freeze is not None or no_encoder_lr:
            self.network.freeze_encoder()
        if gradient_checkpointing:
            self.network.checkpoint_gradients()
        if compile:
            self.network.compile()
        self.train_loss = MeanLoss()
        self.train_scores, self.val_scores = SegmentationScores(), SegmentationScores()
        self._train_losses: list[tuple[int, Tensor]] = []  # step and loss, since the last check
        self._val_losses: list[Tensor] = []  # (B,) of each batch

    def check_run(self, batch_size: int, sizes: Iterable[tuple[int, int]], epochs: int | None) -> None:
        """Check that the network can be trained with batches of images of these sizes for so many epochs.

        Args:
            batch_size: images per batch.
            sizes: heights and widths.
            epochs: None or -1 for no limit.

        Raises:
            InputError: the encoder works at its own image size only, batch normalisation would see a single
                value per channel, which has no variance, or the encoder would stay frozen to the end.
        """
        name = f"model.arch={self.arch} with model.encoder={self.encoder}"
        encoder_trains = not self.network.encoder_frozen or self.unfreeze_epoch is not None
        for height, width in sizes:
            if (height, width) != self.image_size and not self.network.accepts((height, width)):
                raise InputError(
                    f"augment.scales are not possible: {name}, made for {self.image_size[0]}x"
                    f"{self.image_size[1]}, does not work at {height}x{width}: choose another augment"
                )
            if batch_size == 1 and not self.network.trains_on_single_images((height, width), encoder_trains):
                raise InputError(
                    f"data.batch_size=1 does not work with {name} at {height}x{width} (batch normalisation "
                    "of a single value): choose data.batch_size=2 or more"
                )
        if self.unfreeze_epoch is not None and 0 < (epochs or -1) <= self.unfreeze_epoch:
            raise InputError(
                f"model.unfreeze_epoch={self.unfreeze_epoch} is not before trainer.max_epochs={epochs}: "
                "lower it, or leave it null to keep the encoder frozen"
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let a frozen encoder train from `unfreeze_epoch` on, also in a run that is resumed after that."""
        if self.unfreeze_epoch is None or self.current_epoch < self.unfreeze_epoch:
            return
        if self.network.encoder_frozen:
            self.network.freeze_encoder(False)
            strategy = self.trainer.strategy
            # DDP's wrapper averages the gradients of those weights only that were not frozen at its
            # construction: replace it.
            if isinstance(strategy, DDPStrategy):
                strategy.model = self
                gc.collect()  # the old wrapper, whose hooks are on the weights
                strategy.configure_ddp()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch at network resolution. Between two checks this never waits for the GPU."""
        logits, target = self.network(batch["image"]), batch["mask"][:, None]
        loss = self._compute_loss(logits, target)
        check_values = batch_idx % CHECK_EVERY == 0
        self._train_losses.append((self.global_step, loss.detach()))
        if check_values:
            self._check_train_losses()
        _add_scores(self.train_scores, logits[-1], target, check_values)
        self.train_loss.update(loss.detach(), len(target))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The mean loss and the probabilities (B, H, W) of images at network resolution.

        The loss is computed image by image: losses that are pooled over a batch would depend on its size.
        """
        logits, target = self.network(batch["image"]), batch["mask"][:, None]
        losses = []
        for n in range(len(target)):
            losses.append(self._compute_loss([stage[n : n + 1] for stage in logits], target[n : n + 1]))
        self._val_losses.append(torch.stack(losses))
        loss = self._val_losses[-1].mean()
        if batch_idx == 0:
            self._check_loss("val", loss.item(), self.global_step)
        probability = _add_scores(self.val_scores, logits[-1], target, batch_idx == 0)
        return {"loss": loss, "probability": probability[:, 0]}

    def _compute_loss(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """The mean loss of the stages' logits, each (B, 1, H, W)."""
        return torch.stack([self.loss(stage, target) for stage in logits]).mean()

    def _check_train_losses(self) -> None:
        """Refuse training losses since the last check that are NaN or infinite."""
        if self._train_losses:
            steps, losses = zip(*self._train_losses, strict=True)
            self._train_losses.clear()
            for step, loss in zip(steps, torch.stack(losses).tolist(), strict=True):
                self._check_loss("train", loss, step)

    def _check_loss(self, stage: str, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise InputError(
                f"the {stage} loss is {loss} at step {step} (epoch {self.current_epoch}); the last good "
                "checkpoint stays: try a lower optim.decoder_lr or optim.encoder_lr, or "
                "trainer.precision=32-true"
            )

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the epoch's loss and score with its last batch, before its checkpoint is written."""
        if self.trainer.is_last_batch:
            self._check_train_losses()
            dice = self.train_scores.compute()["dice"]
            values = {"train/loss": self.train_loss.compute().float(), "train/dice": dice.float()}
            self.log_dict(values, on_step=False, on_epoch=True, logger=False, batch_size=1, prog_bar=True)
            if self.logger is not None:
                self.logger.log_metrics(
                    {name: value.item() for name, value in values.items()}, self.trainer.global_step - 1
                )
            for metric in self._epoch_metrics().values():
                metric.reset()

    def on_train_epoch_end(self) -> None:
        """Step the schedule plateau; Lightning would do so only after the checkpoint is written."""
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau) and self._monitor() in self.trainer.callback_metrics:
            scheduler.step(self.trainer.callback_metrics[self._monitor()])

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step the schedule; for plateau see `on_train_epoch_end`."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def _epoch_metrics(self) -> dict[str, Metric]:
        return {"loss": self.train_loss, "scores": self.train_scores}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the metrics of an epoch that is interrupted, over all processes.

        Raises:
            InputError: a loss since the last check is NaN or infinite: such weights must not replace good
                ones.
        """
        self._check_train_losses()
        checkpoint["precision"] = self.precision
        checkpoint["epoch_so_far"] = {}
        for name, metric in self._epoch_metrics().items():
            if metric.update_called:
                with metric.sync_context():
                    checkpoint["epoch_so_far"][name] = {
                        state: dim_zero_cat(getattr(metric, state)).cpu() for state in metric.metric_state
                    }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the metrics of the epoch, in one process."""
        if self._trainer is None or not self.trainer.is_global_zero:
            return
        for name, states in checkpoint["epoch_so_far"].items():
            metric = self._epoch_metrics()[name]
            for state, value in states.items():
                setattr(metric, state, [value] if isinstance(metric.metric_state[state], list) else value)
            metric._update_count = 1

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's loss and scores."""
        loss = torch.cat(self._val_losses).double().mean().float()
        self._val_losses.clear()
        self._check_loss("val", loss.item(), self.global_step)
        self.log("val/loss", loss, sync_dist=True)
        _log_scores(self, "val", self.val_scores)

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule, see conf/optim."""
        assert self.optim is not None, "a module without optim cannot be trained"
        if self.optim.layer_decay is None:
            stages = [[*self.network.encoder_parameters()]]
        else:
            stages = self.network.encoder_stages(self.image_size)
        steps = self.trainer.estimated_stepping_batches
        return self.optim.build(stages, self.network.decoder_parameters(), steps, self._monitor())

    def _monitor(self) -> str:
        return getattr(self.trainer.checkpoint_callback, "monitor", None) or "val/dice"


class ScoringModule(pl.LightningModule):
    """Scores a segmenter on a test set, at the images' resolution."""

    def __init__(self, model: PolypSegmenter) -> None:
        super().__init__()
        self.model, self.threshold, self.scores = model, model.threshold, SegmentationScores()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Probabilities and scores of each image at its own resolution.

        The second loader has frames without polyps, of which only the false positives are counted.
        """
        probabilities = self.model.predict(batch["image"])
        rows: list[dict[str, Any]] = []
        if dataloader_idx:
            for probability in probabilities:
                mask = (probability >= 0.5).cpu().numpy()
                rows.append(detection_scores(mask, np.zeros_like(mask)))
            return {"probability": probabilities, "rows": rows}
        for probability, mask in zip(probabilities, batch["mask"], strict=True):
            scores = image_scores(probability, mask.to(probability.device))
            self.scores.update(scores)
            rows.append({name: value.item() for name, value in scores.items()})
        return {"probability": probabilities, "rows": rows}

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test set."""
        _log_scores(self, "test", self.scores)


def _add_scores(scores: SegmentationScores, logits: Tensor, target: Tensor, check_values: bool) -> Tensor:
    """Add a batch to scores; returns the probabilities (B, 1, H, W), float32."""
    probability = torch.sigmoid(logits.detach().float())
    scores.update(image_scores(probability, target, check_values=check_values))
    return probability


def _log_scores(module: pl.LightningModule, stage: str, scores: SegmentationScores) -> None:
    """Log an epoch's scores as val/dice and the like, and reset them."""
    values = scores.compute()
    for name in ("dice", "iou", "precision", "recall", "mae", "pooled_dice"):
        module.log(f"{stage}/{name}", values[name].float(), prog_bar=name == "dice")
    scores.reset()
