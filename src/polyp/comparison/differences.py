"""Recipes held against each other: which is best, which differences are more than chance, what forbids a comparison.

Validation ranks; the test set only tells how large a difference is.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from polyp.comparison.found import Run
from polyp.comparison.recipes import Recipe, ranked
from polyp.errors import InputError, train_command
from polyp.metrics.difference import least_images, seed_margin, seed_noise, seed_p, sign_flip_tests

LEVEL = 0.05
"""How often one may be wrong, over all comparisons together."""

SHARES = {1 / 10: "a tenth", 1 / 8: "an eighth", 1 / 6: "a sixth", 1 / 5: "a fifth", 1 / 4: "a quarter",
          1 / 3: "a third", 1 / 2: "half", 2 / 3: "two thirds", 3 / 4: "three quarters"}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """How the test Dice of a recipe differs from the reference's, on the same images.

    Attributes:
        value: the recipe's mean minus the reference's.
        interval: simultaneous over all comparisons (Bonferroni); it excludes 0 exactly if images_p is below LEVEL. None
            where the test images are too few for any difference to reach LEVEL.
        images: how many test images there are.
        images_p: corrected p-value (Bonferroni) of chance in the choice of images.
        margin: what another choice of seeds alone may do, simultaneous like the interval; None where no
            configuration has two seeds.
        p: the larger of both sources' corrected p-values; that of the images where seed noise is unknown.
    """

    value: float
    interval: tuple[float, float] | None
    images: int
    images_p: float
    margin: float | None
    p: float


@dataclass(frozen=True)
class Comparison:
    """What there is to say about some runs.

    Attributes:
        recipes: best validation first.
        unfinished: runs without numbers.
        damaged: runs that are left out, see their `damage`.
        varying: the keys that differ between recipes.
        reference: the best by validation of those that share a test set.
        differences: by the recipe's number, for those that share the reference's test set.
        noise: the pooled standard deviation of test Dice between seeds and its degrees of freedom, if known.
        warnings: why runs are not comparable.
        notes: what is good to know when reading the numbers.
    """

    recipes: list[Recipe]
    unfinished: list[Run]
    damaged: list[Run]
    varying: list[str]
    reference: Recipe
    differences: dict[int, Difference]
    noise: tuple[float, int] | None
    warnings: list[str]
    notes: list[str]

    @property
    def runs(self) -> list[Run]:
        """The finished runs."""
        return [run for recipe in self.recipes for run in recipe.runs]

    @property
    def headline(self) -> str:
        """The answer in two sentences."""
        best, others = self.reference, self.differences.values()
        low_high = " ({:.3f} to {:.3f})".format(*best.interval) if best.interval else ""
        alike = sum(other.p >= LEVEL for other in others)
        answer = f"Best by validation: {best.title}, with a test Dice of {best.dice.mean():.3f}{low_high}."
        if not others:
            return answer
        if any(other.interval is None for other in others):
            return f"{answer} {_too_few_images(len(best.stems), len(others))}"
        where = f"on the {len(best.stems)} test images" + ", given the noise of the seeds" * (self.noise is not None)
        if len(others) == 1:
            return f"{answer} The other is {'not ' * alike}distinguishable from it {where}."
        return (
            f"{answer} Of {len(others)} others, {alike or 'none'} {'is' if alike <= 1 else 'are'} not distinguishable "
            f"from it {where}."
        )

    def verdict(self, recipe: Recipe) -> str:
        """The difference in words."""
        if recipe is self.reference:
            return "best by validation"
        if recipe.number not in self.differences:
            return "other test images: not compared"
        return verdict(self.differences[recipe.number]) + self._cheaper(recipe)

    def _cheaper(self, recipe: Recipe) -> str:
        if self.differences[recipe.number].p < LEVEL:
            return ""
        share = recipe.first.metrics["parameters"] / self.reference.first.metrics["parameters"]
        return f", with {in_words(share)} of the parameters" if share <= 0.8 else ""


def verdict(difference: Difference) -> str:
    """A difference in a plain clause."""
    value, which = difference.value, "worse" if difference.value < 0 else "better"
    if difference.interval is None:
        where = f"{difference.images} test image{'s' * (difference.images > 1)}"
        return f"{which} by {abs(value):.3f} on {where}, too few to tell a difference from chance"
    low, high = sorted(end if value > 0 else -end for end in difference.interval)
    span = signed(f"{abs(value):.3f} ({low:.3f} to {high:.3f})")
    if difference.p < LEVEL:
        return f"{which} than the best by {span}" if value < 0 else f"better on the test set by {span}"
    if difference.images_p < LEVEL and difference.margin is not None:
        return f"{which} on these images by {span}, but seeds alone do ±{difference.margin:.3f}"
    low, high = difference.interval
    return signed(f"not distinguishable from the best: {value:+.3f} ({low:+.3f} to {high:+.3f})")


def signed(text: str) -> str:
    """The text with minus signs for hyphens, for people."""
    return text.replace("-", "\N{MINUS SIGN}")


def in_words(share: float) -> str:
    """A share below 1: "a quarter"; a number where no plain word is within a twelfth of it."""
    nearest = min(SHARES, key=lambda known: abs(np.log(known / share)))
    return SHARES[nearest] if abs(nearest / share - 1) < 1 / 12 else f"{share:.0%}"


def compare(found: Sequence[Run]) -> Comparison:
    """Hold runs against each other.

    Raises:
        InputError: fewer than two are finished, or no two have the same test images.
    """
    finished, damaged = [run for run in found if run.metrics], [run for run in found if run.damage]
    unfinished = [run for run in found if not run.metrics and not run.damage]
    if len(finished) < 2:
        raise InputError(_too_few(finished, unfinished, damaged))
    recipes, varying = ranked(finished)
    comparable = _comparable(recipes)
    reference = comparable[0]
    noise = seed_noise([recipe.by_seed(lambda run: run.test) for recipe in comparable])
    return Comparison(
        recipes,
        unfinished,
        damaged,
        varying,
        reference,
        _differences(reference, comparable[1:], noise),
        noise,
        _warnings(recipes, comparable),
        _notes(recipes, comparable, noise),
    )


def _too_few_images(images: int, comparisons: int) -> str:
    return (
        f"{images} test image{'s' * (images > 1)} cannot show a difference at the {100 * LEVEL:g} % level with "
        f"{comparisons} comparison{'s' * (comparisons > 1)}: {least_images(comparisons, LEVEL)} or more are needed."
    )


def _too_few(finished: Sequence[Run], unfinished: Sequence[Run], damaged: Sequence[Run]) -> str:
    waiting = f" ({len(unfinished)} unfinished: {unfinished[0].name}, {unfinished[0].progress})" if unfinished else ""
    waiting += f" ({len(damaged)} left out: {damaged[0].damage})" if damaged else ""
    if finished:
        return (
            f"{finished[0].name} is the only finished run{waiting}, and comparing takes two: give more folders, or "
            f"polyp compare --card {finished[0].name} for its model card alone"
        )
    return f"no finished run found{waiting}: give folders of runs or sweeps, such as outputs/"


def _comparable(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The largest number of recipes with the same test images, in the order of their rank."""
    sets = defaultdict(list)
    for recipe in recipes:
        sets[recipe.first.truth].append(recipe)
    largest = max(sets.values(), key=lambda group: sum(len(recipe.runs) for recipe in group))
    if len(largest) == 1 and len(largest[0].runs) == 1:
        raise InputError(
            f"no two of the {len(recipes)} runs have the same test images ({recipes[0].first.name} has "
            f"{len(recipes[0].stems)}, {recipes[1].first.name} other ones): train them with the same data.split"
            + (" and data.split_seed" if any(recipe.first.split_seed is not None for recipe in recipes) else "")
        )
    return largest


def _differences(reference: Recipe, others: Sequence[Recipe], noise: tuple[float, int] | None) -> dict[int, Difference]:
    if not others:
        return {}
    tests = sign_flip_tests(np.stack([other.dice - reference.dice for other in others], axis=1), LEVEL)
    differences = {}
    for other, test in zip(others, tests, strict=True):
        margin, p = None, test.p
        if noise is not None:
            seeds = len(other.seeds), len(reference.seeds)
            margin = seed_margin(noise, *seeds, 1 - LEVEL / len(others))
            p = max(p, min(1.0, len(others) * seed_p(test.value, noise, *seeds)))
        differences[other.number] = Difference(test.value, test.interval, len(reference.stems), test.p, margin, p)
    return differences


# ---- what forbids a comparison, and what to know


def _warnings(recipes: Sequence[Recipe], comparable: Sequence[Recipe]) -> list[str]:
    every = [(recipe, run) for recipe in recipes for run in recipe.runs]
    found = []
    for what, value in {
        "Other split": lambda run: run.split,
        "Other data (fingerprint of all images and masks)": lambda run: run.metrics["data"]["fingerprint"],
        "Other definition of the scores": lambda run: " ".join(
            run.metrics["definitions"].get(name, "not told") for name in ("dice", "test")
        ),
    }.items():
        found += _apart(what, every, value)
    if len({(run.split, run.metrics["data"]["fingerprint"]) for _, run in every}) > 1:
        found.append(
            "Other validation images: the order of the runs and the choice of the best go by Dice of different "
            "validation images, and part of a difference between them is that of the images."
            + (
                " With data.split=random, data.split_seed draws them: give all runs the same."
                if any(run.split_seed is not None for _, run in every)
                else ""
            )
        )
    if others := [recipe for recipe in recipes if recipe not in comparable]:
        found.append(
            f"Other test images: {_who(others)}. There is no paired difference for them, and their numbers are not "
            "comparable with the others'."
        )
    images, comparisons = len(comparable[0].stems), len(comparable) - 1
    if comparisons and images < least_images(comparisons, LEVEL):
        found.append(_too_few_images(images, comparisons))
    if chosen := [recipe for recipe in recipes if any(run.monitor.startswith("test/") for run in recipe.runs)]:
        found.append(
            f"The test set was used for selection (monitor={chosen[0].first.monitor}): {_who(chosen)}. "
            "Their test numbers are too high by an unknown amount."
        )
    return found


def _notes(recipes: Sequence[Recipe], comparable: Sequence[Recipe], noise: tuple[float, int] | None) -> list[str]:
    every = [(recipe, run) for recipe in recipes for run in recipe.runs]
    found = _apart(
        "Other resolution (validation Dice is at network resolution)",
        every,
        lambda run: "x".join(map(str, run.metrics["data"]["image_size"])),
    )
    found += _apart("Epochs trained", every, lambda run: f"{run.metrics['epochs']}")
    found += _apart("Chosen by", every, lambda run: run.monitor)
    found += _apart(
        "Other device (minutes, memory and images/s are not comparable)", every, lambda run: run.metrics["device"]
    )
    if noise is None:
        found.append(
            "Seed noise is unknown: every configuration was trained with one seed, and the verdicts tell chance of the "
            "images only. Another seed moves the result too; to know by how much, train one configuration or more with "
            f"several: {train_command()} -m … seed=0,1,2"
        )
    else:
        count = sum(len(recipe.seeds) > 1 for recipe in comparable)
        found.append(
            f"Seed noise: test Dice has a standard deviation of {noise[0]:.4f} between seeds, pooled over {count} "
            f"configuration{'s' * (count > 1)} with several ({noise[1]} degree{'s' * (noise[1] > 1)} of freedom). Two "
            f"single-seed runs may differ by {seed_margin(noise, 1, 1):.3f} for no other reason."
            + (" More seeds would tell it better: seed=0,1,2,3,4." if noise[1] < 4 else "")
        )
    return found


def _apart(what: str, every: Sequence[tuple[Recipe, Run]], value: Callable[[Run], str]) -> list[str]:
    """A line if runs differ in a value, with who has which."""
    who: dict[str, list[Recipe]] = defaultdict(list)
    for recipe, run in every:
        if recipe not in who[value(run)]:
            who[value(run)].append(recipe)
    if len(who) == 1:
        return []
    told = "; ".join(f"{text if len(text) < 60 else f'{text[:59]}…'}: {_who(group)}" for text, group in who.items())
    return [f"{what}: {told}."]


def _who(recipes: Sequence[Recipe]) -> str:
    numbers = [f"#{recipe.number}" for recipe in recipes]
    return ", ".join(numbers[:6]) + (f" and {len(numbers) - 6} more" if len(numbers) > 6 else "")
