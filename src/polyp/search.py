"""What makes a search with Optuna one that can be stopped: its trials are recorded in their run folders."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from polyp.files import DamagedError, read_yaml
from polyp.runs.resume import job_folders


class RecordedTPESampler(TPESampler):
    """TPE that asks again for what a trial was given before, so that a search that is started anew goes on.

    A seed alone would do as long as nothing else changes; a trial that failed and now succeeds changes what TPE draws.
    """

    def __init__(self, folder: str, **settings: Any) -> None:
        """Read the record.

        Args:
            folder: the sweep's.
            settings: what `TPESampler` takes.
        """
        super().__init__(**settings)
        self.records: dict[int, dict[str, str]] = {}
        for number, job in job_folders(Path(folder)).items():
            with suppress(DamagedError):  # what cannot be read is drawn anew, with the same result if nothing changed
                lines = read_yaml(job / ".hydra" / "overrides.yaml")
                self.records[number] = dict(str(line).partition("=")[::2] for line in lines)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The recorded value, if it is one that may be drawn; else a new one."""
        # Drawn in any case: the random numbers after it are then those of a search that was never stopped.
        drawn = super().sample_independent(study, trial, param_name, param_distribution)
        recorded = self.records.get(trial.number, {}).get(param_name, "")
        if isinstance(param_distribution, CategoricalDistribution):
            return {str(choice): choice for choice in param_distribution.choices}.get(recorded, drawn)
        with suppress(ValueError):  # nothing is recorded
            value = type(drawn)(recorded)
            if param_distribution.low <= value <= param_distribution.high:
                return value
        return drawn
