"""Many jobs from one command: their short labels, and the check of all of them before the first starts."""

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from polyp.errors import InputError

LABEL_LENGTH = 60


def job_label(overrides: Sequence[str], sweep_folder: str) -> str:
    """What sets a job apart from the others of its sweep, as part of a folder's name: `encoder-resnet34`.

    Args:
        overrides: the job's overrides, KEY=VALUE.
        sweep_folder: where Hydra has written multirun.yaml, the sweep as it was given; an override that stands there as
            it is does not vary.
    """
    given = Path(sweep_folder) / "multirun.yaml"
    task = OmegaConf.load(given).hydra.overrides.task if given.is_file() else []
    shared = dict(override.partition("=")[::2] for override in task)  # of a key that is given twice, the last counts
    parts = []
    for override in overrides:
        key, _, value = override.partition("=")
        if shared.get(key) != value:
            value = re.sub(r"[^\w.+-]+", "-", Path(value).stem if "/" in value else value).strip("-")
            parts.append(f"{key.lstrip('+').rpartition('.')[2]}-{value}")
    return "_".join(parts)[:LABEL_LENGTH] or "job"


def extra(name: str, target: str) -> str:
    """The class of a Hydra plugin that comes with one of our extras; leaves with the line that installs it."""
    try:
        found = importlib.util.find_spec(target.rpartition(".")[0])
    except ModuleNotFoundError:
        found = None
    if found is None:
        sys.exit(f"{name} is not installed: pip install -e '.[{name}]'")
    return target


# Here, and not in train.py: the processes that a launcher starts import this module, but not that script.
OmegaConf.register_new_resolver("job_label", job_label, replace=True)
OmegaConf.register_new_resolver("extra", extra, replace=True)


class CheckJobs(Callback):
    """Composes every job of a grid and builds its data, model and trainer before the first job starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Leave with one line if a job cannot work."""
        # Hydra turns exceptions of callbacks into warnings, but not SystemExit.
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
        jobs = BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]
        from polyp.experiment import build  # imports torch

        for number, job in enumerate(jobs):
            try:
                build(compose(config.hydra.job.config_name, overrides=job), Path())
            except InputError as error:
                sys.exit(f"job {number} of the sweep ({' '.join(job)}) cannot work: {error}\nNo job was started.")
