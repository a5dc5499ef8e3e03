"""Train a polyp segmenter, test the checkpoint that validated best, and leave everything in a run's folder.

python train.py experiment=quickstart
python train.py model.arch=unetplusplus model.encoder=resnet34
python train.py trainer=ddp trainer.devices=2
python train.py -m model.encoder=mobilenet_v2,resnet34
python train.py resume=outputs/runs/NAME/DATE_TIME
"""

import sys
from pathlib import Path

try:
    import hydra
    from omegaconf import DictConfig

    from polyp import terminal
    from polyp.training.run import Run, open_run, prepare_command_line
except KeyboardInterrupt:  # Ctrl-C
    raise SystemExit(130) from None


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One run; returns the validation number of its best checkpoint, which a search maximises."""
    with open_run(cfg) as run:  # its folder, locked; its configuration; the checkpoint that it continues from
        return run.best_value if run.is_finished else train(run)
    return None  # the job of a sweep has failed and said why


def train(run: Run) -> float | None:
    """Train and test a run."""
    with terminal.loading("building the network"):
        from polyp.runs.model import load_run_model  # torch: not for --help
        from polyp.training.build import build, prepare_data
        from polyp.training.console import print_result, print_start
        from polyp.training.stages import fit, record, test

        data, model, trainer = build(run)
    print_start(run, data, model, trainer)
    with terminal.status("preparing the data"):
        prepare_data(run, data, model, trainer)
    run.begin(data.subsets)  # nothing in its folder has changed until here
    fit(run, data, model, trainer)
    if run.ends_after_training:
        return None

    with terminal.status("loading the best checkpoint"):
        best = load_run_model(run.folder)
    tester = test(run, data, best, trainer)
    with terminal.status("measuring the latency"):
        metrics = record(run, data, best, trainer, tester)
    print_result(metrics, run.folder)
    return run.best_value


if __name__ == "__main__":
    try:
        prepare_command_line(Path(__file__).resolve().parent / "conf")
        main()
    except KeyboardInterrupt:
        sys.exit(130)
