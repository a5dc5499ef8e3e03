"""Which files are images and which are masks, by the names of their folders and their own."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePath

from polyp.data.naming import parse_name
from polyp.errors import InputError
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


@dataclass(frozen=True)
class File:
    """An image file below the root, whose role a folder may say, as images_C1 does."""

    path: Path
    relative: Path  # to the root
    role: str  # image, mask, or empty where no folder says it
    folder: PurePath  # of the file, without the one that says the role
    base: PurePath  # the folders above the one that says the role
    affix: str  # the rest of that folder's name, such as C1
    subset: str | None  # that a folder names

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem


def list_files(
    root: Path, images: str | None, masks: str | None, problems: list[str], exclude: Path | None
) -> list[File]:
    """The image files below a folder, sorted, with the roles that folders say."""
    files = []
    for path in sorted(walk_files(root, SUFFIXES, problems, exclude)):
        if path.is_file():
            files.append(_classify(path, path.relative_to(root), images, masks))
        else:
            problems.append(f"{path.relative_to(root)}: a broken link, or not a file")
    return _keep_affixes(files)


def assign_roles(
    root: Path, files: list[File], images: str | None, masks: str | None, mask_name: str | None
) -> list[File]:
    """Decide the role of files in folders that say none: images if only masks have a folder, else by name.

    Raises:
        InputError: files of two kinds have the same names, and either may be the masks.
    """
    roles = {file.role for file in files}
    if roles == {"", "mask"} and images is None:
        return _find_images(files)
    if "mask" in roles or masks is not None:
        return files
    mask_pattern = _compile_affix(MASK_AFFIX)
    if mask_name is not None:
        affix = parse_name("data.mask_name", mask_name)
        mask_pattern = re.compile(f"{re.escape(affix.prefix)}(.+){re.escape(affix.suffix)}")
    image_pattern = _compile_affix(IMAGE_AFFIX)
    counts = Counter((file.folder, file.name) for file in files)
    stems = set(counts)
    for folder, name in counts:
        if match := image_pattern.fullmatch(name):
            stems.add((folder, match[1] or match[2]))

    def is_mask(file: File) -> bool:
        match = mask_pattern.fullmatch(file.name)
        return match is not None and any((file.folder, stem) in stems for stem in match.groups())

    flags = [is_mask(file) for file in files]
    if any(flags):
        return [
            replace(file, role="mask" if flag else "image") for file, flag in zip(files, flags, strict=True)
        ]
    duplicates = [key for key, count in counts.items() if count > 1]
    if duplicates and len(duplicates) >= len(counts) / 2:
        a, b = [file.path for file in files if (file.folder, file.name) == duplicates[0]][:2]
        raise InputError(
            f"{root} has {a.name} and {b.name} in one folder: say which are masks, for example "
            f"data.images='*{a.suffix}' data.masks='*{b.suffix}'"
        )
    return files


def find_subset(part: str) -> str | None:
    """The subset that a folder's name stands for: train, Training, TestDataset, val_set, imagesTr's Tr."""
    for subset, word in SUBSET_FOLDERS.items():
        if re.fullmatch(rf"(?i:{word})(?:$|[ _-].*|[A-Z].*|(?i:set|data)\w*)", part):
            return subset
    return NNUNET.get(part.lower())


def _classify(path: Path, relative: Path, images: str | None, masks: str | None) -> File:
    """The role of a file by the names of its folders; the innermost decides."""
    parts = relative.parts[:-1]
    words = {"image": IMAGE_FOLDER, "mask": MASK_FOLDER}
    for role, name in (("mask", masks), ("image", images)):
        if name is None:
            continue
        del words[role]
        folders, pattern = PurePath(name).parts, "*"
        if "*" in name or "?" in name:
            folders, pattern = folders[:-1], folders[-1]
        if not fnmatch(path.name.lower(), pattern.lower()):
            continue
        if not folders and (name != "." or not parts):
            return _make_file(path, relative, role, parts, len(parts), "")
        for start in range(len(parts) - len(folders), -1, -1) if folders else ():
            end = start + len(folders)
            if parts[start:end] == folders:
                return _make_file(path, relative, role, parts[:start] + parts[end:], start, "")
    for depth in reversed(range(len(parts))):
        for role, word in words.items():
            pattern = rf"(?:(.+)[ _-])?(?:{word})(?:[ _-](.+)|(Tr|Ts|Val))?"
            if match := re.fullmatch(pattern, parts[depth], re.IGNORECASE):
                affix = match[1] or match[2] or match[3] or ""
                return _make_file(path, relative, role, parts[:depth] + parts[depth + 1 :], depth, affix)
    return _make_file(path, relative, "", parts, len(parts), "")


def _make_file(path: Path, relative: Path, role: str, parts: tuple[str, ...], depth: int, affix: str) -> File:
    """A file in the folders `parts`, without the folder at `depth` that says its role and has an affix.

    Of masks/masks/, as archives have it, the outer one is not counted either.
    """
    subset = next((name for part in (*parts, affix) if (name := find_subset(part))), None)
    words = re.compile(f"{IMAGE_FOLDER}|{MASK_FOLDER}", re.IGNORECASE)
    base = PurePath(*(part for part in parts[:depth] if not (role and words.fullmatch(part))))
    return File(path, relative, role, base.joinpath(*parts[depth:]), base, affix, subset)


def _keep_affixes(files: Iterable[File]) -> list[File]:
    """Files whose folders keep the affix where several lie side by side, such as images_C1 and images_C2."""
    affixes = defaultdict(set)
    for file in files:
        affixes[file.base, file.role].add(file.affix)
    result = []
    for file in files:
        if file.affix and len(affixes[file.base, file.role]) > 1:
            base = file.base / file.affix
            file = replace(file, base=base, folder=base / file.folder.relative_to(file.base))
        result.append(file)
    return result


def _compile_affix(words: str) -> re.Pattern[str]:
    """A pattern of names that begin or end with one of the words; one of its two groups is the stem."""
    return re.compile(rf"(?:{words})[ _.-]?(.+)|(.+?)[ _.-]?(?:{words})", re.IGNORECASE)


def _find_images(files: Iterable[File]) -> list[File]:
    """Files of which only those of masks have a known folder: the others are images.

    They lie beside masks/, or in a folder beside it if there is only one.
    """
    bases = {file.base for file in files if file.role}
    # Of each image the folder that masks/ lies in, and the folders below that one.
    locations: dict[File, tuple[PurePath, tuple[str, ...]]] = {}
    folders = defaultdict(set)
    for file in files:
        base = next((folder for folder in (file.folder, *file.folder.parents) if folder in bases), None)
        if file.role or base is None:
            continue
        parts = file.folder.relative_to(base).parts
        if not any(re.fullmatch(MASK_FOLDER, part, re.IGNORECASE) for part in parts):
            locations[file] = base, parts
            folders[base].add(parts[:1])
    result = []
    for file in files:
        if file in locations:
            base, parts = locations[file]
            file = replace(file, role="image")
            if parts and len(folders[base]) == 1:
                file = replace(file, folder=base.joinpath(*parts[1:]), base=base)
        result.append(file)
    return result
