"""Runs grouped into recipes: a recipe is a configuration, trained with one or more seeds and folds."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from polyp.commands.compare.read_runs import RunRecord
from polyp.errors import printable
from polyp.metrics.intervals import bootstrap_interval
from polyp.report.tables import count

if TYPE_CHECKING:
    from pandas import DataFrame

TRANSFORM = re.compile(r"\w+\(.*?\)(?= |$)")
"""A transform in the text of a list of them."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """The runs of one configuration on the same test images, which differ in seeds and folds alone.

    Every seed has the same folds, so that a seed's test images are those of all its folds.

    Attributes:
        runs: at least one, sorted by seed and fold.
        number: its rank by validation, from 1 on.
        values: those of its settings that differ between recipes; a key that it does not have is missing.
        texts: the same as short texts, with every key.
        label: the same in a few words.
    """

    runs: tuple[RunRecord, ...]
    number: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    label: str = ""

    @property
    def title(self) -> str:
        """Its number and its label."""
        return f"#{self.number} {self.label}".strip()

    @property
    def first(self) -> RunRecord:
        """The run of the lowest seed and fold, where one must stand for all."""
        return self.runs[0]

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return self.first.metrics["parameters"]

    @cached_property
    def folds(self) -> list[int]:
        """The folds that were tested; [0] without folds."""
        return sorted({run.fold for run in self.runs})

    @property
    def missing_folds(self) -> list[int]:
        """The folds that no run has tested."""
        return [fold for fold in range(self.first.fold_count) if fold not in self.folds]

    @cached_property
    def test_set(self) -> frozenset[tuple[int, frozenset[tuple[str, float]]]]:
        """The test images of each fold, see `RunRecord.test_set`: equal for recipes that can be compared."""
        return frozenset((run.fold, run.test_set) for run in self.runs)

    @cached_property
    def dice_by_seed(self) -> "DataFrame":
        """Test Dice, a row for each seed, a column for each image; where a seed was run twice, the mean."""
        import pandas

        dice = pandas.concat([run.scores["dice"] for run in self.runs])
        seeds = np.repeat([run.seed for run in self.runs], [len(run.scores) for run in self.runs])
        return dice.groupby([seeds, dice.index]).mean().unstack()

    @cached_property
    def by_fold(self) -> "DataFrame":
        """The `numbers` of its runs, a row for each seed and fold."""
        import pandas

        numbers = [{"seed": run.seed, "fold": run.fold, **run.numbers} for run in self.runs]
        return pandas.DataFrame(numbers).groupby(["seed", "fold"]).mean()

    @cached_property
    def by_seed(self) -> "DataFrame":
        """The same, a row for each seed: means over folds, but test Dice over all images."""
        means = self.by_fold.groupby(level="seed").mean()
        return means.assign(**{"test/dice": self.dice_by_seed.mean(axis="columns")})

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
        """Validation Dice, the mean over seeds and folds."""
        return self.means["val/dice"]

    @property
    def stems(self) -> list[str]:
        """The test images, sorted."""
        return list(self.dice_by_seed.columns)

    @cached_property
    def dice(self) -> np.ndarray:
        """Test Dice of each image, (N,), in the order of `stems`: the mean over seeds."""
        return self.dice_by_seed.mean().to_numpy()

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the test Dice over other images; None for a single image."""
        return _interval(self.dice)

    @cached_property
    def over_folds(self) -> tuple[float, float] | None:
        """Mean and standard deviation over folds of the fold's test Dice; None for a single fold."""
        dice = self.by_fold["test/dice"].groupby(level="fold").mean()
        return (dice.mean(), dice.std()) if len(dice) > 1 else None

    @property
    def test_images(self) -> str:
        """What the test Dice is of: `120 test images`, or `5 folds, n = 1000 out-of-fold`."""
        if (total := self.first.fold_count) == 1:
            return count(len(self.stems), "test image")
        folds = f"{len(self.folds)} of {total} folds" if self.missing_folds else f"{total} folds"
        return f"{folds}, n = {len(self.stems)} out-of-fold"

    def one_seed(self, seed: int) -> list[RunRecord]:
        """The runs of a seed, one for each fold."""
        runs: dict[int, RunRecord] = {}
        for run in self.runs:
            if run.seed == seed:
                runs.setdefault(run.fold, run)
        return list(runs.values())

    @cached_property
    def rows(self) -> "DataFrame":
        """The rows of per_image.csv of the first seed, in the order of `stems`."""
        return pool_scores(self.one_seed(self.first.seed))

    @cached_property
    def sources(self) -> dict[str, dict[str, float | None]]:
        """Test Dice of each source, if there are several, its 95 % interval (_low, _high) and images (_n)."""
        numbers = {}
        for name in sorted(set(self.rows.get("source", ()))):
            dice = self.dice[self.rows["source"] == name]
            low, high = _interval(dice) or (None, None)
            numbers[name] = {"": dice.mean(), "_low": low, "_high": high, "_n": len(dice)}
        return numbers


def _interval(dice: np.ndarray) -> tuple[float, float] | None:
    low, high = bootstrap_interval(dice)
    return None if np.isnan(low) else (low, high)


def pool_scores(runs: Sequence[RunRecord]) -> "DataFrame":
    """The rows of per_image.csv of runs of different folds, sorted by stem."""
    import pandas

    return pandas.concat([run.scores for run in runs]).sort_index()


def group_runs(finished: Sequence[RunRecord]) -> tuple[list[Recipe], list[list[str]]]:
    """The recipes of finished runs, best validation first, and the keys that differ, see `_group_keys`."""
    divisions: dict[Any, list[list[RunRecord]]] = defaultdict(list)
    for run in sorted(finished, key=lambda run: (run.seed, run.fold, run.name)):
        settings = tuple(sorted((key, str(value)) for key, value in run.settings.items()))
        parts = divisions[settings, run.seed]
        if fitting := [part for part in parts if all(map(run.shares_division, part))]:
            fitting[0].append(run)
        else:
            parts.append([run])
    groups: dict[Any, list[RunRecord]] = defaultdict(list)
    for (settings, _), parts in divisions.items():
        for part in parts:
            groups[settings, Recipe(tuple(part)).test_set] += part
    recipes = sorted((Recipe(tuple(group)) for group in groups.values()), key=lambda recipe: -recipe.val)
    varying = _group_keys([recipe.first.settings for recipe in recipes])
    keys = [key for group in varying for key in group]
    label_keys = [group[0] for group in varying if group[0] != "data.fingerprint"]
    texts = {key: shorten_values([recipe.first.settings.get(key) for recipe in recipes]) for key in keys}
    return [
        replace(
            recipe,
            number=number,
            values={key: recipe.first.settings[key] for key in keys if key in recipe.first.settings},
            texts=(own := {key: texts[key][number - 1] for key in keys}),
            label=_label(recipe.first, {key: own[key] for key in label_keys}),
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


def shorten_values(values: Sequence[Any]) -> list[str]:
    """Texts in which the values of a setting differ: of transforms, those that not all values have."""
    lists = [TRANSFORM.findall(str(value)) for value in values]
    if not any(lists):
        return [format_setting(value) for value in values]
    shared = set.intersection(*map(set, lists))
    rests = [[word for word in words if word not in shared] for words in lists]
    names = [[word.partition("(")[0] for word in words] for words in rests]
    if len(set(map(tuple, names))) == len(set(values)):
        rests = names
    without = "no others" if shared else "none"
    return [" ".join(f"+ {printable(word)}" for word in words) or without for words in rests]


def clip(text: str, length: int) -> str:
    """The text, or its beginning and end if it is longer than this."""
    end = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - end]}…{text[-end:]}"


def _label(run: RunRecord, texts: Mapping[str, str]) -> str:
    words = []
    for key, name in shorten_keys(list(texts)).items():
        value = run.settings.get(key)
        if value is None or value is False:
            words.append(f"no {name}")
        elif isinstance(value, str) and not TRANSFORM.match(value):
            words.append(clip(texts[key], 24))
        else:
            colon = ":" * isinstance(value, str)
            words.append(name if value is True else f"{name}{colon} {clip(texts[key], 40)}")
    return ", ".join(words) or f"{run.settings.get('model.arch')}, {run.settings.get('model.encoder')}"
