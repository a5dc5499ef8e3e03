"""Groups runs into recipes: a recipe is a configuration, trained with one or more seeds and folds."""

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

TRANSFORM = re.compile(r"\w+\(.*?\)(?= |$)")  # in the text of a list of transforms


@dataclass(frozen=True, eq=False)
class Recipe:
    """The runs of one configuration on the same test images; they differ in seeds and folds only.

    All seeds have the same folds, so that the test images of a seed are those of all folds.
    """

    runs: tuple[RunRecord, ...]  # at least one, sorted by seed and fold
    number: int = 0  # the rank by validation, from 1 on
    values: Mapping[str, Any] = field(default_factory=dict)  # the recipe's settings that differ, by key
    texts: Mapping[str, str] = field(default_factory=dict)  # a short text for each key that differs
    label: str = ""  # the settings that differ, in a few words

    @property
    def title(self) -> str:
        """The number and the label."""
        return f"#{self.number} {self.label}".strip()

    @property
    def first(self) -> RunRecord:
        """The run of the lowest seed and fold, which represents the recipe."""
        return self.runs[0]

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return self.first.metrics["parameters"]

    @cached_property
    def folds(self) -> list[int]:
        """The tested folds; [0] without cross-validation."""
        return sorted({run.fold for run in self.runs})

    @property
    def missing_folds(self) -> list[int]:
        """The folds without a run."""
        return [fold for fold in range(self.first.fold_count) if fold not in self.folds]

    @cached_property
    def test_set(self) -> frozenset[tuple[int, frozenset[tuple[str, float]]]]:
        """The test images of each fold, see `RunRecord.test_set`; equal for comparable recipes."""
        return frozenset((run.fold, run.test_set) for run in self.runs)

    @cached_property
    def dice_by_seed(self) -> "DataFrame":
        """Test Dice, a row for each seed, a column for each image; the mean if a seed was run twice."""
        import pandas

        dice = pandas.concat([run.scores["dice"] for run in self.runs])
        seeds = np.repeat([run.seed for run in self.runs], [len(run.scores) for run in self.runs])
        return dice.groupby([seeds, dice.index]).mean().unstack()

    @cached_property
    def by_fold(self) -> "DataFrame":
        """The `numbers` of the runs, a row for each seed and fold."""
        import pandas

        numbers = [{"seed": run.seed, "fold": run.fold, **run.numbers} for run in self.runs]
        return pandas.DataFrame(numbers).groupby(["seed", "fold"]).mean()

    @cached_property
    def by_seed(self) -> "DataFrame":
        """The `numbers` for each seed: means over folds, but test Dice over all images."""
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
        return compute_interval(self.dice)

    @cached_property
    def over_folds(self) -> tuple[float, float] | None:
        """Mean and standard deviation over folds of the fold's test Dice; None for a single fold."""
        dice = self.by_fold["test/dice"].groupby(level="fold").mean()
        return (dice.mean(), dice.std()) if len(dice) > 1 else None

    @property
    def test_images(self) -> str:
        """The number of test images: `120 test images`, or `5 folds, n = 1000 out-of-fold`."""
        total = self.first.fold_count
        if total == 1:
            return count(len(self.stems), "test image")
        folds = f"{len(self.folds)} of {total}" if self.missing_folds else f"{total}"
        return f"{folds} folds, n = {len(self.stems)} out-of-fold"

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
            low, high = compute_interval(dice) or (None, None)
            numbers[name] = {"": dice.mean(), "_low": low, "_high": high, "_n": len(dice)}
        return numbers


def compute_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean over images; None for a single image."""
    low, high = bootstrap_interval(values)
    return None if np.isnan(low) else (low, high)


def pool_scores(runs: Sequence[RunRecord]) -> "DataFrame":
    """The rows of per_image.csv of runs of different folds, sorted by stem."""
    import pandas

    return pandas.concat([run.scores for run in runs]).sort_index()


def group_runs(finished: Sequence[RunRecord]) -> tuple[list[Recipe], list[list[str]]]:
    """The recipes of finished runs, the best by validation first, and the groups of keys that differ."""
    # Runs of one configuration and seed may be of several divisions into folds, which are separate recipes.
    divisions: dict[Any, list[list[RunRecord]]] = defaultdict(list)
    for run in sorted(finished, key=lambda run: (run.seed, run.fold, run.name)):
        settings = tuple(sorted((key, str(value)) for key, value in run.settings.items()))
        groups = divisions[settings, run.seed]
        for group in groups:
            if all(map(run.shares_division, group)):
                group.append(run)
                break
        else:
            groups.append([run])
    members: dict[Any, list[RunRecord]] = defaultdict(list)
    for (settings, _), groups in divisions.items():
        for group in groups:
            members[settings, Recipe(tuple(group)).test_set] += group
    recipes = sorted((Recipe(tuple(runs)) for runs in members.values()), key=lambda recipe: -recipe.val)
    key_groups = _group_keys([recipe.first.settings for recipe in recipes])
    keys = [key for group in key_groups for key in group]
    label_keys = [group[0] for group in key_groups if group[0] != "data.fingerprint"]
    texts = {key: shorten_values([recipe.first.settings.get(key) for recipe in recipes]) for key in keys}
    for index, recipe in enumerate(recipes):
        values = {key: recipe.first.settings[key] for key in keys if key in recipe.first.settings}
        short = {key: texts[key][index] for key in keys}
        label = _build_label(recipe.first.settings, {key: short[key] for key in label_keys})
        recipes[index] = replace(recipe, number=index + 1, values=values, texts=short, label=label)
    return recipes, key_groups


def _group_keys(settings: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The keys that differ between settings; those that always change together are one group."""
    groups = defaultdict(list)
    for key in dict.fromkeys(key for recipe in settings for key in recipe):
        values = [str(recipe.get(key)) for recipe in settings]
        groups[tuple(values.index(value) for value in values)].append(key)
    return [keys for pattern, keys in groups.items() if any(pattern)]


def shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """Keys without their section, such as encoder_lr, unless two would be the same."""
    ends = {key: key.rpartition(".")[2] for key in keys}
    return {key: end if list(ends.values()).count(end) == 1 else key for key, end in ends.items()}


def format_setting(value: Any) -> str:
    """A setting in short: 1e-5, 0.99, none."""
    if value is None:
        return "none"
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{value:.6g}" if -3 < int(exponent) < 6 else f"{float(mantissa):g}e{int(exponent)}"
    return str(value).lower() if isinstance(value, bool) else printable(value)


def shorten_values(values: Sequence[Any]) -> list[str]:
    """A text for each value of a setting; of lists of transforms, the transforms that not all have."""
    lists = [TRANSFORM.findall(str(value)) for value in values]
    if not any(lists):
        return [format_setting(value) for value in values]
    shared = set.intersection(*map(set, lists))
    lists = [[transform for transform in transforms if transform not in shared] for transforms in lists]
    names = [[transform.partition("(")[0] for transform in transforms] for transforms in lists]
    if len(set(map(tuple, names))) == len(set(values)):
        lists = names  # distinguish the values without their arguments
    empty = "no others" if shared else "none"
    return [" ".join(f"+ {printable(word)}" for word in words) or empty for words in lists]


def clip(text: str, length: int) -> str:
    """The text, without its middle if it is longer than this."""
    end = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - end]}…{text[-end:]}"


def _build_label(settings: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    words = []
    for key, name in shorten_keys(list(texts)).items():
        value = settings.get(key)
        if value is False:
            words.append(f"no {name}")
        elif value is True:
            words.append(name)
        elif not isinstance(value, str) or value.startswith("["):  # a list is a text here
            words.append(f"{name} {clip(texts[key], 40)}")
        elif TRANSFORM.match(value):
            words.append(f"{name}: {clip(texts[key], 40)}")
        else:
            words.append(clip(texts[key], 24))
    return ", ".join(words) or f"{settings.get('model.arch')}, {settings.get('model.encoder')}"
