"""Pruning: a trial of a search with Optuna reports its validation, and stops if it is hopeless."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig

from hydra_plugins.optuna_sweeper import STUDY_NAME, open_storage
from polyp.runs.folder import RunFolder

if TYPE_CHECKING:
    from optuna.pruners import MedianPruner

log = logging.getLogger(__name__)


def pruning_callbacks(folder: RunFolder, monitor: str) -> list[pl.Callback]:
    """The callback of a run that is a trial of a search with pruning; none for other runs.

    Args:
        folder: the run's, NUMBER_LABEL in the sweep's folder.
        monitor: the validation number that the search maximises.
    """
    sweeper: Any = HydraConfig.get().sweeper if HydraConfig.initialized() else {}
    if sweeper.get("prune_after_trials") is None or list(sweeper.objectives) != [monitor]:
        return []
    from optuna.pruners import MedianPruner

    pruner = MedianPruner(sweeper.prune_after_trials, sweeper.prune_after_epochs)
    return [Pruning(folder.path.absolute(), monitor, pruner)]


class Pruning(pl.Callback):
    """Reports a trial's validation to the study, and stops the trial if the pruner says so.

    The run is then tested and recorded like one that has ended by itself.
    """

    def __init__(self, folder: Path, monitor: str, pruner: "MedianPruner") -> None:
        self.folder, self.monitor, self.pruner = folder, monitor, pruner
        self.pruned = False

    def state_dict(self) -> dict[str, Any]:
        """Whether the trial was pruned: resuming it then only tests and records it."""
        return {"pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.pruned = state_dict["pruned"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the study, and train no further if the trial was pruned before."""
        import optuna

        self.storage = open_storage(self.folder.parent)
        self.study = optuna.load_study(study_name=STUDY_NAME, storage=self.storage)
        study_id = self.storage.get_study_id_from_name(STUDY_NAME)
        number = int(self.folder.name.partition("_")[0])
        self.trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        if self.pruned:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the number, and compare it."""
        # A trial whose study has its result is run again if its folder was deleted.
        if trainer.sanity_checking or self.storage.get_trial(self.trial_id).state.is_finished():
            return
        value, epoch = float(trainer.callback_metrics[self.monitor]), trainer.current_epoch
        self.storage.set_trial_intermediate_value(self.trial_id, epoch, value)
        trial = self.storage.get_trial(self.trial_id)
        if epoch + 1 != trainer.max_epochs and self.pruner.prune(self.study, trial):
            log.info("pruned: %s is below the median of the trials before", self.monitor)
            self.pruned = trainer.should_stop = True


def is_pruned(trainer: pl.Trainer) -> bool:
    """Whether a search has stopped the run."""
    return any(callback.pruned for callback in trainer.callbacks if isinstance(callback, Pruning))  # type: ignore[attr-defined]
