"""The comparison of recipes: which is best, which differences are more than chance, which are not comparable.

Recipes are ranked by validation. The test set only measures how large a difference is.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyp.commands.compare.read_runs import RunRecord
from polyp.commands.compare.recipes import Recipe, group_runs
from polyp.errors import InputError, shell_word, train_command
from polyp.metrics.difference import min_images, seed_margin, seed_noise, seed_p, sign_flip_tests
from polyp.report.tables import count, format_difference

LEVEL = 0.05  # probability of a wrong verdict in any of the comparisons


@dataclass(frozen=True)
class Difference:
    """The difference in test Dice of a recipe to the reference, on the same images.

    All but the value are corrected for the number of comparisons (Bonferroni).
    """

    value: float  # the recipe's mean minus the reference's
    interval: tuple[float, float] | None  # 95 %; None if the test images are too few to reach LEVEL
    images_p: float  # of chance in the choice of images; below LEVEL exactly if the interval excludes 0
    margin: float | None  # the difference that other seeds may make; None if all have a single seed
    p: float  # images_p or the p-value of chance in the choice of seeds, whichever is larger


@dataclass(frozen=True)
class Comparison:
    """The result of comparing runs."""

    recipes: list[Recipe]  # the best by validation first
    unfinished: list[RunRecord]
    damaged: list[RunRecord]  # left out, see their `damage`
    key_groups: list[list[str]]  # the keys that differ; those that always change together are one group
    comparable: list[Recipe]  # the recipes that share a test set, the reference first
    differences: dict[int, Difference]  # to the reference, by the number of the recipe
    noise: tuple[float, int] | None  # standard deviation of test Dice between seeds, degrees of freedom
    warnings: list[str]  # why runs are not comparable
    notes: list[str]  # other conditions that differ, and the seed noise

    @property
    def reference(self) -> Recipe:
        """The best by validation of the comparable recipes."""
        return self.comparable[0]

    @property
    def keys(self) -> list[str]:
        """The keys that differ between recipes."""
        return [key for group in self.key_groups for key in group]

    @property
    def runs(self) -> list[RunRecord]:
        """The finished runs."""
        return [run for recipe in self.recipes for run in recipe.runs]

    @property
    def has_folds(self) -> bool:
        """Whether some runs are folds of a cross-validation."""
        return any(recipe.first.fold_count > 1 for recipe in self.recipes)

    @property
    def headline(self) -> str:
        """The result in a few sentences."""
        best, remarks = self.reference, []
        if best.interval:
            remarks.append("95 % interval {:.3f} to {:.3f}".format(*best.interval))
        if best.first.fold_count > 1:
            remarks.append(best.test_images)
        if best.over_folds:
            remarks.append("{:.3f} ± {:.3f} over folds".format(*best.over_folds))
        details = f" ({'; '.join(remarks)})" if remarks else ""
        dice = f"Its test Dice is {best.dice.mean():.3f}{details}."
        return f"Best by validation: {best.title}. {dice} {self.rivals}".rstrip()

    @property
    def rivals(self) -> str:
        """How many recipes are not distinguishable from the best, in a sentence; empty without others."""
        images, total, ties = len(self.reference.stems), len(self.differences), len(self.ties)
        if not total:
            return ""
        if any(difference.interval is None for difference in self.differences.values()):
            return _too_few_images(images, total)
        if total == 1:
            subject = "The other configuration is"
        elif ties == 0:
            subject = f"{'Both' if total == 2 else f'All {total}'} other configurations are"
        elif ties == total:
            subject = f"{'Neither' if total == 2 else 'None'} of the {total} other configurations is"
        else:
            subject = f"{ties} of the {total} other configurations {'is' if ties == 1 else 'are'}"
        negation = "not " * (0 < ties < max(total, 2))
        seeds = ", given the noise of the seeds" if self.noise else ""
        return f"{subject} {negation}distinguishable from it on the {count(images, 'test image')}{seeds}."

    @property
    def ties(self) -> list[int]:
        """The numbers of the recipes whose difference to the best may be chance."""
        return [number for number, difference in self.differences.items() if difference.p >= LEVEL]

    def verdict(self, recipe: Recipe) -> str:
        """A recipe's difference to the reference in words."""
        if recipe is self.reference:
            return "best by validation"
        if recipe.number not in self.differences:
            return "other test images: not compared"
        difference = self.differences[recipe.number]
        value, direction = difference.value, "worse" if difference.value < 0 else "better"
        if difference.interval is None:
            images = count(len(recipe.stems), "test image")
            return f"{direction} by {abs(value):.3f} on {images}, too few to tell a difference from chance"
        low, high = difference.interval
        if difference.images_p >= LEVEL:
            share = recipe.parameters / self.reference.parameters
            cheaper = f", with {share:.0%} of the parameters" if share <= 0.8 else ""
            return f"not distinguishable from the best: {format_difference(value, low, high)}{cheaper}"
        low, high = (low, high) if value > 0 else (-high, -low)
        span = f"{abs(value):.3f} ({low:.3f} to {high:.3f})".replace("-", "\N{MINUS SIGN}")
        if difference.p >= LEVEL:
            return f"{direction} on these images by {span}, but seeds alone do ±{difference.margin:.3f}"
        return f"worse than the best by {span}" if value < 0 else f"better on the test set by {span}"

    def short_verdict(self, recipe: Recipe) -> str:
        """The verdict in three words at most."""
        if recipe is self.reference:
            return "best by validation"
        if recipe.number not in self.differences:
            return "other test images"
        difference = self.differences[recipe.number]
        if difference.interval is None:
            return "too few images"
        if difference.p >= LEVEL:
            return "not distinguishable"
        return f"{'worse' if difference.value < 0 else 'better'} by {abs(difference.value):.3f}"


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """Compare runs.

    Raises:
        InputError: fewer than two are finished, or no two have the same test images.
    """
    finished, damaged = [run for run in runs if run.metrics], [run for run in runs if run.damage]
    unfinished = [run for run in runs if not run.metrics and not run.damage]
    if len(finished) < 2:
        raise InputError(_too_few_runs(finished, unfinished, damaged))
    recipes, key_groups = group_runs(finished)
    comparable = _find_comparable(recipes)
    noise = seed_noise([list(recipe.by_seed["test/dice"]) for recipe in comparable])
    differences = _measure_differences(comparable, noise)
    warnings, notes = _list_warnings(recipes, comparable), _list_notes(recipes, comparable, noise)
    return Comparison(
        recipes, unfinished, damaged, key_groups, comparable, differences, noise, warnings, notes
    )


def _too_few_images(images: int, comparisons: int) -> str:
    return (
        f"{count(images, 'test image')} cannot show a difference at the {100 * LEVEL:g} % level with "
        f"{count(comparisons, 'comparison')}: {min_images(comparisons, LEVEL)} or more are needed."
    )


def _too_few_runs(
    finished: Sequence[RunRecord], unfinished: Sequence[RunRecord], damaged: Sequence[RunRecord]
) -> str:
    details = ""
    if unfinished:
        details += f" ({len(unfinished)} unfinished: {unfinished[0].name}, {unfinished[0].progress})"
    if damaged:
        details += f" ({len(damaged)} left out: {damaged[0].damage})"
    if not finished:
        return f"no finished run found{details}: give folders of runs or sweeps, such as outputs/"
    name = finished[0].name
    return (
        f"{name} is the only finished run{details}, and comparing takes two: give more folders, or "
        f"polyp compare --card {shell_word(name)} for its model card alone"
    )


def _find_comparable(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The largest group of recipes with the same test images, in the order of their rank."""
    groups = defaultdict(list)
    for recipe in recipes:
        groups[recipe.test_set].append(recipe)
    largest = max(groups.values(), key=lambda group: (len(group), sum(len(recipe.runs) for recipe in group)))
    if len(largest) == 1 and len(largest[0].runs) == 1:
        first, second, *_ = recipes
        raise InputError(
            f"no two of the {len(recipes)} runs have the same test images ({first.first.name} has "
            f"{len(first.stems)}, {second.first.name} other ones): train them with the same "
            f"{_list_split_keys(recipes)}"
        )
    return largest


def _list_split_keys(recipes: Sequence[Recipe]) -> str:
    """The keys that determine the test images."""
    keys = ["data.split"]
    if any(recipe.first.fold_count > 1 for recipe in recipes):
        keys.append("data.folds")
    if any(recipe.first.split_is_drawn for recipe in recipes):
        keys.append("data.split_seed")
    return ", ".join(keys)


def _measure_differences(
    comparable: Sequence[Recipe], noise: tuple[float, int] | None
) -> dict[int, Difference]:
    reference, *rivals = comparable
    if not rivals:
        return {}
    tests = sign_flip_tests(np.stack([recipe.dice - reference.dice for recipe in rivals], axis=1), LEVEL)
    differences = {}
    for recipe, test in zip(rivals, tests, strict=True):
        margin, p = None, test.p
        if noise is not None:
            seeds = len(recipe.seeds), len(reference.seeds)
            margin = seed_margin(noise, *seeds, 1 - LEVEL / len(rivals))
            p = max(p, min(1.0, len(rivals) * seed_p(test.value, noise, *seeds)))
        differences[recipe.number] = Difference(test.value, test.interval, test.p, margin, p)
    return differences


def _list_warnings(recipes: Sequence[Recipe], comparable: Sequence[Recipe]) -> list[str]:
    fingerprint = "Other data (fingerprint of all images and masks)"
    warnings = _list_mismatches(recipes, "Other split", lambda run: run.split)
    warnings += _list_mismatches(recipes, fingerprint, lambda run: run.metrics["data"]["fingerprint"])
    if warnings:
        warnings.append(
            "Other validation images: the order of the runs and the choice of the best go by Dice of "
            "different validation images, and part of a difference between them is that of the images. "
            f"Give all runs the same {_list_split_keys(recipes)}."
        )
    warnings += _list_mismatches(recipes, "Other definition of the scores", _join_definitions)
    if incomplete := [recipe for recipe in recipes if recipe.missing_folds]:
        folds = [f"{', '.join(map(str, r.missing_folds))} of #{r.number}" for r in incomplete[:6]]
        warnings.append(
            f"Missing folds: {'; '.join(folds)}{'; …' * (len(incomplete) > 6)}. All numbers of these, "
            "validation included, are of the other folds alone: train the missing ones (data.fold)."
        )
    if excluded := [recipe for recipe in recipes if recipe not in comparable]:
        warnings.append(
            f"Other test images: {_list_numbers(excluded)}. There is no paired difference for them, and "
            "their numbers are not comparable with the others'."
        )
    images, comparisons = len(comparable[0].stems), len(comparable) - 1
    if comparisons and images < min_images(comparisons, LEVEL):
        warnings.append(_too_few_images(images, comparisons))
    if biased := [r for r in recipes if any(run.monitor.startswith("test/") for run in r.runs)]:
        warnings.append(
            f"The test set was used for selection (monitor={biased[0].first.monitor}): "
            f"{_list_numbers(biased)}. Their test numbers are too high by an unknown amount."
        )
    return warnings


def _join_definitions(run: RunRecord) -> str:
    return " ".join(run.metrics["definitions"].get(name, "unknown") for name in ("dice", "test"))


def _list_notes(
    recipes: Sequence[Recipe], comparable: Sequence[Recipe], noise: tuple[float, int] | None
) -> list[str]:
    conditions: dict[str, Callable[[RunRecord], Any]] = {
        "Other resolution (validation Dice is at network resolution)": lambda run: run.image_size,
        "Epochs trained": lambda run: run.metrics["epochs"],
        "Chosen by": lambda run: run.monitor,
        "Other device (minutes, memory and images/s are not comparable)": lambda run: run.metrics["device"],
    }
    notes = [line for title, get in conditions.items() for line in _list_mismatches(recipes, title, get)]
    if noise is None:
        notes.append(
            "Seed noise is unknown: every configuration was trained with one seed, and the verdicts tell "
            "chance of the images only. Another seed changes the result too; to know by how much, train one "
            f"configuration or more with several: {train_command()} -m … seed=0,1,2"
        )
    else:
        deviation, freedom = noise
        pooled = count(sum(len(recipe.seeds) > 1 for recipe in comparable), "configuration")
        notes.append(
            f"Seed noise: test Dice has a standard deviation of {deviation:.4f} between seeds, pooled over "
            f"{pooled} with several ({count(freedom, 'degree')} of freedom). Two single-seed runs may "
            f"differ by {seed_margin(noise, 1, 1):.3f} for no other reason."
        )
        notes[-1] += " More seeds would tell it better: seed=0,1,2,3,4." * (freedom < 4)
    return notes


def _list_mismatches(recipes: Sequence[Recipe], title: str, get: Callable[[RunRecord], Any]) -> list[str]:
    """A line if runs differ in a value, with the recipes that have each value."""
    groups: dict[str, list[Recipe]] = defaultdict(list)
    for recipe in recipes:
        for text in dict.fromkeys(str(get(run)) for run in recipe.runs):
            groups[text].append(recipe)
    if len(groups) < 2:
        return []
    short = {text: text if len(text) < 60 else f"{text[:59]}…" for text in groups}
    values = "; ".join(f"{short[text]}: {_list_numbers(group)}" for text, group in groups.items())
    return [f"{title}: {values}."]


def _list_numbers(recipes: Sequence[Recipe]) -> str:
    numbers = [f"#{recipe.number}" for recipe in recipes]
    return ", ".join(numbers[:6]) + (f" and {len(numbers) - 6} more" if len(numbers) > 6 else "")
