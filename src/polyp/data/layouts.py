"""Layouts: how the images and masks of a data set lie in folders.

`list_pairs` understands a folder of images and one of masks, several of both for centres, sequences or
subsets, and masks beside their images. `Listing.notes` says what it understood; what is ambiguous is refused.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path, PurePath

from polyp.data.masks import AUTO, MaskCoding
from polyp.data.naming import Rule, choose_rule, common_start, parse_name, strip_affix
from polyp.data.pairs import Pair
from polyp.errors import InputError, override_word, printable
from polyp.files import walk_files
from polyp.images import SUFFIXES

IMAGE_FOLDER = r"images?|imgs?|originals?|frames?|jpegimages|pictures?|inputs?"
MASK_FOLDER = (
    r"masks?|gts?|ground[ _-]?truths?|labels?|segmentations?|segmentationclass|annotations?|targets?"
)
IMAGE_AFFIX = r"images?|imgs?|frames?|originals?"
MASK_AFFIX = r"masks?|gt|ground[ _-]?truth|labels?|seg|segmentation|annotation"
SUBSET_FOLDERS = {"train": r"train(ing)?", "val": r"val(id|idation)?", "test": r"test(ing)?"}
NNUNET = {"tr": "train", "ts": "test", "val": "val"}
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


@dataclass(frozen=True)
class _File:
    """An image file below the root.

    Attributes:
        path: of the file.
        role: image, mask, or empty where no folder says it.
        folder: its folder, without the one that says its role.
        above: the part of `folder` that is above that one.
        affix: what the name of that one has beside the role, such as C1 in images_C1.
        name: without the ending.
        subset: that a folder names.
    """

    path: Path
    role: str
    folder: PurePath
    above: PurePath
    affix: str
    name: str
    subset: str | None


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
    paths = _walk(root, problems, exclude)
    files = _keep_affixes([_classify(root, path, images, masks) for path in paths])
    files = _assign_roles(root, files, images, masks, mask_name)
    notes = _describe_folders(root, files, images, masks)
    sides = {role: [file for file in files if file.role == role] for role in ("image", "mask")}
    if not sides["image"] or not (sides["mask"] or missing_mask == "empty"):
        kind = NoMasksError if paths and not sides["mask"] else InputError
        raise kind(_describe_lack(root, paths, sides, images, masks))
    names = {role: {(file.folder, file.name) for file in side} for role, side in sides.items()}
    rule = choose_rule(root, names, image_name, mask_name)
    notes += rule.describe()
    for role, side in sides.items():
        others = [file for file in side if not strip_affix(file.name, getattr(rule, role))]
        if others and image_name is None and mask_name is None:
            reason = f"is not named {rule.pattern(role)}, as others are: data.{role}_name="
            problems += [f"{file.path.relative_to(root)}: {reason}" for file in others]
        elif others:
            notes.append(f"{len(others)} {role}s are left out: they are not named {rule.pattern(role)}")
    pairs = _match(root, sides, rule, missing_mask, problems)
    if not pairs:
        image, mask = (sides[role][0].path.relative_to(root) if sides[role] else "none" for role in sides)
        reason = f"an image is {printable(image)}, a mask is {printable(mask)}"
        key = override_word("data.mask_name", "{stem}_mask")
        raise InputError(
            f"{root} has no image and mask of the same name: {reason}. Say how: {key}, for example"
        )
    return Listing([replace(pair, coding=coding) for pair in pairs], problems, notes)


def list_images(root: Path, exclude: Path | None = None) -> Listing:
    """All images below a folder, as pairs without masks, such as frames that show no polyp.

    Files in a folder of masks beside one of images are left out.

    Args:
        root: the folder.
        exclude: a folder that is left out, with those in it.

    Raises:
        InputError: there is none.
    """
    problems: list[str] = []
    files = _keep_affixes([_classify(root, path, None, None) for path in _walk(root, problems, exclude)])
    if not files:
        raise InputError(f"{root} has no images ({', '.join(sorted(SUFFIXES))})")
    notes = []
    masks = [file for file in files if file.role == "mask"]
    if masks and any(file.role == "image" for file in files):
        files = [file for file in files if file.role != "mask"]
        notes.append(f"{len(masks)} masks are left out, in {_name_folders(_list_folders(root, masks))}")
    sources = _name_sources(root, files)
    pairs = [
        Pair(_join(*key), file.path, None, sources[file.above], file.subset)
        for key, file in _unique(files, root, ("", ""), problems).items()
    ]
    return Listing(_shorten(pairs), problems, notes)


def _walk(root: Path, problems: list[str], exclude: Path | None) -> list[Path]:
    """The image files below a folder, sorted; broken links become problems."""
    paths = []
    for path in walk_files(root, SUFFIXES, problems, exclude):
        if path.is_file():
            paths.append(path)
        else:
            problems.append(f"{path.relative_to(root)}: a broken link, or not a file")
    return sorted(paths)


def _classify(root: Path, path: Path, images: str | None, masks: str | None) -> _File:
    """The role of a file by the names of its folders; the innermost decides."""
    relative = path.relative_to(root)
    parts = relative.parent.parts
    for role, name in (("mask", masks), ("image", images)):
        if name is None:
            continue
        wanted, pattern = PurePath(name).parts, "*"
        if "*" in name or "?" in name:
            wanted, pattern = wanted[:-1], wanted[-1]
        if not fnmatch(path.name.lower(), pattern.lower()):
            continue
        if not wanted and (name != "." or not parts):
            return _make_file(path, role, parts, len(parts), "")
        for start in range(len(parts) - len(wanted), -1, -1) if wanted else ():
            if parts[start : start + len(wanted)] == wanted:
                return _make_file(path, role, parts[:start] + parts[start + len(wanted) :], start, "")
    words = {
        "image": IMAGE_FOLDER if images is None else None,
        "mask": MASK_FOLDER if masks is None else None,
    }
    for place in range(len(parts) - 1, -1, -1):
        for role, word in words.items():
            pattern = rf"(?:(.+)[ _-])?(?:{word})(?:[ _-](.+)|(Tr|Ts|Val))?"
            if word and (match := re.fullmatch(pattern, parts[place], re.IGNORECASE)):
                affix = next((text for text in match.groups() if text), "")
                return _make_file(path, role, parts[:place] + parts[place + 1 :], place, affix)
    return _make_file(path, "", parts, len(parts), "")


def _make_file(path: Path, role: str, parts: tuple[str, ...], place: int, affix: str) -> _File:
    """A file in the folders `parts`, whose role a folder at `place` says; `affix` is the rest of its name.

    Of masks/masks/, as archives have it, the outer one is not counted either.
    """
    subset = next((name for part in (*parts, affix) if (name := _find_subset(part))), None)
    words = re.compile(f"{IMAGE_FOLDER}|{MASK_FOLDER}", re.IGNORECASE)
    above = PurePath(*(part for part in parts[:place] if not (role and words.fullmatch(part))))
    return _File(path, role, above.joinpath(*parts[place:]), above, affix, path.stem, subset)


def _keep_affixes(files: Sequence[_File]) -> list[_File]:
    """Files whose folders keep the affix where several lie side by side, such as images_C1 and images_C2."""
    affixes = defaultdict(set)
    for file in files:
        affixes[file.above, file.role].add(file.affix)
    finished = []
    for file in files:
        if file.affix and len(affixes[file.above, file.role]) > 1:
            above = file.above / file.affix
            file = replace(file, above=above, folder=above / file.folder.relative_to(file.above))
        finished.append(file)
    return finished


def _find_subset(part: str) -> str | None:
    """The subset that a folder's name stands for: train, Training, TestDataset, val_set, imagesTr's Tr."""
    for subset, word in SUBSET_FOLDERS.items():
        if re.fullmatch(rf"(?i:{word})(?:$|[ _-].*|[A-Z].*|(?i:set|data)\w*)", part):
            return subset
    return NNUNET.get(part.lower())


def _assign_roles(
    root: Path, files: Sequence[_File], images: str | None, masks: str | None, mask_name: str | None
) -> list[_File]:
    """Decide the role of files in folders that say none: images if only masks have a folder, else by name."""
    roles = {file.role for file in files}
    if roles == {"", "mask"} and images is None:
        return _find_images(files)
    if "mask" in roles or masks is not None:
        return list(files)
    names = {(file.folder, file.name) for file in files}
    if mask_name is not None:
        before, after = parse_name("data.mask_name", mask_name)
        pattern = re.compile(f"{re.escape(before)}(.+){re.escape(after)}")
    else:
        pattern = re.compile(rf"(?:{MASK_AFFIX})[ _.-]?(.+)|(.+?)[ _.-]?(?:{MASK_AFFIX})", re.IGNORECASE)

    image_pattern = re.compile(rf"(?:{IMAGE_AFFIX})[ _.-]?(.+)|(.+?)[ _.-]?(?:{IMAGE_AFFIX})", re.IGNORECASE)
    stems = names | {
        (folder, text)
        for folder, name in names
        if (match := image_pattern.fullmatch(name))
        for text in match.groups()
    }

    def is_mask(file: _File) -> bool:
        match = pattern.fullmatch(file.name)
        return match is not None and any((file.folder, text) in stems for text in match.groups() if text)

    flags = [is_mask(file) for file in files]
    if not any(flags):
        doubles = [
            key for key, count in Counter((file.folder, file.name) for file in files).items() if count > 1
        ]
        if doubles and len(doubles) >= len(names) / 2:
            first, second = [file.path for file in files if (file.folder, file.name) == doubles[0]][:2]
            keys = f"data.images='*{first.suffix}' data.masks='*{second.suffix}'"
            raise InputError(
                f"{root} has {first.name} and {second.name} in one folder: say which are masks, for example "
                f"{keys}"
            )
        return list(files)
    return [replace(file, role="mask" if flag else "image") for file, flag in zip(files, flags, strict=True)]


def _find_images(files: Sequence[_File]) -> list[_File]:
    """Files whose only known folders hold masks: the others are images.

    They lie beside masks/, or in a folder beside it if there is only one.
    """
    homes = {file.above for file in files if file.role}
    places: dict[_File, tuple[PurePath, tuple[str, ...]]] = {}
    for file in files:
        above = next((part for part in (file.folder, *file.folder.parents) if part in homes), None)
        if file.role or above is None:
            continue
        parts = file.folder.relative_to(above).parts
        if not any(re.fullmatch(MASK_FOLDER, part, re.IGNORECASE) for part in parts):
            places[file] = above, parts
    folders = defaultdict(set)
    for above, parts in places.values():
        folders[above].add(parts[:1])
    finished = []
    for file in files:
        if file in places:
            above, parts = places[file]
            if parts and len(folders[above]) == 1:
                file = replace(file, folder=above.joinpath(*parts[1:]), above=above)
            file = replace(file, role="image")
        finished.append(file)
    return finished


def _describe_folders(root: Path, files: Sequence[_File], images: str | None, masks: str | None) -> list[str]:
    """Which folders hold images and masks, if they are not just images/ and masks/, and what is left out."""
    notes = []
    folders = {
        role: _list_folders(root, [file for file in files if file.role == role])
        for role in ("image", "mask", "")
    }
    if folders["image"] != [images or "images"] or folders["mask"] != [masks or "masks"]:
        for role in ("image", "mask"):
            if folders[role]:
                notes.append(f"{role}s are in {_name_folders(folders[role])}")
    if folders[""] and folders["image"]:
        count = sum(not file.role for file in files)
        notes.append(f"{count} other images are left out, in {_name_folders(folders[''])}")
    return notes


def _list_folders(root: Path, files: Iterable[_File]) -> list[str]:
    return sorted({file.path.parent.relative_to(root).as_posix() for file in files})


def _name_folders(folders: Sequence[str]) -> str:
    names = ["the folder itself" if folder == "." else f"{folder}/" for folder in folders]
    more = f" and {len(names) - LISTED} more" * (len(names) > LISTED)
    return ", ".join(names[:LISTED]) + more


def _describe_lack(
    root: Path, paths: Sequence[Path], sides: dict[str, list[_File]], images: str | None, masks: str | None
) -> str:
    """What is missing where there are no images or no masks, and how to say which they are."""
    if not paths:
        return f"{root} has no images ({', '.join(sorted(SUFFIXES))})"
    lacking = [role for role in ("image", "mask") if not sides[role]]
    named = {"image": images, "mask": masks}
    for role in lacking:
        if named[role]:
            what = f"data.root={root} has no {role}s in '{named[role]}' (data.{role}s)"
            break
    else:
        contents = " or ".join(f"{role}s" for role in lacking)
        what = f"data.root={root} has no folder that is known to hold {contents}"
    folders = sorted({path.parent.relative_to(root).as_posix() for path in paths})
    return (
        f"{what}; it has {_name_folders(folders)}: name a folder, a pattern such as '*.jpg', or a JSON file "
        "of polygons with data.images= and data.masks="
    )


def _match(
    root: Path, sides: dict[str, list[_File]], rule: Rule, missing_mask: str, problems: list[str]
) -> list[Pair]:
    """The pairs by a rule, sorted by stem; what is alone or double becomes a problem."""
    images, masks = (_unique(sides[role], root, getattr(rule, role), problems) for role in ("image", "mask"))
    chosen = {key: image for key, image in images.items() if key in masks or missing_mask == "empty"}
    sources = _name_sources(root, chosen.values())
    pairs = []
    for key, image in chosen.items():
        mask = masks[key].path if key in masks else None
        pairs.append(Pair(_join(*key), image.path, mask, sources[image.above], image.subset))
    places = {}
    for role, side in (("image", images), ("mask", masks)):
        folders = _list_folders(root, side.values())
        places[role] = f" in {folders[0]}/" if len(folders) == 1 and folders != ["."] else ""
    complete = {pair.image.parent for pair in pairs}
    without = defaultdict(list)
    for key, image in images.items():
        if key not in chosen:
            without[image.path.parent].append(image.path)
    for folder, paths in without.items():
        if folder in complete or len(paths) == 1:
            problems += [f"{path.relative_to(root)}: no mask{places['mask']}" for path in paths]
        else:
            name = _name_folders([folder.relative_to(root).as_posix()])
            reason = f"none of its {len(paths)} images has a mask (data.images= says which are meant)"
            problems.append(f"{name}: {reason}")
    for key in masks.keys() - images.keys():
        problems.append(f"{masks[key].path.relative_to(root)}: no image{places['image']}")
    return _shorten(pairs)


def _unique(
    files: Iterable[_File], root: Path, affix: tuple[str, str], problems: list[str]
) -> dict[tuple[PurePath, str], _File]:
    """Files by folder and the common part of their names; those of another prefix or suffix are left out."""
    unique: dict[tuple[PurePath, str], _File] = {}
    for file in files:
        if not (name := strip_affix(file.name, affix)):
            continue
        if (first := unique.setdefault((file.folder, name), file)) is not file:
            both = (file.path.relative_to(root), first.path.relative_to(root))
            problems.append("{}: has the same stem as {}".format(*both))
    return unique


def _join(folder: PurePath, name: str) -> str:
    return (folder / name).as_posix()


def _shorten(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs sorted by stem, without the folders that all stems begin with."""
    folders = [PurePath(pair.stem).parent.parts for pair in pairs]
    common = common_start(folders)
    shortened = [replace(pair, stem="/".join(PurePath(pair.stem).parts[len(common) :])) for pair in pairs]
    return sorted(shortened, key=lambda pair: pair.stem)


def _name_sources(root: Path, files: Iterable[_File]) -> dict[PurePath, str]:
    """The source of each folder above images and masks, if there are several: its name without subsets.

    With subsets where test sets differ in that part only, such as TestEasyDataset and TestHardDataset.
    """
    names = {}
    for file in files:
        names[file.above] = "/".join(part for part in file.above.parts if not _find_subset(part))
    tests = [names[folder] for folder in {file.above for file in files if file.subset == "test"}]
    if len(set(tests)) < len(tests):
        names = {folder: folder.as_posix() for folder in names}
    if len(set(names.values())) == 1:
        return dict.fromkeys(names, "")
    common = len(common_start([name.split("/") if name else [] for name in names.values()]))
    return {
        folder: "/".join(name.split("/")[common:]) or "/".join(folder.parts) or root.name
        for folder, name in names.items()
    }
