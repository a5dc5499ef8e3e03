"""Runs grouped into recipes: a recipe is a configuration, trained with one seed or several."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from polyp.commands.compare.read_runs import Run
from polyp.errors import printable
from polyp.metrics.intervals import bootstrap_interval

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Recipe:
    """The runs of one configuration on one test set, which differ in their seeds alone.

    Attributes:
        runs: at least one.
        number: its rank by validation, from 1 on.
        values: those of its settings that differ between recipes; a key that it does not have is missing.
        label: the same in a few words.
    """

    runs: tuple[Run, ...]
    number: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def title(self) -> str:
        """Its number and its label."""
        return f"#{self.number} {self.label}".strip()

    @property
    def first(self) -> Run:
        """The run of the lowest seed, where one must stand for all."""
        return self.runs[0]

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return self.first.metrics["parameters"]

    @cached_property
    def by_seed(self) -> "DataFrame":
        """The `numbers` of its runs, a row for each seed; where a seed was run twice, the mean of both."""
        return _average_by_seed(self.runs, [run.numbers for run in self.runs])

    @cached_property
    def seeds(self) -> list[int]:
        """The different seeds."""
        return list(self.by_seed.index)

    @cached_property
    def means(self) -> dict[str, float]:
        """The means of `by_seed`."""
        return self.by_seed.mean().to_dict()

    @cached_property
    def deviations(self) -> dict[str, float]:
        """The standard deviations of `by_seed`; empty for a single seed."""
        return self.by_seed.std().dropna().to_dict()

    @property
    def val(self) -> float:
        """Validation Dice, the mean over seeds."""
        return self.means["val/dice"]

    @cached_property
    def stems(self) -> list[str]:
        """The test images."""
        return sorted(self.first.scores.index)

    @cached_property
    def dice(self) -> np.ndarray:
        """Test Dice of each image, (N,), in the order of `stems`: the mean over seeds."""
        scores = _average_by_seed(self.runs, [run.scores["dice"][self.stems] for run in self.runs])
        return scores.mean().to_numpy()

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the test Dice over other images; None for a single image."""
        low, high = bootstrap_interval(self.dice)
        return None if np.isnan(low) else (low, high)


def _average_by_seed(runs: Sequence[Run], rows: Sequence[Any]) -> "DataFrame":
    import pandas

    return pandas.DataFrame(list(rows), index=[run.seed for run in runs]).groupby(level=0).mean()


def group_runs(finished: Sequence[Run]) -> tuple[list[Recipe], list[list[str]]]:
    """The recipes of finished runs, best validation first, and the keys that differ, see `_group_keys`."""
    groups = defaultdict(list)
    for run in sorted(finished, key=lambda run: (run.seed, run.name)):
        settings = tuple(sorted((key, str(value)) for key, value in run.settings.items()))
        groups[settings, run.test_set].append(run)
    recipes = sorted((Recipe(tuple(group)) for group in groups.values()), key=lambda recipe: -recipe.val)
    varying = _group_keys([recipe.first.settings for recipe in recipes])
    keys = [key for group in varying for key in group]
    label_keys = [group[0] for group in varying if group[0] != "data.fingerprint"]
    return [
        replace(
            recipe,
            number=number,
            values={key: recipe.first.settings[key] for key in keys if key in recipe.first.settings},
            label=_label(recipe.first, label_keys),
        )
        for number, recipe in enumerate(recipes, 1)
    ], varying


def _group_keys(settings: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The keys that differ between settings; those that always change together are one group."""
    groups = defaultdict(list)
    for key in dict.fromkeys(key for recipe in settings for key in recipe):
        values = [str(recipe.get(key)) for recipe in settings]
        groups[tuple(values.index(value) for value in values)].append(key)
    return [keys for pattern, keys in groups.items() if any(pattern)]


def shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """Keys without their group, where that leaves no two alike: encoder_lr."""
    ends = {key: key.rpartition(".")[2] for key in keys}
    return {key: end if list(ends.values()).count(end) == 1 else key for key, end in ends.items()}


def format_setting(value: Any) -> str:
    """A setting as people write it: 1e-5, 0.99, none."""
    if value is None:
        return "none"
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{value:.6g}" if -3 < int(exponent) < 6 else f"{float(mantissa):g}e{int(exponent)}"
    return str(value).lower() if isinstance(value, bool) else printable(value)


def _label(run: Run, keys: Sequence[str]) -> str:
    words = []
    for key, name in shorten_keys(keys).items():
        value = run.settings.get(key)
        if value is None or value is False:
            words.append(f"no {name}")
        elif isinstance(value, str):
            words.append(printable(value if len(value) <= 24 else f"{value[:23]}…"))
        else:
            words.append(name if value is True else f"{name} {format_setting(value)}")
    return ", ".join(words) or f"{run.settings.get('model.arch')}, {run.settings.get('model.encoder')}"
