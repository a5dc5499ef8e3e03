"""The result of an inspection in words, and in the terminal."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.markup import escape

from polyp import terminal
from polyp.commands.data.survey import Image, Survey
from polyp.data.traits import group_by_stratum
from polyp.errors import override_word
from polyp.report.tables import count

MAX_LINES = 10  # problems and groups that the terminal lists


def print_summary(survey: Survey, page: Path, split_file: Path | None) -> None:
    """Print a summary, and the paths of the page and of the suggested split."""
    console = terminal.console()
    shares = [image.traits["polyp_share"] for image in survey.images]
    sizes = np.array([image.size for image in survey.images])
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    images = count(len(survey.images), "image")
    console.print(f"[bold]{escape(survey.name)}[/]  {images}, {low[1]}x{low[0]} to {high[1]}x{high[0]}")
    if sources := count_sources(survey):
        console.print(f"  sources    {escape(sources)}")
    for note in survey.notes:
        console.print(f"  {escape(note)}")
    for suspicion in survey.suspicions:
        console.print(f"  {escape(suspicion)}", style="yellow")
    if survey.split:
        console.print(f"  split      {escape(f'{survey.split_name}: {count_subsets(survey.split)}')}")
    console.print(
        f"  polyps     median {np.median(shares):.1%} of the pixels, {min(shares):.1%} to {max(shares):.1%}"
    )
    for name, bins in group_by_stratum([image.traits for image in survey.images]).items():
        console.print(f"  {name:<10} " + ", ".join(f"{len(rows)} {part}" for part, rows in bins.items()))
    groups = [name_members(survey, group.images) for group in survey.divided_groups]
    _print_list(count(len(survey.problems), "problem"), survey.problems)
    _print_list(describe_groups(survey), groups)
    console.print(f"{escape(describe_suggestion(survey))}\n")
    places = {"page": os.path.relpath(page)}
    if split_file:
        places["split"] = override_word("data.split", os.path.relpath(split_file))
    terminal.print_places(places)


def _print_list(title: str, lines: Sequence[str]) -> None:
    console = terminal.console()
    console.print(escape(title), style="yellow" if lines else "green")
    for line in lines[:MAX_LINES]:
        console.print(f"  {escape(line)}")
    if len(lines) > MAX_LINES:
        console.print(f"  ... and {len(lines) - MAX_LINES} more: see the page")


def count_subsets(subsets: Mapping[str, Sequence[str]]) -> str:
    """The number of images of each subset: `800 train, 80 val`."""
    return ", ".join(f"{len(stems)} {name}" for name, stems in subsets.items())


def count_sources(survey: Survey) -> str:
    """The number of images of each source; empty if there is only one."""
    counts = Counter(image.pair.source for image in survey.images)
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) if len(counts) > 1 else ""


def name_members(survey: Survey, images: Sequence[Image]) -> str:
    """The images of a group with their subsets."""
    subsets, stems = survey.subsets, [image.pair.stem for image in images]
    return ", ".join(f"{stem} ({subsets.get(stem, 'unused')})" if subsets else stem for stem in stems)


def describe_groups(survey: Survey) -> str:
    """How many images have near-duplicates, and whether the split in use divides them."""
    if not survey.groups:
        return "No near-duplicates were found."
    members = sum(len(group.images) for group in survey.groups)
    text = f"{count(len(survey.groups), 'group')} of near-duplicates with {members} images"
    if survey.split:
        divided = len(survey.divided_groups)
        subject = f"{divided or 'none'} of them {'is' if divided < 2 else 'are'}"
        if len(survey.groups) == 1:
            subject = "it is" if divided else "it is not"
        text += f"; {subject} divided between the subsets of split {survey.split_name}"
    return text + "."


def describe_suggestion(survey: Survey) -> str:
    """The sizes of the suggested split, and what it keeps of the one in use."""
    if not survey.suggestion:
        return "No split is suggested: there are too few images, or too few that differ."
    text = f"Suggested: {count_subsets(survey.suggestion)}."
    if survey.split_name in (None, "random"):
        return f"{text} Near-duplicates stay together, and each subset has small and large polyps alike."
    left_out = sum(map(len, survey.split.values())) - sum(map(len, survey.suggestion.values()))
    moved = len(set(survey.suggestion["train"]) - set(survey.split["train"]))
    return (
        f"{text} The test set is as in split {survey.split_name}, so that numbers stay comparable. Left out "
        f"of train and val as near-duplicates of test: {left_out}; moved from val to train: {moved}."
    )
