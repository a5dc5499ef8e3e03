"""Train a polyp segmenter, test the checkpoint that validated best, and leave everything in a run's folder.

python train.py experiment=quickstart
python train.py model.arch=unetplusplus model.encoder=resnet34
python train.py trainer=ddp trainer.devices=2
python train.py -m model.encoder=mobilenet_v2,resnet34
python train.py resume=outputs/runs/NAME/DATE_TIME
"""

import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from polyp import processes, resume, runs, sweeps
from polyp.errors import InputError

log = logging.getLogger("polyp")


def train(cfg: DictConfig) -> float | None:
    """One run, from the data to metrics.json; returns the number that decided which checkpoint is the best."""
    folder = Path(cfg.resume if cfg.resume not in (None, resume.AUTO) else HydraConfig.get().runtime.output_dir)
    config = resume.resolved(cfg)
    if cfg.resume == resume.AUTO and not resume.left_to_do(folder, config):
        metrics = runs.read_metrics(folder)
        log.info("%s is finished: test Dice %.3f", folder, metrics["test"]["dice"])
        return metrics["best"]["value"]

    with runs.claimed(folder, "a run"):
        config = resume.configuration(config, folder, HydraConfig.get().overrides.task)

        from tqdm.contrib.logging import logging_redirect_tqdm

        from polyp import checkpoints, experiment, summary  # imports torch
        from polyp.runs.model import Source, load_checkpoint

        last = checkpoints.to_continue(folder)
        data, model, trainer = experiment.build(config, folder, last)
        summary.opening(data, model, trainer, folder, last)
        runs.begin(folder, config)
        with logging_redirect_tqdm():
            experiment.fit(data, model, trainer, last)
        if config["trainer"].get("fast_dev_run"):  # Lightning's trial of one batch saves nothing
            return None

        best = load_checkpoint(Source.of(str(folder)))
        tester = experiment.test(folder, config, data, best, trainer)
        metrics = experiment.record(folder, config, data, best, trainer, tester)
        summary.closing(metrics, folder)
        return metrics["best"]["value"]


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Train, and say what is wrong with the user's input in one line; in a sweep the other jobs go on."""
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if not in_sweep and (launcher := HydraConfig.get().runtime.choices["launcher"]) != "local":
        sys.exit(f"launcher={launcher} is for the jobs of a sweep: add -m")
    try:
        if processes.assisting():
            processes.assist(Path(HydraConfig.get().runtime.output_dir))
            return None
        return train(cfg)
    except InputError as error:
        if not in_sweep:
            sys.exit(f"{error}")
        log.error("%s", error)
    except Exception:
        if not in_sweep:
            raise
        log.exception("the job failed")
    return None


if __name__ == "__main__":
    sys.argv = sweeps.repeated(sys.argv)
    main()
