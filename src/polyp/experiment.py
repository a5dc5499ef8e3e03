"""From a configuration to a trained model: the parts, built and put together, and the numbers at the end."""

import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from polyp import device, runs
from polyp.callbacks import TestRecord
from polyp.checkpoints import LastCheckpoint, Saved
from polyp.data.datamodule import PolypDataModule
from polyp.errors import InputError, describe_error
from polyp.metrics.intervals import bootstrap_interval
from polyp.metrics.overlap import DEFINITIONS
from polyp.model.optim import Optim
from polyp.model.segmenter import PolypSegmenter
from polyp.model.weights import check_encoder_weights
from polyp.runs import identity
from polyp.runs.data import build_data, restore_split
from polyp.settings import check_keys, collect, raise_together
from polyp.trainer import build_tester, build_trainer

T = TypeVar("T")

PACKAGES = ("polyp", "torch", "pytorch-lightning", "segmentation-models-pytorch", "timm", "albumentations", "numpy")


def build(
    config: Mapping[str, Any], folder: Path, last: Saved | None = None
) -> tuple[PolypDataModule, PolypSegmenter, pl.Trainer]:
    """Data, model and trainer of a configuration. Nothing is read or written yet but encoder weights.

    What can be known without them is checked first and reported together: names, values, and where the data lie.

    Args:
        config: of the run, as plain containers.
        folder: the run's.
        last: the checkpoint that training continues from: the encoder's weights are in it.

    Raises:
        InputError: a value or a combination cannot work.
    """
    seed, settings = config["seed"], config["model"]
    device.forget_peak_memory()
    problems: list[str] = []
    with collect(problems):
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise InputError(f"seed={seed} must be a whole number from 0 on")
    with collect(problems):
        data = build_data(config["data"], config["augment"], seed)
        if last is not None:
            restore_split(data, folder)
        data.check()
    with collect(problems):
        trainer = build_trainer(
            folder,
            seed,
            config["monitor"],
            config["patience"],
            config["optim"].get("ema_decay"),
            config["trainer"],
            last.steps if last else 0,
        )
    with collect(problems):
        check_keys("optim", config["optim"], Optim)
        Optim(**config["optim"])
    with collect(problems):
        check_keys("model", settings, PolypSegmenter, exclude=["optim"])
        if last is None:
            with collect(problems):
                check_encoder_weights(settings["encoder"], settings["encoder_weights"])
        if not problems:
            pl.seed_everything(seed, workers=True, verbose=False)
        # Weights may have to be downloaded: not if something else is wrong, or if a checkpoint has them.
        weights = None if problems or last else settings["encoder_weights"]
        optim = None if problems else config["optim"]
        model = PolypSegmenter(**settings | {"encoder_weights": weights}, optim=optim)
        model.hparams["encoder_weights"] = settings["encoder_weights"]
        model.precision = str(config["trainer"].get("precision") or model.precision)
        if not problems:
            model.check_batch_size(data.batch_size)
    raise_together(problems)
    return data, model, trainer


def prepare(data: PolypDataModule, trainer: pl.Trainer, last: Saved | None) -> None:
    """Find and read the data, and check everything that depends on them.

    Args:
        data, trainer: the parts of a run.
        last: the checkpoint that training continues from.

    Raises:
        InputError: something is wrong with the data, they are not those of the checkpoint, or the run would end before
            its first validation, so that no epoch of it could be the best.
    """
    data.trainer = trainer  # as in Lightning's fit
    data.setup("fit")
    if last is not None and last.data_fingerprint not in (None, data.inspection.fingerprint):
        raise InputError(
            f"these are not the images that the run was trained on (fingerprint {data.inspection.fingerprint}, then "
            f"{last.data_fingerprint}): give the folder that has them with data.root=, or start a new run"
        )
    settings: Any = trainer
    if settings.fast_dev_run:
        return
    batches = len(data.subsets["train"]) // (data.batch_size * trainer.world_size)
    limit = settings.overfit_batches or settings.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.check_val_every_n_epoch or 1)
    if 0 <= trainer.max_steps < steps:
        raise InputError(
            f"trainer.max_steps={trainer.max_steps} ends the run before its first validation, after {steps} steps: "
            "give more, or trainer.max_epochs instead"
        )


def fit(data: PolypDataModule, model: PolypSegmenter, trainer: pl.Trainer, last: Saved | None) -> None:
    """Train to the end. Where several processes have trained, each goes its own way from here on.

    Args:
        data, model, trainer: the parts of a run.
        last: what training goes on from, if it does.

    Raises:
        InputError: several devices need another strategy for this network, or Lightning refuses its settings.
    """
    try:
        trainer.fit(model, data, ckpt_path=last.file if last else None, weights_only=True)
    except RuntimeError as error:
        if "parameters that were not used" not in str(error):
            raise
        raise InputError(
            f"{model.hparams['arch']} with {model.hparams['encoder']} has weights that its output does not use, which "
            "several devices must be told: trainer.strategy=ddp_find_unused_parameters_true"
        ) from error
    except MisconfigurationException as error:
        raise InputError(f"trainer: {describe_error(error)}") from error
    if torch.distributed.is_initialized():  # else metrics would wait for processes that have ended
        torch.distributed.destroy_process_group()


def test(
    folder: Path, config: Mapping[str, Any], data: PolypDataModule, model: PolypSegmenter, trainer: pl.Trainer
) -> pl.Trainer:
    """Score the test set, on one device, and return the Trainer that did.

    Args:
        folder: the run's.
        config: its configuration.
        data, model: what is tested on what.
        trainer: the one that has trained.
    """
    tester = build_tester(folder, config["trainer"], trainer.strategy.root_device)
    tester.test(model, data, verbose=False)
    return tester


def parameters(model: PolypSegmenter) -> int:
    """The number of parameters, those of a frozen encoder included."""
    return sum(parameter.numel() for parameter in model.parameters())


def record(
    folder: Path,
    config: Mapping[str, Any],
    data: PolypDataModule,
    model: PolypSegmenter,
    trainer: pl.Trainer,
    tester: pl.Trainer,
) -> dict[str, Any]:
    """Write metrics.json and TensorBoard's HPARAMS at the end of a run, and return the former.

    Args:
        folder: the run's.
        config, data, model, trainer: its parts.
        tester: the Trainer that has just tested the model.
    """
    rows = _callback(tester, TestRecord).rows
    test = {name.removeprefix("test/"): float(value) for name, value in tester.callback_metrics.items()}
    intervals = {f"{name}_interval": _interval([row[name] for row in rows]) for name in ("dice", "iou")}
    best: Any = trainer.checkpoint_callback
    metrics = {
        "test": test | intervals | {"n": len(rows)},
        "best": {"monitor": best.monitor, "value": float(best.best_model_score), "epoch": _epoch(folder)},
        "definitions": DEFINITIONS
        | {
            "test": "at original resolution, by the checkpoint that validated best; the test set is used once",
            "best": "the monitored validation number of the best epoch (the first is 0), at network resolution",
            "peak_memory_mb": "of the GPU, or else of the process, during the run (on Linux); of the first device",
            "interval": "percentile bootstrap over the test images, 95 %: other images, not other seeds",
        },
        "seed": config["seed"],
        "data": data.describe(),
        "parameters": parameters(model),
        "epochs": trainer.current_epoch,
        "seconds": round(_callback(trainer, LastCheckpoint).seconds, 1),
        "peak_memory_mb": round(device.peak_memory() / 2**20),
        "devices": trainer.world_size,
        "device": device.description(),
        "precision": str(trainer.precision),
        "versions": {package: version(package) for package in PACKAGES},
    }
    _log_hyperparameters(trainer, config, metrics)
    runs.write_metrics(folder, metrics)
    runs.previous_checkpoint(folder).unlink(missing_ok=True)  # it was for an accident
    return metrics


def _callback(trainer: pl.Trainer, kind: type[T]) -> T:
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]


def _log_hyperparameters(trainer: pl.Trainer, config: Mapping[str, Any], metrics: dict[str, Any]) -> None:
    """TensorBoard's HPARAMS tab: the whole configuration beside the numbers that count."""
    assert isinstance(trainer.logger, TensorBoardLogger)
    groups = ("seed", "data", "model", "optim", "trainer")
    settings = identity.decisive(config).items()
    chosen = {key.replace(".", "/"): value for key, value in settings if identity.matches(key, groups)}
    values = {f"test/{name}": value for name, value in metrics["test"].items() if isinstance(value, float)}
    best = {f"best/{metrics['best']['monitor']}": metrics["best"]["value"]}
    trainer.logger.log_hyperparams(chosen, values | best, step=trainer.global_step)
    trainer.logger.finalize("success")


def _interval(values: list[float]) -> list[float] | None:
    interval = bootstrap_interval(values)
    return None if math.isnan(interval[0]) else list(interval)  # JSON knows no NaN


def _epoch(folder: Path) -> int:
    return torch.load(runs.best_checkpoint(folder), map_location="cpu", weights_only=True, mmap=True)["epoch"]
