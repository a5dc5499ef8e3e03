"""How the files of images and masks are named: what their names have beside the stem that both share."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath

from polyp.errors import InputError
from polyp.images import SUFFIXES

Names = dict[str, set[tuple[PurePath, str]]]
"""The folder and the name, without the ending, of each file by its role, image or mask."""

SAMPLE = 20  # file names that rules are derived from


@dataclass(frozen=True)
class Rule:
    """What comes before and after the common part in the names of images and of masks."""

    image: tuple[str, str] = ("", "")
    mask: tuple[str, str] = ("", "")

    def describe(self) -> list[str]:
        """A sentence for each of both that is not the common part alone."""
        names = {"image": self.image, "mask": self.mask}
        return [f"{role}s are named {self.pattern(role)}" for role, affix in names.items() if any(affix)]

    def pattern(self, role: str) -> str:
        """The names of images or of masks, such as {stem}_mask."""
        return "{stem}".join(self.mask if role == "mask" else self.image)


def parse_name(key: str, pattern: str) -> tuple[str, str]:
    """What comes before and after {stem} in a pattern of file names.

    Raises:
        InputError: it does not contain {stem} once; `key` is the one of the configuration that has it.
    """
    before, stem, after = pattern.partition("{stem}")
    if not stem or "{stem}" in after:
        raise InputError(f"{key}={pattern} must contain {{stem}} once, as in '{{stem}}_mask'")
    suffix = Path(after).suffix.lower()
    return before, after[: -len(suffix)] if suffix in SUFFIXES else after


def choose_rule(root: Path, names: Names, image_name: str | None, mask_name: str | None) -> Rule:
    """The rule for names that matches most images with masks; the user's own if there is one.

    Args:
        root: the data set's folder, for the message.
        names: of images and masks.
        image_name, mask_name: the user's own patterns, such as `{stem}_mask`.

    Raises:
        InputError: two rules match as many, in different ways, or a pattern has no {stem}.
    """
    if image_name is not None or mask_name is not None:
        parsed = [
            parse_name(key, name) if name is not None else ("", "")
            for key, name in (("data.image_name", image_name), ("data.mask_name", mask_name))
        ]
        return Rule(*parsed)
    best, most = Rule(), len(_apply(Rule(), names))
    if most == len(names["mask"]) or not names["mask"]:
        return best
    ties: list[Rule] = []
    for rule in _propose_rules(names):
        if (count := len(_apply(rule, names))) > most:
            best, most, ties = rule, count, []
        elif count == most and most and _apply(rule, names) != _apply(best, names):
            ties.append(rule)
    if ties:
        texts = [" and ".join(rule.describe()) or "equal names" for rule in (best, ties[0])]
        raise InputError(
            f"{root}: it is not clear which masks belong to which images: {most} fit with {texts[0]}, and as "
            f"many with {texts[1]}: say how with data.mask_name= or data.image_name= or give a pattern of "
            "the masks such as data.masks='masks/*_mask.png'"
        )
    return best


def _apply(rule: Rule, names: Names) -> dict[tuple[PurePath, str], str]:
    """The image's name and the mask's that a rule matches: {(folder, image name): mask name}."""
    images = {
        (folder, stem): name for folder, name in names["image"] if (stem := strip_affix(name, rule.image))
    }
    matched = {}
    for folder, name in names["mask"]:
        stem = strip_affix(name, rule.mask)
        if stem and (folder, stem) in images:
            matched[folder, images[folder, stem]] = name
    return matched


def strip_affix(name: str, affix: tuple[str, str]) -> str:
    """A name without its prefix and suffix; empty if it does not have them."""
    before, after = affix
    if len(name) > len(before) + len(after) and name.startswith(before) and name.endswith(after):
        return name[len(before) : len(name) - len(after)]
    return ""


def _propose_rules(names: Names) -> list[Rule]:
    """Rules that some names suggest: one contains the other, or both have a prefix or suffix of their own."""
    by_folder: dict[PurePath, list[str]] = defaultdict(list)
    for folder, name in sorted(names["image"]):
        by_folder[folder].append(name)
    proposals: Counter[Rule] = Counter()
    for folder, mask in sorted(names["mask"])[:: max(1, len(names["mask"]) // SAMPLE)]:
        for image in by_folder[folder]:
            if image in mask:
                before, _, after = mask.partition(image)
                rule = Rule(mask=(before, after))
            elif mask in image:
                before, _, after = image.partition(mask)
                rule = Rule(image=(before, after))
            else:
                continue
            if not (before[-1:].isdigit() or after[:1].isdigit()):  # 12 is another number, and not 1 with 2
                proposals[rule] += 1
    rules = [rule for rule, _ in proposals.most_common(SAMPLE)]
    own = {role: _find_affix([name for _, name in names[role]]) for role in names}
    return [*rules, Rule(own["image"], own["mask"])]


def _find_affix(names: Sequence[str]) -> tuple[str, str]:
    """The prefix and the suffix that all names have, without digits, which count the images."""
    before = "".join(common_start(names)).rstrip("0123456789")
    after = "".join(common_start([name[::-1] for name in names]))[::-1].lstrip("0123456789")
    return before, after if len(before) + len(after) < min(map(len, names)) else ""


def common_start(sequences: Sequence[Sequence[str]]) -> list[str]:
    """What all texts or tuples of texts begin with."""
    return [
        items[0] for items in takewhile(lambda items: len(set(items)) == 1, zip(*sequences, strict=False))
    ]
