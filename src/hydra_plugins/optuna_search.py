"""Hydra's Optuna sweeper, for searches that may be stopped. Hydra imports this at every start, so Optuna comes late."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

MOST_CHECKED = 64


class Search(Sweeper):
    """A search whose study is built anew at each start, from trial 0 on.

    With `resume=auto` a finished trial answers with its recorded number, so nothing is trained twice.
    """

    def __init__(self, **settings: Any) -> None:
        """Take what `OptunaSweeper` takes."""
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper

        self.settings = settings
        self.sweeper = OptunaSweeper(**settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        self.config = config
        self.sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run all trials; those that fail are left out, even if that is all of them."""
        import optuna

        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")  # as Hydra's own sweeper does; the jobs' labels need it
        for file in folder.glob("optuna.db*"):
            file.unlink()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # Optuna sets its own: a configuration cannot
        try:
            self.sweeper.sweep(arguments)
        except ValueError:  # the sweeper asks for the best trial, whether there is one or not
            study = optuna.load_study(self.settings["study_name"], self.settings["storage"])
            if any(trial.state.name == "COMPLETE" for trial in study.trials):
                raise

    @staticmethod
    def jobs(config: DictConfig) -> list[tuple[list[str], str]]:
        """Jobs that stand for all that the search may ask for, and where they come from.

        Args:
            config: the whole configuration, as Hydra has composed it for a sweep.
        """
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        jobs = representatives([*params, *config.hydra.overrides.task])
        return [(job, f"which stands for trials with {particular}") for job, particular in jobs]


def representatives(arguments: Sequence[str]) -> list[tuple[list[str], str]]:
    """Jobs that stand for all jobs of a search, and what is particular to each.

    All combinations of the choices, or each choice at least once where that would be more than `MOST_CHECKED`; of an
    interval, its lower end.

    Args:
        arguments: overrides, KEY=VALUE, some of which are sweeps; of a key that is given twice, the last counts.
    """
    values = {}
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        key, given = override.get_key_element(), override.value()
        if isinstance(given, IntervalSweep):
            values[key] = [f"{key}={given.start}"]
        elif override.is_sweep_override():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
    chosen = {value for each in values.values() if len(each) > 1 for value in each}
    if math.prod(map(len, values.values())) <= MOST_CHECKED:
        jobs = itertools.product(*values.values())
        return [(list(job), " ".join([value for value in job if value in chosen] or job)) for job in jobs]
    first = {key: each[0] for key, each in values.items()}
    return [
        (list((first | {key: value}).values()), value) for key in values for value in values[key] if value in chosen
    ]
