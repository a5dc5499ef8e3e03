"""Layouts: how the images and masks of a data set lie in folders.

`list_pairs` understands a folder of images and one of masks, several of both for centres, sequences or
subsets, and masks beside their images. `Listing.notes` says what it understood; what is ambiguous is refused.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from polyp.data.masks import AUTO, MaskCoding
from polyp.data.naming import NO_AFFIX, Affix, Rule, choose_rule, common_prefix
from polyp.data.pairs import Pair
from polyp.data.roles import File, assign_roles, find_subset, list_files
from polyp.errors import InputError, override_word, printable
from polyp.images import SUFFIXES

LISTED = 6  # folders that a note names


class NoMasksError(InputError):
    """A folder has images, and none that are known to be masks."""


@dataclass
class Listing:
    """The images and masks of a data set.

    Attributes:
        pairs: sorted by stem.
        problems: a short text each: an image or a mask alone, two files of one stem, a broken link.
        notes: how the files were understood, a sentence each; empty for images/ and masks/ with equal names.
        lists: the folder, if it has train.txt and test.txt.
    """

    pairs: list[Pair]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lists: Path | None = None


def list_pairs(
    root: Path,
    images: str | None = None,
    masks: str | None = None,
    image_name: str | None = None,
    mask_name: str | None = None,
    missing_mask: str = "error",
    coding: MaskCoding = AUTO,
    exclude: Path | None = None,
) -> Listing:
    """Find the images and masks below a folder.

    Args:
        root: the folder.
        images, masks: the names of the folders of images and of masks, or paths below the root, or patterns
            such as `*.jpg` or `masks/*_gt.png`; None: folders are known by names such as images, Frame,
            masks, GT.
        image_name, mask_name: how the files are named, such as `{stem}_mask`; None: a common prefix or suffix
            is found.
        missing_mask: `empty` takes an image without a mask for one without a polyp, `error` reports it.
        coding: which values of the masks are polyp.
        exclude: a folder that is left out, with those in it.

    Raises:
        InputError: there is no pair, or it is ambiguous which files belong together.
    """
    problems: list[str] = []
    files = list_files(root, images, masks, problems, exclude)
    if not files:
        raise InputError(f"{root} has no images ({', '.join(sorted(SUFFIXES))})")
    files = assign_roles(root, files, images, masks, mask_name)
    by_role = {role: [file for file in files if file.role == role] for role in ("image", "mask", "")}
    notes = _describe_folders(by_role, images, masks)
    del by_role[""]
    absent = [role for role, members in by_role.items() if not members]
    if "image" in absent or ("mask" in absent and missing_mask != "empty"):
        error = NoMasksError if "mask" in absent else InputError
        raise error(_describe_lack(root, files, absent, images, masks))
    names = {role: {(file.folder, file.name) for file in members} for role, members in by_role.items()}
    rule = choose_rule(root, names, image_name, mask_name)
    notes += rule.describe()
    for role, affix in (("image", rule.image), ("mask", rule.mask)):
        unmatched = [file for file in by_role[role] if not affix.strip(file.name)]
        if unmatched and image_name is None and mask_name is None:
            reason = f"is not named {affix.pattern}, as others are: data.{role}_name="
            problems += [f"{file.relative}: {reason}" for file in unmatched]
        elif unmatched:
            notes.append(f"{len(unmatched)} {role}s are left out: they are not named {affix.pattern}")
    pairs = _match(root, by_role, rule, missing_mask, problems)
    if not pairs:
        image, mask = (members[0].relative if members else "none" for members in by_role.values())
        raise InputError(
            f"{root} has no image and mask of the same name: an image is {printable(image)}, a mask is "
            f"{printable(mask)}. Say how: {override_word('data.mask_name', '{stem}_mask')}, for example"
        )
    return Listing([replace(pair, coding=coding) for pair in pairs], problems, notes)


def list_images(root: Path, exclude: Path | None = None) -> Listing:
    """All images below a folder, as pairs without masks, such as frames that show no polyp.

    Files in a folder of masks beside one of images are left out, and the folder `exclude`.

    Raises:
        InputError: there is none.
    """
    problems: list[str] = []
    files = list_files(root, None, None, problems, exclude)
    if not files:
        raise InputError(f"{root} has no images ({', '.join(sorted(SUFFIXES))})")
    notes = []
    masks = [file for file in files if file.role == "mask"]
    if masks and any(file.role == "image" for file in files):
        files = [file for file in files if file.role != "mask"]
        notes.append(f"{len(masks)} masks are left out, in {_name_folders(masks)}")
    sources = _name_sources(root, files)
    pairs = [
        Pair(stem.as_posix(), file.path, None, sources[file.base], file.subset)
        for stem, file in _index_by_stem(files, NO_AFFIX, problems).items()
    ]
    return Listing(_shorten_stems(pairs), problems, notes)


def _describe_folders(by_role: dict[str, list[File]], images: str | None, masks: str | None) -> list[str]:
    """Which folders hold images and masks, if they are not just images/ and masks/, and what is left out."""
    notes = []
    folders = [_list_folders(by_role["image"]), _list_folders(by_role["mask"])]
    if folders != [[images or "images"], [masks or "masks"]]:
        for role in ("image", "mask"):
            if by_role[role]:
                notes.append(f"{role}s are in {_name_folders(by_role[role])}")
    if by_role[""] and by_role["image"]:
        notes.append(f"{len(by_role[''])} other images are left out, in {_name_folders(by_role[''])}")
    return notes


def _list_folders(files: Iterable[File]) -> list[str]:
    return sorted({file.relative.parent.as_posix() for file in files})


def _name_folders(files: Iterable[File]) -> str:
    names = ["the folder itself" if folder == "." else f"{folder}/" for folder in _list_folders(files)]
    return ", ".join(names[:LISTED]) + f" and {len(names) - LISTED} more" * (len(names) > LISTED)


def _describe_lack(
    root: Path, files: Iterable[File], absent: Sequence[str], images: str | None, masks: str | None
) -> str:
    """The message where there are no images or no masks, and how to say which they are."""
    settings = {"image": images, "mask": masks}
    reason = f"no folder that is known to hold {' or '.join(f'{role}s' for role in absent)}"
    for role in reversed(absent):
        if settings[role]:
            reason = f"no {role}s in '{settings[role]}' (data.{role}s)"
    return (
        f"data.root={root} has {reason}; it has {_name_folders(files)}: name a folder, a pattern such as "
        "'*.jpg', or a JSON file of polygons with data.images= and data.masks="
    )


def _match(
    root: Path, by_role: dict[str, list[File]], rule: Rule, missing_mask: str, problems: list[str]
) -> list[Pair]:
    """The pairs by a rule, sorted by stem; what is alone or double becomes a problem."""
    images = _index_by_stem(by_role["image"], rule.image, problems)
    masks = _index_by_stem(by_role["mask"], rule.mask, problems)
    paired = {stem: file for stem, file in images.items() if stem in masks or missing_mask == "empty"}
    sources = _name_sources(root, paired.values())
    pairs = []
    for stem, file in paired.items():
        mask = masks[stem].path if stem in masks else None
        pairs.append(Pair(stem.as_posix(), file.path, mask, sources[file.base], file.subset))

    def describe_folder(files: Iterable[File]) -> str:
        folders = _list_folders(files)
        return f" in {folders[0]}/" if len(folders) == 1 and folders != ["."] else ""

    paired_folders = {file.relative.parent for file in paired.values()}
    unpaired = defaultdict(list)
    for stem, file in images.items():
        if stem not in paired:
            unpaired[file.relative.parent].append(file)
    for folder, files in unpaired.items():
        if folder in paired_folders or len(files) == 1:
            reason = f"no mask{describe_folder(masks.values())}"
            problems += [f"{file.relative}: {reason}" for file in files]
        else:
            reason = f"none of its {len(files)} images has a mask (data.images= says which are meant)"
            problems.append(f"{_name_folders(files)}: {reason}")
    for stem in masks.keys() - images.keys():
        problems.append(f"{masks[stem].relative}: no image{describe_folder(images.values())}")
    return _shorten_stems(pairs)


def _index_by_stem(files: Iterable[File], affix: Affix, problems: list[str]) -> dict[PurePath, File]:
    """Files by folder and stem; those without the affix are left out, doubles become problems."""
    index: dict[PurePath, File] = {}
    for file in files:
        if not (name := affix.strip(file.name)):
            continue
        first = index.setdefault(file.folder / name, file)
        if first is not file:
            problems.append(f"{file.relative}: has the same stem as {first.relative}")
    return index


def _shorten_stems(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs sorted by stem, without the folders that all stems begin with."""
    stems = [PurePath(pair.stem).parts for pair in pairs]
    depth = len(common_prefix([parts[:-1] for parts in stems]))
    shortened = [
        replace(pair, stem="/".join(parts[depth:])) for pair, parts in zip(pairs, stems, strict=True)
    ]
    return sorted(shortened, key=lambda pair: pair.stem)


def _name_sources(root: Path, files: Iterable[File]) -> dict[PurePath, str]:
    """The source of each folder above images and masks, if there are several: its name without subsets.

    With subsets where test sets differ in that part only, such as TestEasyDataset and TestHardDataset.
    """
    names = {}
    for file in files:
        names[file.base] = "/".join(part for part in file.base.parts if not find_subset(part))
    tests = [names[base] for base in {file.base for file in files if file.subset == "test"}]
    if len(set(tests)) < len(tests):
        names = {base: base.as_posix() for base in names}
    if len(set(names.values())) == 1:
        return dict.fromkeys(names, "")
    depth = len(common_prefix([name.split("/") if name else [] for name in names.values()]))
    return {
        base: "/".join(name.split("/")[depth:]) or "/".join(base.parts) or root.name
        for base, name in names.items()
    }
