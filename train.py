"""Train a polyp segmenter, test the checkpoint that validated best, and leave everything in a run's folder.

python train.py experiment=quickstart
python train.py model.arch=unetplusplus model.encoder=resnet34
python train.py -m model.encoder=mobilenet_v2,resnet34
python train.py resume=outputs/runs/NAME/DATE_TIME
"""

import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from polyp import runs, sweeps  # noqa: F401
from polyp.errors import InputError


def train(cfg: DictConfig) -> float:
    """One run, from the data to metrics.json; returns the number that decided which checkpoint is the best."""
    started = time.time()
    folder = Path(cfg.resume or HydraConfig.get().runtime.output_dir)
    if cfg.resume is not None:
        cfg = runs.resumed_config(folder, HydraConfig.get().overrides.task)
    elif runs.finished(folder) or runs.last_checkpoint(folder).exists():
        raise InputError(f"{folder} holds a run already: continue it with resume={folder}, or give another folder")

    from tqdm.contrib.logging import logging_redirect_tqdm

    from polyp import experiment, summary  # imports torch

    data, model, trainer = experiment.build(cfg, folder)
    summary.opening(data, model, trainer, folder)
    OmegaConf.save(cfg, folder / runs.CONFIG, resolve=True)
    with logging_redirect_tqdm():
        trainer.fit(model, data, ckpt_path=runs.last_checkpoint(folder) if cfg.resume else None, weights_only=True)
    if cfg.trainer.get("fast_dev_run"):  # Lightning's trial of one batch saves nothing
        return float("nan")

    best = experiment.best_model(folder)
    trainer.test(best, data, verbose=False)
    metrics = experiment.record(folder, cfg, data, best, trainer, started)
    summary.closing(metrics, folder)
    return metrics["best"]["value"]


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """Train, and say what is wrong with the user's input in one line."""
    try:
        return train(cfg)
    except InputError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # the other jobs go on
            raise
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
