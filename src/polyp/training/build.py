"""Data, model and trainer of a run, built from its configuration and checked."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl

from polyp.data.datamodule import PolypDataModule
from polyp.errors import InputError
from polyp.model import device
from polyp.model.optim import Optim
from polyp.model.weights import check_encoder_weights
from polyp.runs.data import build_data, read_recorded_split, restore_split
from polyp.runs.folder import RunFolder
from polyp.runs.model import ModelSource, find_weights
from polyp.settings import check_keys, collect, raise_together
from polyp.training.module import TrainingModule
from polyp.training.run import Run
from polyp.training.trainer import build_trainer
from polyp.training.tuning import find_batch_size

log = logging.getLogger(__name__)


def build(run: Run) -> tuple[PolypDataModule, TrainingModule, pl.Trainer]:
    """Data, model and trainer of a run. Nothing is read or written yet but the network's first weights.

    What can be known without them is checked first and reported together: names, values, and where the data
    lie.

    Args:
        run: new, or with the checkpoint that it continues from, which holds the network's weights.

    Raises:
        InputError: a value or a combination cannot work.
    """
    config, point = run.config, run.resume_point
    seed = config["seed"]
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
        model = build_model(config, resumes=point is not None, problems=problems)
    raise_together(problems)
    model.check_run(data.batch_size, data.multiscale.sizes, trainer.max_epochs)
    if config["model"].get("compile"):
        device.check_compiler(trainer.strategy.root_device)
    return data, model, trainer


def build_model(
    config: Mapping[str, Any], resumes: bool = False, problems: Sequence[str] = ()
) -> TrainingModule:
    """The network of a configuration with its loss, its optimiser and its first weights, drawn by the seed.

    Args:
        config: a run's.
        resumes: whether a checkpoint has the weights, so that none are loaded here.
        problems: of other parts of the configuration. If there are any, no weights are loaded, since they
            may have to be downloaded; the network is built to find its problems as well.

    Raises:
        InputError: a key or a value cannot work, or `problems` are given; all of them.
    """
    settings, problems = config["model"], [*problems]
    check_keys("model", settings, TrainingModule, exclude=["optim"])
    weights = dict.fromkeys(("encoder_weights", "init_from"))
    if not resumes:
        with collect(problems):
            check_encoder_weights(settings["encoder"], settings["encoder_weights"])
        with collect(problems):
            init_from = find_weights(settings.get("init_from"))
        if not problems:
            weights = {"encoder_weights": settings["encoder_weights"], "init_from": init_from}
    if not problems:
        pl.seed_everything(config["seed"], workers=True, verbose=False)
    with collect(problems):
        model = TrainingModule(**settings | weights, optim=None if problems else config["optim"])
    raise_together(problems)
    model.hparams.update({key: settings.get(key) for key in weights})
    model.precision = str(config["trainer"].get("precision") or model.precision)
    return model


def prepare_data(run: Run, data: PolypDataModule, model: TrainingModule, trainer: pl.Trainer) -> None:
    """Find and read the data, and check everything that depends on them; find the batch size if it is auto.

    Raises:
        InputError: something is wrong with the data, they are not those of the checkpoint, or the run would
            end before its first validation, so that no epoch of it could be the best.
    """
    if data.finds_batch_size and not run.is_worker:
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
        _warn_of_fitted_images(run, data)
    options: Any = trainer
    if options.fast_dev_run:
        return
    batches = len(data.subsets["train"]) // (data.batch_size * trainer.world_size)
    limit = options.overfit_batches or options.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.check_val_every_n_epoch or 1)
    if 0 <= trainer.max_steps < steps:
        raise InputError(
            f"trainer.max_steps={trainer.max_steps} ends the run before its first validation, after {steps} "
            "steps: give more, or trainer.max_epochs instead"
        )


def _warn_of_fitted_images(run: Run, data: PolypDataModule) -> None:
    """Warn if the run starts from weights that were fitted to its validation or test images."""
    origin = ModelSource(run.folder.path, run.folder.path, run.config).origin
    if origin is None or origin.data_fingerprint != data.inspection.fingerprint:
        return
    split = read_recorded_split(RunFolder(origin.home)) or {}
    for subset, fit_subsets in (("val", ["train"]), ("test", ["train", "val"])):
        stems = {stem for name in fit_subsets for stem in split.get(name, ())}
        if count := len(stems.intersection(data.subsets[subset])):
            log.warning(
                "%s, which training starts from, was fitted to %d of the %d %s images: the scores on them "
                "will be too good",
                *(origin.home, count, len(data.subsets[subset]), subset),
            )
