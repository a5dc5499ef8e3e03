"""The stages of a run after its parts are built: training, the test, and the record in metrics.json."""

from importlib.metadata import version
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from polyp import __version__
from polyp.data.datamodule import PolypDataModule
from polyp.errors import InputError, describe_error
from polyp.metrics import suite
from polyp.metrics.intervals import summarise_rows, summarise_sources
from polyp.metrics.overlap import DEFINITIONS
from polyp.model import device
from polyp.model.cost import measure_latency
from polyp.model.segmenter import PolypSegmenter
from polyp.training.checkpoints import LastCheckpoint
from polyp.training.loggers import RunLogger
from polyp.training.module import ScoringModule, TrainingModule
from polyp.training.pictures import TestRecord
from polyp.training.pruning import is_pruned
from polyp.training.run import Run
from polyp.training.trainer import build_tester

T = TypeVar("T")

PACKAGES = ("torch", "pytorch-lightning", "segmentation-models-pytorch", "timm", "albumentations", "numpy")
"""The packages whose versions metrics.json records beside polyp's."""


def fit(run: Run, data: PolypDataModule, model: TrainingModule, trainer: pl.Trainer) -> None:
    """Train to the end. Several processes that have trained together are independent afterwards.

    Raises:
        InputError: several devices need another strategy for this network, or Lightning refuses its settings.
    """
    try:
        checkpoint = run.resume_point.file if run.resume_point else None
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    except RuntimeError as error:
        if "parameters that were not used" not in str(error):
            raise
        raise InputError(
            f"{model.arch} with {model.encoder} has weights that its output does not "
            "use, which several devices need: trainer.strategy=ddp_find_unused_parameters_true"
        ) from error
    except MisconfigurationException as error:
        raise InputError(f"trainer: {describe_error(error)}") from error
    if torch.distributed.is_initialized():  # else metrics would wait for processes that have ended
        torch.distributed.destroy_process_group()


def test(run: Run, data: PolypDataModule, model: PolypSegmenter, trainer: pl.Trainer) -> pl.Trainer:
    """Score the test set with a model, on one device of `trainer`; returns the Trainer that has tested."""
    tester = build_tester(run.folder, run.config["trainer"], trainer.strategy.root_device)
    tester.test(ScoringModule(model), data, verbose=False)
    return tester


def count_parameters(model: PolypSegmenter) -> int:
    """The number of parameters, those of a frozen encoder included."""
    return sum(parameter.numel() for parameter in model.parameters())


def record(
    run: Run, data: PolypDataModule, model: PolypSegmenter, trainer: pl.Trainer, tester: pl.Trainer
) -> dict[str, Any]:
    """Write metrics.json, and the final numbers beside the curves; returns the content of metrics.json.

    Args:
        run, data, model, trainer: the run and its parts.
        tester: the Trainer that has tested the model.
    """
    test, definitions = _summarise_test(tester)
    best: Any = trainer.checkpoint_callback
    checkpoint = torch.load(run.folder.best_checkpoint, map_location="cpu", weights_only=True, mmap=True)
    value, epoch = float(best.best_model_score), checkpoint["epoch"]
    metrics = {
        "test": test,
        "best": {"monitor": best.monitor, "value": value, "epoch": epoch},
        "definitions": definitions
        | {
            "test": "at original resolution, by the checkpoint that validated best; it is used once",
            "best": "the monitored number of the best epoch (the first is 0), at network resolution",
            "peak_memory_mb": "of the GPU, or else of the process (on Linux); of the first device",
            "latency_ms": "of the network for one image at its resolution; on a CPU by one thread",
            "interval": "percentile bootstrap over the test images, 95 %: other images, not other seeds",
        },
        "seed": run.config["seed"],
        "data": data.describe(),
        "parameters": count_parameters(model),
        "latency_ms": measure_latency(model.to(trainer.strategy.root_device)),
        "epochs": trainer.current_epoch,
        "pruned": is_pruned(trainer),
        "seconds": round(_find_callback(trainer, LastCheckpoint).seconds, 1),
        "peak_memory_mb": round(device.peak_memory() / 2**20),
        "devices": trainer.world_size,
        "device": device.description(),
        "precision": str(trainer.precision),
        "versions": {"polyp": __version__} | {package: version(package) for package in PACKAGES},
    }
    curve_values = {f"test/{name}": number for name, number in test.items() if isinstance(number, float)}
    if "normal" in test:
        curve_values["test/false_alarms"] = test["normal"]["false_alarms"]
    assert isinstance(trainer.logger, RunLogger)
    trainer.logger.write_result(curve_values, best.monitor, value, trainer.global_step)
    run.folder.write_metrics(metrics)
    run.folder.previous_checkpoint.unlink(missing_ok=True)  # a finished run needs no second copy
    return metrics


def _summarise_test(tester: pl.Trainer) -> tuple[dict[str, Any], dict[str, str]]:
    """The numbers of the test, and their definitions."""
    record, definitions = _find_callback(tester, TestRecord), DEFINITIONS
    test = summarise_rows(record.rows, ["dice", "iou"])
    test |= {name.removeprefix("test/"): float(value) for name, value in tester.callback_metrics.items()}
    if sources := summarise_sources(record.rows):
        test["sources"] = sources
    if counts := [row["false_positives"] for row in record.normal]:
        frames = [{"false_alarms": count > 0, "false_positives_per_image": count} for count in counts]
        test["normal"] = summarise_rows(frames, list(frames[0]))
        definitions = definitions | {name: suite.get_definitions()[name] for name in frames[0]}
    return test, definitions


def _find_callback(trainer: pl.Trainer, callback_class: type[T]) -> T:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, callback_class))
