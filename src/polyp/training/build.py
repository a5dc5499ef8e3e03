"""Data, model and trainer of a run, built from its configuration and checked."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from polyp.data.datamodule import PolypDataModule
from polyp.errors import InputError
from polyp.model import device
from polyp.model.optim import Optim
from polyp.model.weights import check_encoder_weights
from polyp.runs.data import build_data, read_recorded_split, restore_split
from polyp.runs.folder import RunFolder
from polyp.runs.model import Source, find_weights
from polyp.settings import check_keys, collect, raise_together
from polyp.training.module import TrainingModule
from polyp.training.run import Run
from polyp.training.trainer import build_trainer

log = logging.getLogger(__name__)


def build(run: Run) -> tuple[PolypDataModule, TrainingModule, pl.Trainer]:
    """Data, model and trainer of a run. Nothing is read or written yet but encoder weights.

    What can be known without them is checked first and reported together: names, values, and where the data
    lie.

    Args:
        run: new, or with the checkpoint that it continues from, which holds the encoder's weights.

    Raises:
        InputError: a value or a combination cannot work.
    """
    config, point = run.config, run.resume_point
    seed, settings = config["seed"], config["model"]
    device.forget_peak_memory()
    problems: list[str] = []
    with collect(problems):
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise InputError(f"seed={seed} must be a whole number from 0 on")
    with collect(problems):
        data = build_data(config["data"], config["augment"], seed)
        if point is not None:
            restore_split(data, run.folder)
        data.check()
    with collect(problems):
        trainer = build_trainer(run.folder, config, point.steps if point else 0)
    if not problems and data.finds_batch_size and trainer.strategy.root_device.type != "cuda":
        problems.append(
            "data.batch_size=auto fills the memory of a GPU, and there is none here: give a number"
        )
    with collect(problems):
        check_keys("optim", config["optim"], Optim)
        Optim(**config["optim"])
    with collect(problems):
        check_keys("model", settings, TrainingModule, exclude=["optim"])
        if point is None:
            with collect(problems):
                check_encoder_weights(settings["encoder"], settings["encoder_weights"])
            with collect(problems):
                init_from = find_weights(settings.get("init_from"))
        if not problems:
            pl.seed_everything(seed, workers=True, verbose=False)
        # Weights may have to be downloaded: not if something else is wrong, or if a checkpoint has them.
        weights = dict.fromkeys(("encoder_weights", "init_from"))
        if not problems and point is None:
            weights = {"encoder_weights": settings["encoder_weights"], "init_from": init_from}
        optim = None if problems else config["optim"]
        model = TrainingModule(**settings | weights, optim=optim)
        model.hparams.update({key: settings.get(key) for key in weights})
        model.precision = str(config["trainer"].get("precision") or model.precision)
        if not problems:
            model.check_batches(data.batch_size, data.multiscale.sizes)
            model.check_epochs(trainer.max_epochs)
            if settings.get("compile"):
                device.check_compiler(trainer.strategy.root_device)
    raise_together(problems)
    return data, model, trainer


def build_model(config: Mapping[str, Any]) -> TrainingModule:
    """The network of a configuration, with its first weights.

    Raises:
        InputError: a key or a value cannot work.
    """
    settings = config["model"]
    check_keys("model", settings, TrainingModule, exclude=["optim"])
    check_encoder_weights(settings["encoder"], settings["encoder_weights"])
    weights = {"init_from": find_weights(settings.get("init_from"))}
    return TrainingModule(**settings | weights, optim=config["optim"])


def prepare_data(run: Run, data: PolypDataModule, model: TrainingModule, trainer: pl.Trainer) -> None:
    """Find and read the data, and check everything that depends on them; find the batch size if it is auto.

    Args:
        run, data, model, trainer: the run and its parts.

    Raises:
        InputError: something is wrong with the data, they are not those of the checkpoint, or the run would
            end before its first validation, so that no epoch of it could be the best.
    """
    if data.finds_batch_size and not run.is_worker:
        from polyp.training.tuning import find_batch_size

        data.batch_size = find_batch_size(model, data.multiscale.sizes, run.config["trainer"])
        run.config["data"]["batch_size"] = data.batch_size
        log.info("data.batch_size=auto: batches of %d images", data.batch_size)
    data.trainer = trainer  # as in Lightning's fit
    data.setup("fit")
    fingerprint = data.inspection.fingerprint
    if run.resume_point and run.resume_point.data_fingerprint not in (None, fingerprint):
        raise InputError(
            f"these are not the images that the run was trained on (fingerprint {fingerprint}, then "
            f"{run.resume_point.data_fingerprint}): give the folder that has them with data.root=, or start "
            "a new run"
        )
    if run.resume_point is None:
        _warn_of_known_images(run, data)
    settings: Any = trainer
    if settings.fast_dev_run:
        return
    batches = len(data.subsets["train"]) // (data.batch_size * trainer.world_size)
    limit = settings.overfit_batches or settings.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.check_val_every_n_epoch or 1)
    if 0 <= trainer.max_steps < steps:
        raise InputError(
            f"trainer.max_steps={trainer.max_steps} ends the run before its first validation, after {steps} "
            "steps: give more, or trainer.max_epochs instead"
        )


def _warn_of_known_images(run: Run, data: PolypDataModule) -> None:
    """Say which images the run is validated or tested on though the weights that it starts from, those of
    another run on the same data, were fitted to them.
    """
    origin = Source(run.folder.path, run.folder.path, run.config).origin
    if origin is None or origin.data_fingerprint != data.inspection.fingerprint:
        return
    before = read_recorded_split(RunFolder(origin.home)) or {}
    for subset, fitted in (("val", ["train"]), ("test", ["train", "val"])):
        stems = {stem for name in fitted for stem in before.get(name, ())}
        if count := len(stems.intersection(data.subsets[subset])):
            log.warning(
                "%s, which training starts from, was fitted to %d of the %d %s images: the scores on them "
                "will be too good",
                *(origin.home, count, len(data.subsets[subset]), subset),
            )
