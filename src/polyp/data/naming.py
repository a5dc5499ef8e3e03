"""Names of the files of images and masks: what they have before and after the stem of a pair."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath
from string import digits
from typing import NamedTuple

from polyp.errors import InputError
from polyp.images import SUFFIXES

Names = dict[str, set[tuple[PurePath, str]]]
"""The folder and the name, without the ending, of each file by its role, image or mask."""

SAMPLE = 20  # file names that rules are derived from


class Affix(NamedTuple):
    """What the names of images, or of masks, have before and after the stem."""

    prefix: str = ""
    suffix: str = ""

    @property
    def pattern(self) -> str:
        """The names that have it, such as {stem}_mask."""
        return f"{self.prefix}{{stem}}{self.suffix}"

    def strip(self, name: str) -> str:
        """The stem of a name; empty if the name does not have the prefix and suffix."""
        start, end = len(self.prefix), len(name) - len(self.suffix)
        if start < end and name.startswith(self.prefix) and name.endswith(self.suffix):
            return name[start:end]
        return ""


NO_AFFIX = Affix()


@dataclass(frozen=True)
class Rule:
    """How images and masks of the same stem are named."""

    image: Affix = NO_AFFIX
    mask: Affix = NO_AFFIX

    def describe(self) -> list[str]:
        """A sentence for images and for masks whose names are not the stem alone."""
        affixes = {"image": self.image, "mask": self.mask}
        return [f"{role}s are named {affix.pattern}" for role, affix in affixes.items() if any(affix)]


def parse_name(key: str, pattern: str | None) -> Affix:
    """The affix of a pattern of file names such as {stem}_mask.png; none for None.

    Raises:
        InputError: the pattern does not contain {stem} once; `key` is its key in the configuration.
    """
    if pattern is None:
        return NO_AFFIX
    prefix, stem, suffix = pattern.partition("{stem}")
    if not stem or "{stem}" in suffix:
        raise InputError(f"{key}={pattern} must contain {{stem}} once, as in '{{stem}}_mask'")
    ending = Path(suffix).suffix
    return Affix(prefix, suffix.removesuffix(ending) if ending.lower() in SUFFIXES else suffix)


def choose_rule(root: Path, names: Names, image_name: str | None, mask_name: str | None) -> Rule:
    """The rule of the user's patterns, such as `{stem}_mask`, or else the one that gives most images a mask.

    Raises:
        InputError: two rules match as many, in different ways, or a pattern has no {stem}.
    """
    if image_name is not None or mask_name is not None:
        return Rule(parse_name("data.image_name", image_name), parse_name("data.mask_name", mask_name))
    best = Rule()
    matches = _match_names(best, names)
    if len(matches) == len(names["mask"]):
        return best
    tie: Rule | None = None
    for rule in _propose_rules(names):
        candidates = _match_names(rule, names)
        if len(candidates) > len(matches):
            best, matches, tie = rule, candidates, None
        elif candidates and len(candidates) == len(matches) and candidates != matches:
            tie = tie or rule
    if tie:
        texts = [" and ".join(rule.describe()) or "equal names" for rule in (best, tie)]
        raise InputError(
            f"{root}: it is not clear which masks belong to which images: {len(matches)} fit with "
            f"{texts[0]}, and as many with {texts[1]}: say how with data.mask_name= or data.image_name= or "
            "give a pattern of the masks such as data.masks='masks/*_mask.png'"
        )
    return best


def _match_names(rule: Rule, names: Names) -> dict[tuple[PurePath, str], str]:
    """The image's name and the mask's that a rule matches: {(folder, image name): mask name}."""
    images = {(folder, rule.image.strip(name)): name for folder, name in names["image"]}
    matches = {}
    for folder, name in names["mask"]:
        stem = rule.mask.strip(name)
        if stem and (folder, stem) in images:
            matches[folder, images[folder, stem]] = name
    return matches


def _propose_rules(names: Names) -> list[Rule]:
    """Rules that names suggest: one contains the other, or images and masks have an affix each."""
    images: dict[PurePath, list[str]] = defaultdict(list)
    for folder, name in sorted(names["image"]):
        images[folder].append(name)
    proposals: Counter[Rule] = Counter()
    for folder, mask in sorted(names["mask"])[:: max(1, len(names["mask"]) // SAMPLE)]:
        for image in images[folder]:
            if image in mask:
                affix = Affix(*mask.split(image, 1))
                rule = Rule(mask=affix)
            elif mask in image:
                affix = Affix(*image.split(mask, 1))
                rule = Rule(image=affix)
            else:
                continue
            # 12 is not the number 1 with the suffix 2.
            if not (affix.prefix[-1:].isdigit() or affix.suffix[:1].isdigit()):
                proposals[rule] += 1
    rules = [rule for rule, _ in proposals.most_common(SAMPLE)]
    return [*rules, Rule(_find_affix(names["image"]), _find_affix(names["mask"]))]


def _find_affix(files: Iterable[tuple[PurePath, str]]) -> Affix:
    """The prefix and the suffix that all names have, without digits, which count the images."""
    names = [name for _, name in files]
    prefix = "".join(common_prefix(names)).rstrip(digits)
    suffix = "".join(common_prefix([name[::-1] for name in names]))[::-1].lstrip(digits)
    return Affix(prefix, suffix if len(prefix) + len(suffix) < min(map(len, names)) else "")


def common_prefix(sequences: Sequence[Sequence[str]]) -> list[str]:
    """The items that all texts or tuples of texts begin with."""
    columns = zip(*sequences, strict=False)
    return [items[0] for items in takewhile(lambda items: len(set(items)) == 1, columns)]
