"""A run as a trial of a search with Optuna: it reports its validation, and is pruned if it is hopeless."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig

from polyp.runs.folder import RunFolder

log = logging.getLogger(__name__)


def pruning_callbacks(folder: RunFolder, monitor: str) -> list[pl.Callback]:
    """The callback of a run that is a trial of a search which prunes; none for any other run.

    Args:
        folder: the run's, in that of its sweep and named NUMBER_LABEL.
        monitor: the validation number that the search maximises.
    """
    sweeper: Any = HydraConfig.get().sweeper if HydraConfig.initialized() else {}
    after_trials = sweeper.get("prune_after_trials")
    if after_trials is None or list(sweeper.objectives) != [monitor]:
        return []
    path = folder.path.absolute()
    number = int(path.name.partition("_")[0])
    return [Pruning(path.parent, number, monitor, after_trials, sweeper.prune_after_epochs)]


class Pruning(pl.Callback):
    """Stops a trial whose best validation so far is below the median that the finished trials had at this epoch.

    The run is then tested and recorded like one that has ended by itself.

    Args:
        sweep: the folder with the study.
        number: of the trial.
        monitor: the validation number.
        after_trials: finished ones, before which none is stopped.
        after_epochs: of each trial, before which it is not stopped.
    """

    def __init__(self, sweep: Path, number: int, monitor: str, after_trials: int, after_epochs: int) -> None:
        self.sweep, self.number, self.monitor = sweep, number, monitor
        self.settings = {"n_startup_trials": after_trials, "n_warmup_steps": after_epochs}
        self.pruned = False

    def state_dict(self) -> dict[str, Any]:
        """Whether the trial was pruned: resuming it then only tests and records it."""
        return {"pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.pruned = state_dict["pruned"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train no further if the trial was pruned before."""
        if self.pruned:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the number, and compare it."""
        from optuna.pruners import MedianPruner

        from hydra_plugins.optuna_sweeper import load_study

        if trainer.sanity_checking:
            return
        study, storage = load_study(self.sweep)
        trial = study.trials[self.number]
        if trial.state.is_finished():  # its results were deleted
            return
        identifier = storage.get_trial_id_from_study_id_trial_number(
            storage.get_study_id_from_name(study.study_name), self.number
        )
        value = float(trainer.callback_metrics[self.monitor])
        storage.set_trial_intermediate_value(identifier, trainer.current_epoch, value)
        if MedianPruner(**self.settings).prune(study, storage.get_trial(identifier)):
            log.info("pruned: %s is below the median of the trials before", self.monitor)
            self.pruned = trainer.should_stop = True


def is_pruned(trainer: pl.Trainer) -> bool:
    """Whether a search has stopped the run."""
    return any(callback.pruned for callback in trainer.callbacks if isinstance(callback, Pruning))  # type: ignore[attr-defined]
