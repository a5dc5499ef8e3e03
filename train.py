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

from polyp import files, processes, resume, runs, sweeps
from polyp.errors import InputError

log = logging.getLogger("polyp")


def train(cfg: DictConfig, folder: Path) -> float | None:
    """One run, from the data to metrics.json; returns the number that decided which checkpoint is the best."""
    config = resume.configuration(resume.resolved(cfg), folder, HydraConfig.get().overrides.task)
    if cfg.resume == resume.AUTO and runs.finished(folder):
        metrics = runs.read_metrics(folder)
        log.info("%s is finished: test Dice %.3f", folder, metrics["test"]["dice"])
        return metrics["best"]["value"]

    with runs.claimed(folder, "a run"):
        from tqdm.contrib.logging import logging_redirect_tqdm

        from polyp import checkpoints, experiment, summary  # imports torch
        from polyp.runs.model import Source, load_checkpoint

        with resume.log_held_back():  # a command that is refused leaves the folder as it was
            last = checkpoints.to_continue(folder, config["trainer"]["max_epochs"])
            data, model, trainer = experiment.build(config, folder, last)
            summary.opening(data, model, trainer, folder, last)
            experiment.prepare(data, trainer, last)
            runs.begin(folder, config, data.subsets)
        if last is not None:
            last.restore_best(folder)
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
    folder = Path(cfg.resume if cfg.resume not in (None, resume.AUTO) else HydraConfig.get().runtime.output_dir)
    try:
        if processes.assisting():
            processes.assist(folder)
            return None
        with processes.exit_on_signals(folder), files.catch_disk_errors(runs.way_out(folder)):
            if not in_sweep:
                resume.check_command(cfg)
            return train(cfg, folder)
    except InputError as error:
        if not in_sweep:
            resume.discard(folder)
            sys.exit(f"{error}")
        log.error("%s", error)
    except Exception:
        if not in_sweep:
            raise
        log.exception("the job failed")
    return None


if __name__ == "__main__":
    sys.argv = sweeps.repeated(sys.argv)
    resume.check_overrides(sys.argv)
    main()
