"""A sweep whose jobs are the trials of a search with Optuna.

Hydra imports this module at every start: Optuna is imported inside the functions.
"""

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from polyp.errors import InputError, describe_error, pick, printable
from polyp.runs.folder import SWEEP_FILE, RunFolder
from polyp.runs.overrides import find_objection, parse_overrides
from polyp.runs.sweep_folder import find_jobs

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import JournalStorage
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

STUDY_FILE, STUDY_NAME = "optuna.journal", "search"
"""The file of the study in the sweep's folder, and the study's name in it."""

COSTS = ("latency_ms", "parameters", "peak_memory_mb", "seconds")
"""The numbers in metrics.json that can be objectives, of which less is better."""

MAX_CHECKED_JOBS = 64


class OptunaSweeper(Sweeper):
    """A search by TPE. Trial N is job N; its results are in its folder, the study in the sweep's.

    Resuming skips the trials that have finished, and runs the others with their parameters. The parameters
    depend on the seed, the trial's number and the earlier trials, not on interruptions.

    Args:
        n_trials: in all, also when the search is resumed.
        n_jobs: trials that are drawn, and launched, at once.
        seed: of the draws.
        objectives: the monitored validation number, which is maximised, and any of `COSTS`, which are
            minimised.
        prune_after_trials, prune_after_epochs: see `polyp.training.pruning.Pruning`; None for trials prunes
            nothing.
        params: the search space and overrides of all trials; those on the command line come after.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        seed: int,
        objectives: Sequence[str],
        prune_after_trials: int | None,
        prune_after_epochs: int,
        params: Mapping[str, str] | None = None,
    ) -> None:
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed
        self.objectives, self.params = list(objectives), params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    @staticmethod
    def jobs(config: DictConfig) -> list[tuple[list[str], str]]:
        """Jobs that represent all jobs of the search, and their origin.

        Args:
            config: the whole configuration, as Hydra has composed it for a sweep.

        Raises:
            InputError: an objective is unknown, or a number is too small.
        """
        sweeper = config.hydra.sweeper
        for name in sweeper.objectives:
            pick("hydra.sweeper.objectives", name, dict.fromkeys((config.monitor, *COSTS)))
        minima = {"n_trials": 1, "n_jobs": 1, "seed": 0, "prune_after_epochs": 0}
        if sweeper.prune_after_trials is not None:
            minima["prune_after_trials"] = 1
        for name, minimum in minima.items():
            value = sweeper[name]
            if type(value) is not int or value < minimum:
                raise InputError(f"hydra.sweeper.{name}={value} must be a whole number, at least {minimum}")
        jobs = representative_jobs([*_assignments(sweeper.params), *config.hydra.overrides.task])
        return [(job, "which stands for trials like it") for job in jobs]

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that have not finished. One that fails stays open: resuming the search tries it
        again.

        Raises:
            InputError: the search space cannot be used, or the study is damaged or has other objectives.
        """
        assert self.config is not None and self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        OmegaConf.save(self.config, folder / SWEEP_FILE)  # as Hydra's sweepers do: the labels of jobs need it
        space: dict[str, BaseDistribution] = {}
        values: dict[str, str] = {}  # of the keys that are not searched
        overrides = parse_overrides([*_assignments(self.params), *arguments])
        for key, override in overrides.items():
            if override.is_sweep_override():
                space[key] = make_distribution(override)
            else:
                values[key] = override.get_value_element_as_str()
        study = self._open_study(folder)
        for start in range(0, self.n_trials, self.n_jobs):
            stop = min(start + self.n_jobs, self.n_trials)
            while len(study.trials) < stop:
                self._draw_trial(study, space)
            trials = study.trials[start:stop]
            if all(trial.state.is_finished() and _read_metrics(folder, trial.number) for trial in trials):
                continue
            jobs = [_check_parameters(trial, space) | values for trial in trials]
            self.launcher.launch([[f"{key}={job[key]}" for key in overrides] for job in jobs], start)
            for trial in trials:
                if not trial.state.is_finished() and (metrics := _read_metrics(folder, trial.number)):
                    self._record_trial(study, trial.number, metrics)
        for trial in study.best_trials if len(self.objectives) > 1 else []:
            scores = zip(self.objectives, trial.values, strict=True)
            text = ", ".join(f"{name} {value:.4g}" for name, value in scores)
            log.info("Pareto-optimal job %d: %s", trial.number, text)

    def _open_study(self, folder: Path) -> "Study":
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # after the import, which sets it
        file = folder / STUDY_FILE
        if (folder / "optuna.db").exists():
            raise InputError(
                f"{folder} holds a search of polyp 0.5 or older, which cannot be continued: start a new one"
            )
        directions = ["minimize" if name in COSTS else "maximize" for name in self.objectives]
        try:
            if file.exists() and file.read_bytes()[-1:] not in b"\n":
                raise ValueError("it is cut short")
            storage = open_storage(folder)
            study = optuna.create_study(
                study_name=STUDY_NAME, storage=storage, directions=directions, load_if_exists=True
            )
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{file} is damaged ({describe_error(error)}): delete it; the search then draws the same "
                "trials again, and takes the results of those that have finished from their folders"
            ) from error
        objectives = study.user_attrs.get("objectives", self.objectives)
        if objectives != self.objectives:
            raise InputError(
                f"{folder} was started with hydra.sweeper.objectives=[{','.join(objectives)}]: give these, "
                "or another folder with hydra.sweep.dir=FOLDER"
            )
        study.set_user_attr("objectives", self.objectives)
        return study

    def _draw_trial(self, study: "Study", space: Mapping[str, "BaseDistribution"]) -> None:
        import numpy as np
        from optuna.samplers import TPESampler

        seed = np.random.SeedSequence([self.seed, len(study.trials)]).generate_state(1)
        study.sampler = TPESampler(seed=int(seed[0]))
        study.ask(dict(space))

    def _record_trial(self, study: "Study", number: int, metrics: Mapping[str, Any]) -> None:
        from optuna.trial import TrialState

        if metrics.get("pruned"):
            study.tell(number, state=TrialState.PRUNED)
        else:
            best = metrics["best"]["value"]
            study.tell(number, [metrics[name] if name in COSTS else best for name in self.objectives])


def open_storage(folder: Path) -> "JournalStorage":
    """The storage of a search's study, of which each trial may write its part.

    Args:
        folder: the sweep's.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder.absolute() / STUDY_FILE)))  # a link to it is the lock


def _read_metrics(folder: Path, number: int) -> dict[str, Any] | None:
    """The results of a trial; None if it has not finished."""
    job = find_jobs(folder).get(number)
    return RunFolder(job).read_metrics() if job and RunFolder(job).is_finished else None


def _check_parameters(trial: "FrozenTrial", space: Mapping[str, "BaseDistribution"]) -> dict[str, Any]:
    """The parameters of a trial, if they are allowed in a file, which somebody else may have written."""
    for key, value in trial.params.items():
        override = f"{key}={value}"
        if value not in getattr(space.get(key), "choices", ()) and (objection := find_objection(override)):
            raise InputError(f"{STUDY_FILE}: {printable(override)} of trial {trial.number} {objection}")
    return trial.params


def _assignments(params: Mapping[str, str] | None) -> list[str]:
    return [f"{key}={value}" for key, value in (params or {}).items()]


def make_distribution(override: Override) -> "BaseDistribution":
    """The distribution of a search that an override describes.

    `interval(low,high)` is continuous, `tag(log,...)` makes it logarithmic and `int(...)` one of whole
    numbers; `range(start,stop,step)` has the values that it has in any sweep; others are choices.

    Raises:
        InputError: it has no values.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    options: dict[str, Any] = {}
    try:
        if isinstance(value, IntervalSweep):
            low, high, options = value.start, value.end, {"log": "log" in value.tags}
        elif isinstance(value, RangeSweep):
            low, high, options = min(value.range()), max(value.range()), {"step": abs(value.step)}
        if options:
            is_integer = all(isinstance(number, int) for number in (low, high, options.get("step", 1)))
            return (IntDistribution if is_integer else FloatDistribution)(low, high, **options)
        value.shuffle = False  # the order of choices is part of the study
        return CategoricalDistribution([*override.sweep_string_iterator()])
    except ValueError as error:
        raise InputError(f"{override.input_line} cannot be searched: {describe_error(error)}") from error


def representative_jobs(arguments: Sequence[str]) -> list[list[str]]:
    """Jobs that represent all jobs of a search.

    All combinations of the choices, or each choice at least once where that would be more than
    `MAX_CHECKED_JOBS`; of an interval, its lower end.

    Args:
        arguments: overrides, KEY=VALUE, some of which are sweeps.
    """
    choices = {key: _list_choices(override) for key, override in parse_overrides(arguments).items()}
    if math.prod(map(len, choices.values())) <= MAX_CHECKED_JOBS:
        jobs = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    else:
        default = {key: values[0] for key, values in choices.items()}
        jobs = []
        for key, values in choices.items():
            if len(values) > 1:
                jobs += [default | {key: value} for value in values]
    return [[f"{key}={value}" for key, value in job.items()] for job in jobs]


def _list_choices(override: Override) -> list[str]:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start)]
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]
