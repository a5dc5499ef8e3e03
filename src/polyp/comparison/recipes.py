"""Runs grouped: a recipe is a configuration with all its seeds."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from polyp.comparison.found import Run
from polyp.errors import printable
from polyp.metrics.intervals import bootstrap_interval


@dataclass(frozen=True)
class Recipe:
    """The runs of one configuration on one test set, which differ in their seeds alone.

    Attributes:
        runs: at least one.
        number: its rank by validation, from 1 on.
        values: what of its settings differs from other recipes'; a key that it does not have is missing.
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
        """The run that stands for them all, where one must: of the lowest seed."""
        return self.runs[0]

    def by_seed(self, number: Callable[[Run], float]) -> list[float]:
        """A number for each seed; where a seed was run twice, the mean of both."""
        seeds = defaultdict(list)
        for run in self.runs:
            seeds[run.seed].append(number(run))
        return [float(np.mean(values)) for values in seeds.values()]

    @cached_property
    def seeds(self) -> list[int]:
        """The different seeds."""
        return sorted({run.seed for run in self.runs})

    def mean(self, number: Callable[[Run], float]) -> float:
        """The mean of a number over the seeds."""
        return float(np.mean(self.by_seed(number)))

    def deviation(self, number: Callable[[Run], float]) -> float | None:
        """The standard deviation of a number between seeds; None for a single one."""
        values = self.by_seed(number)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    @cached_property
    def val(self) -> float:
        """Validation Dice, the mean over seeds."""
        return self.mean(lambda run: run.val)

    @cached_property
    def stems(self) -> list[str]:
        """The test images."""
        return sorted(self.first.rows)

    @cached_property
    def dice(self) -> np.ndarray:
        """Test Dice of each image, (N,), in the order of `stems`: the mean over seeds."""
        return np.array([self.mean(lambda run, of=stem: run.rows[of]["dice"]) for stem in self.stems])  # type: ignore[misc]

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the test Dice over other images; None for a single image."""
        low, high = bootstrap_interval(self.dice)
        return None if np.isnan(low) else (low, high)


def ranked(finished: Sequence[Run]) -> tuple[list[Recipe], list[str]]:
    """The recipes of finished runs, best validation first, and the keys in which they differ."""
    groups = defaultdict(list)
    for run in sorted(finished, key=lambda run: (run.seed, run.name)):
        groups[tuple(sorted((key, str(value)) for key, value in run.settings.items())), run.truth].append(run)
    recipes = sorted((Recipe(tuple(group)) for group in groups.values()), key=lambda recipe: -recipe.val)
    keys = dict.fromkeys(key for recipe in recipes for key in recipe.first.settings)
    varying = [key for key in keys if len({str(recipe.first.settings.get(key)) for recipe in recipes}) > 1]
    told = _telling(recipes, [key for key in varying if key != "data.fingerprint"])
    return [
        replace(
            recipe,
            number=number,
            values={key: recipe.first.settings[key] for key in varying if key in recipe.first.settings},
            label=_label(recipe.first, told),
        )
        for number, recipe in enumerate(recipes, 1)
    ], varying


def _telling(recipes: Sequence[Recipe], varying: Sequence[str]) -> list[str]:
    """The keys that a label needs: those that tell recipes apart which the keys before them do not."""
    told: list[str] = []
    apart = 1
    for key in varying:
        kinds = len({tuple(str(recipe.first.settings.get(one)) for one in (*told, key)) for recipe in recipes})
        if kinds > apart:
            told, apart = [*told, key], kinds
    return told


def short(keys: Sequence[str]) -> dict[str, str]:
    """Keys without their group, where that leaves no two alike: encoder_lr."""
    ends = {key: key.rpartition(".")[2] for key in keys}
    return {key: end if list(ends.values()).count(end) == 1 else key for key, end in ends.items()}


def plain(value: Any) -> str:
    """A setting as people write it: 1e-5, 0.99, none."""
    if value is None:
        return "none"
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        power = int(exponent)
        return f"{value:.6g}" if -3 < power < 6 else f"{float(mantissa):g}e{power}"
    return str(value).lower() if isinstance(value, bool) else printable(value)


def _label(run: Run, keys: Sequence[str]) -> str:
    words = []
    ends = {key: name.rpartition("_")[2] for key, name in short(keys).items()}
    for key in keys:
        value = run.settings.get(key)
        name = ends[key] if list(ends.values()).count(ends[key]) == 1 else short(keys)[key]
        if value is None or value is False:
            words.append(f"no {name}")
        elif isinstance(value, str):
            words.append(printable(value if len(value) <= 24 else f"{value[:23]}…"))
        else:
            words.append(name if value is True else f"{name} {plain(value)}")
    return ", ".join(words) or f"{run.settings.get('model.arch')}, {run.settings.get('model.encoder')}"
