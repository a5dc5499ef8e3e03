"""`polyp data`: a look at a data set before anything is trained on it, in the terminal and as a page."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from tqdm import tqdm

from polyp.data.duplicates import Link, field_thumbnail, groups_of, links, thumbnail
from polyp.data.folder import Folder, Inspection, Pair, find_pairs, read_pair
from polyp.data.kvasir import KvasirSeg
from polyp.data.splits import SHIPPED, SUBSETS, repaired, split_stems, suggested
from polyp.data.synthetic import Synthetic
from polyp.data.traits import STRATA, strata_of, traits
from polyp.errors import InputError
from polyp.page import Page
from polyp.pictures import TRUTH, contour

BLOCK = 64  # pairs in memory at a time
FEATURE_SIDE = 224  # pixels of the square that an encoder sees
HEIGHT = 288  # pixels of a picture on the page
SHOWN = 24  # pictures of the contact sheet
GROUPS = 40  # groups with pictures; all are in the table
MEMBERS = 8  # pictures of a group
TITLE = "Data: "
SAID = 10  # problems and groups that the terminal names

Encode = Callable[[np.ndarray], np.ndarray]


@dataclass
class Survey:
    """What a look at every pair told; arrays and lists are in the order of `pairs`.

    Attributes:
        name: of the data set.
        pairs: those without a problem.
        problems: everything wrong, a line each.
        sizes: (N, 2) int, height and width in pixels.
        traits: of each image, see `polyp.data.traits.traits`.
        links: pairs of images that show the same.
        groups: (N,) int, the group of each image.
        split: the subsets in use, without images that have a problem; empty where none was named.
        suggestion: the subsets suggested; empty where there are too few images.
    """

    name: str
    pairs: list[Pair]
    problems: list[str]
    sizes: np.ndarray
    traits: list[dict[str, float]]
    links: list[Link]
    groups: np.ndarray
    split: dict[str, list[str]]
    suggestion: dict[str, list[str]]

    @property
    def duplicates(self) -> list[list[int]]:
        """The groups of more than one image, as rows of `pairs`."""
        return [np.flatnonzero(self.groups == g).tolist() for g in np.flatnonzero(np.bincount(self.groups) > 1)]

    @property
    def straddling(self) -> list[list[int]]:
        """The groups that are in more than one subset of the split in use."""
        subset = self.subset_of()
        return [
            rows for rows in self.duplicates if len({subset.get(self.pairs[row].stem, "") for row in rows} - {""}) > 1
        ]

    def subset_of(self) -> dict[str, str]:
        """The subset of each stem in the split in use."""
        return {stem: name for name, stems in self.split.items() for stem in stems}


def survey(
    data: str = "kvasir_seg",
    root: str | None = None,
    archive: str | None = None,
    images: str = "images",
    masks: str = "masks",
    split: str | None = None,
    allow_empty: bool = False,
    encoder: str | None = None,
    weights: str | None = None,
    seed: int = 0,
    out: str | None = None,
) -> Path:
    """Look at a data set; print a summary, write a page and the suggested split beside it.

    Args:
        data: kvasir_seg, synthetic, or a folder.
        root, archive: of kvasir_seg and synthetic, as data.root and data.archive.
        images, masks: names of the subfolders of a folder.
        split: as data.split; by default official for kvasir_seg and none for others.
        allow_empty: whether a mask without a polyp is no problem.
        encoder, weights: of smp, with a file of weights: near-duplicates are searched among its features as well.
        seed: of the suggested split, and of split random.
        out: the page; by default outputs/data/NAME.html. An older page there is replaced, a split never.

    Returns:
        The page.

    Raises:
        InputError: the data set is not there or has no pair that can be used, the split or the weights do not fit, or
            the page cannot be written.
    """
    try:
        source: KvasirSeg | Synthetic | Folder
        shipped = data in ("kvasir_seg", "synthetic")
        if not shipped and (root or archive):
            raise InputError(f"--root and --archive are for kvasir_seg and synthetic, and {data} is a folder")
        if data == "kvasir_seg":
            source, split = KvasirSeg(root, archive), split or "official"
        elif data == "synthetic":
            if archive:
                raise InputError("--archive is for kvasir_seg: synthetic is drawn")
            source = Synthetic(root)
        else:
            source = Folder(data, images, masks)
        encode = _encoder(encoder, weights)
        folder = source.prepare()
        name = data if shipped else folder.name
        page = Path(out).expanduser() if out else Path("outputs", "data", f"{name}.html")
        _check_writable(page)
        result = look(name, *find_pairs(folder, source.images, source.masks), split, allow_empty, encode, seed)
        suggestion = _write_split(result, page) if result.suggestion else None
        describe(result, suggestion, split).write(page)
    except InputError as error:
        raise InputError(_as_options(str(error))) from error
    _print(result, page, suggestion, split)
    return page


def look(
    name: str,
    pairs: Sequence[Pair],
    problems: Sequence[str],
    split: str | None = None,
    allow_empty: bool = False,
    encode: Encode | None = None,
    seed: int = 0,
) -> Survey:
    """Look at every pair once; a few are in memory at a time.

    Raises:
        InputError: no pair can be used, or the split does not fit.
    """
    subsets: dict[str, list[str]] = {}
    if split not in (None, "random"):  # wrong input is said before long work starts
        nothing = Inspection(np.empty((0, 2), np.int32), np.empty(0, np.float32), np.empty((0, 32, 32), np.uint8), "")
        subsets = split_stems(split, [pair.stem for pair in pairs], nothing, seed)
    good: list[Pair] = []
    looks: list[Seen] = []
    found = list(problems)
    root = os.path.commonpath([pairs[0].image, pairs[0].mask]) + os.sep
    for pair, seen in _seen(pairs, allow_empty, encode):
        if isinstance(seen, list):
            found += [_as_options(text.removeprefix(root)) for text in seen]
            continue
        good.append(pair)
        looks.append(seen)
    if not good:
        raise InputError(f"{root}: none of its {len(pairs)} pairs can be used; the first problem: {found[0]}")
    stems = [pair.stem for pair in good]
    sizes, rows, frames, fields, features = zip(*looks, strict=True)
    linked = links(np.stack(frames), np.stack(fields), np.stack(features) if encode else None)
    groups = groups_of(len(good), ((link.first, link.second) for link in linked))
    shares = np.array([row["polyp_share"] for row in rows])
    if split == "random":
        seen_sizes = np.array(sizes, np.int32)
        subsets = split_stems(
            split, stems, Inspection(seen_sizes, shares.astype(np.float32), np.stack(frames), ""), seed
        )
    usable = set(stems)
    subsets = {key: [stem for stem in members if stem in usable] for key, members in subsets.items()}
    if split not in (None, "random"):
        suggestion = repaired(subsets, dict(zip(stems, groups.tolist(), strict=True)))
        suggestion = suggestion if all(suggestion.values()) else {}
    else:
        suggestion = suggested(stems, groups, shares, seed)
    return Survey(name, good, sorted(found), np.array(sizes), list(rows), linked, groups, subsets, suggestion)


Seen = tuple[tuple[int, int], dict[str, float], np.ndarray, np.ndarray, np.ndarray | None]


def _seen(pairs: Sequence[Pair], allow_empty: bool, encode: Encode | None) -> Iterator[tuple[Pair, Seen | list[str]]]:
    def see(pair: Pair) -> tuple[Seen, np.ndarray | None] | list[str]:
        arrays = read_pair(pair, allow_empty)
        if isinstance(arrays, list):
            return arrays
        image, mask = arrays
        side = (FEATURE_SIDE, FEATURE_SIDE)
        small = cv2.resize(image, side, interpolation=cv2.INTER_AREA) if encode else None
        seen = (mask.shape[0], mask.shape[1]), traits(image, mask), thumbnail(image), field_thumbnail(image), None
        return seen, small

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,  # OpenCV lets go of the interpreter
        tqdm(total=len(pairs), desc="looking", leave=False, disable=None, delay=1) as bar,
    ):
        for start in range(0, len(pairs), BLOCK):
            block = pairs[start : start + BLOCK]
            views = list(pool.map(see, block))
            smalls = [view[1] for view in views if not isinstance(view, list) and view[1] is not None]
            encoded = iter(encode(np.stack(smalls)) if encode and smalls else ())
            for pair, view in zip(block, views, strict=True):
                yield pair, view if isinstance(view, list) else (*view[0][:4], next(encoded) if encode else None)
            bar.update(len(block))


def _encoder(encoder: str | None, weights: str | None) -> Encode | None:
    """Images (B, H, W, 3) uint8 to features (B, K): the mean over all places of an encoder's deepest layer."""
    if bool(encoder) != bool(weights):
        raise InputError("--encoder NAME and --weights FILE go together: features of untrained weights tell nothing")
    if not encoder or not weights:
        return None
    import segmentation_models_pytorch as smp
    import torch

    from polyp.model.network import check_encoder_name
    from polyp.model.weights import load_encoder_weights, normalisation

    check_encoder_name(encoder)
    network = smp.encoders.get_encoder(encoder, weights=None).eval()
    load_encoder_weights(network, encoder, weights)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation(encoder, weights))

    def encode(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
            return network(pixels.contiguous(memory_format=torch.channels_last))[-1].mean(dim=(2, 3)).numpy()

    return encode


OPTIONS = {
    "data.allow_empty=true": "--allow-empty",
    "model.encoder_weights=": "--weights ",
    "model.encoder=": "--encoder ",
}


def _as_options(text: str) -> str:
    """A message of the data's or the network's, which name keys, for somebody who gave options."""
    for key, option in OPTIONS.items():
        text = text.replace(key, option)
    if text.startswith("data.root=") and " is not a folder" in text:
        return text.removeprefix("data.root=") + "; give a folder, kvasir_seg or synthetic"
    if " has no folder '" in text:
        text = text.removeprefix("data.root=")
    text = re.sub(r"\bdata\.(root|archive|images|masks|split)=(?=[^\s])", r"--\1 ", text)
    return re.sub(r"\bdata\.(root|archive|images|masks|split)\b=?", r"--\1", text)


# ---- files


def _check_writable(page: Path) -> None:
    try:
        if page.exists() and f"<title>{TITLE}" not in page.read_text("utf-8", errors="replace")[:300]:
            raise InputError(f"{page} is there and is not a page of `polyp data`: give another --out")
        page.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(page.parent, os.W_OK):
            raise InputError(f"cannot write {page}: its folder is read-only")
    except OSError as error:
        raise InputError(f"cannot write {page}: {error.strerror}") from error


def _write_split(result: Survey, page: Path) -> Path:
    """The suggestion as NAME_split.csv, or with a number where another split has that name: it may be in use."""
    subset_of = sorted((stem, name) for name in SUBSETS for stem in result.suggestion[name])
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([("stem", "subset"), *subset_of])
    number = 1
    while True:
        file = page.with_name(f"{page.stem}_split{f'_{number}' if number > 1 else ''}.csv")
        try:
            if file.exists() and file.read_text("utf-8") == stream.getvalue():
                return file
            with file.open("x", encoding="utf-8") as opened:
                opened.write(stream.getvalue())
            return file
        except (FileExistsError, UnicodeDecodeError):
            number += 1
        except OSError as error:
            raise InputError(f"cannot write {file}: {error.strerror}") from error


# ---- words


def _counted(subsets: dict[str, list[str]]) -> str:
    return ", ".join(f"{len(stems)} {name}" for name, stems in subsets.items())


def _named(result: Survey, rows: Sequence[int]) -> str:
    """The members of a group with their subsets."""
    subset = result.subset_of()
    return ", ".join(
        f"{(stem := result.pairs[row].stem)}" + (f" ({subset.get(stem, 'unused')})" if subset else "") for row in rows
    )


def _why(result: Survey, rows: Sequence[int]) -> str:
    reasons = [link.why for link in result.links if link.first in rows]
    return reasons[0] + (f"; and {len(reasons) - 1} more links" if len(reasons) > 1 else "")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def _findings(result: Survey, split: str | None) -> str:
    groups = result.duplicates
    if not groups:
        return "No near-duplicates were found."
    text = f"{_plural(len(groups), 'group')} of near-duplicates with {sum(map(len, groups))} images"
    if result.split:
        count = len(result.straddling)
        text += f"; {count or 'none'} of them straddle{'s' * (count == 1)} the subsets of split {split}"
    return text + "."


def _advice(result: Survey, split: str | None) -> str:
    if not result.suggestion:
        return "No split is suggested: there are too few images, or too few that differ."
    counts = _counted(result.suggestion)
    if split in (None, "random"):
        return f"Suggested: {counts}. Near-duplicates stay together, and each subset has small and large polyps alike."
    left = sum(map(len, result.split.values())) - sum(map(len, result.suggestion.values()))
    moved = len(set(result.suggestion["train"]) - set(result.split["train"]))
    same = ", so that numbers stay comparable" if split in SHIPPED else ""
    return (
        f"Suggested: {counts}. The test set is kept as it is{same}; {_plural(left, 'image')} of train and val that "
        f"show{'s' * (left == 1)} the same as one of test {'is' if left == 1 else 'are'} left out"
        f"{f', {moved} moved from val to train' if moved else ''}."
    )


def _print(result: Survey, page: Path, suggestion: Path | None, split: str | None) -> None:
    console = Console(highlight=False, soft_wrap=True)
    shares = np.array([row["polyp_share"] for row in result.traits])
    low, high = result.sizes.min(axis=0), result.sizes.max(axis=0)
    sizes = f"{low[1]}x{low[0]} to {high[1]}x{high[0]}"
    console.print(f"[bold]{escape(result.name)}[/]  {_plural(len(result.pairs), 'image')}, {sizes}")
    if result.split:
        console.print(f"  split      {escape(str(split))}: {_counted(result.split)}")
    console.print(
        f"  polyps     median {np.median(shares):.1%} of the pixels, {shares.min():.1%} to {shares.max():.1%}"
    )
    for name, counts in _strata(result).items():
        console.print(f"  {name:<10} " + ", ".join(f"{count} {bin}" for bin, count in counts.items()))
    colour = "yellow" if result.problems else "green"
    console.print(f"[{colour}]{_plural(len(result.problems), 'problem')}[/]")
    _print_some(console, result.problems)
    console.print(f"[{'yellow' if result.straddling else 'green'}]{_findings(result, split)}[/]")
    _print_some(console, [_named(result, rows) for rows in result.straddling])
    console.print(_advice(result, split))
    console.print(f"\n  the page   {os.path.relpath(page)}")
    if suggestion:
        console.print(f"  the split  data.split={os.path.relpath(suggestion)}")


def _print_some(console: Console, lines: Sequence[str]) -> None:
    for line in lines[:SAID]:
        console.print(f"  {escape(line)}")
    if len(lines) > SAID:
        console.print(f"  ... and {len(lines) - SAID} more: see the page")


def _strata(result: Survey) -> dict[str, dict[str, int]]:
    """The count of each bin that occurs, by stratum."""
    bins = [strata_of(row) for row in result.traits]
    counted = {name: Counter(bin[name] for bin in bins if name in bin) for name in STRATA}
    return {name: {bin: counted[name][bin] for bin in STRATA[name].bins if counted[name][bin]} for name in STRATA}


# ---- the page


def describe(result: Survey, suggestion: Path | None, split: str | None) -> Page:
    """The page of a survey."""
    shares = np.array([row["polyp_share"] for row in result.traits])
    lead = f"{_plural(len(result.pairs), 'image')} and as many masks; {_plural(len(result.problems), 'problem')}. "
    page = Page(f"{TITLE}{result.name}", lead + _findings(result, split))

    page.section("Problems", "" if result.problems else "None: every image has a readable mask of its size.")
    if result.problems:
        page.text(
            "These files are in nothing that follows, and training refuses to start before they are mended.", "warning"
        )
        page.table([{"problem": text} for text in result.problems])

    page.section("Sizes and polyps")
    sizes = Counter(map(tuple, result.sizes.tolist()))
    common = ", ".join(f"{w}x{h} ({n})" for (h, w), n in sizes.most_common(5))
    page.text(f"{_plural(len(sizes), 'size')} in pixels; the most frequent: {common}.")
    _add_charts(page, result.sizes, shares)
    page.table(
        [
            {
                "stratum": name,
                "bin": bin,
                "values": _limits(name, bin),
                "images": f"{count} ({count / len(shares):.0%})",
            }
            for name, counts in _strata(result).items()
            for bin, count in counts.items()
        ]
    )
    page.text(
        "size: share of polyp pixels. number: connected components, specks of JPEG masks aside. shape: 0 is a disc. "
        "blur: log10 of the Laplacian's variance. highlights: overexposed share of the field of view. overlay: a box "
        "over a part of the picture. The limits are the same for every data set.",
        "faint",
    )

    page.section("Contact sheet", "From the smallest polyp to the largest, outlined in green.")
    order = np.argsort(shares, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int))
    page.gallery([(_outlined(result, row), f"{result.pairs[row].stem}: {shares[row]:.1%}") for row in order[places]])
    page.section("Strata", "Three images of each bin: the least, the middle and the most.")
    _add_strata(page, result)

    page.section("Near-duplicates", _findings(result, split))
    page.text(
        "Linked where whole frames or fields of view correlate, or an encoder's features agree; links of links count "
        "too. None of these knows one polyp from two sides: keep patients together where you know them.",
        "faint",
    )
    _add_groups(page, result)

    page.section("Split")
    if result.split:
        page.text(f"In use: {split}, {_counted(result.split)}.")
    page.text(_advice(result, split))
    if suggestion:
        page.text(f"It is in {suggestion.name}, beside this page: python train.py ... data.split={suggestion}")
        page.table(_split_rows(result))
    return page


def _limits(name: str, bin: str) -> str:
    stratum = STRATA[name]
    place = stratum.bins.index(bin)
    low, high = ([0.0, *stratum.limits, np.inf])[place : place + 2]
    if stratum.trait in ("polyps", "overlay"):  # whole numbers
        return "2 and more" if bin == "several" else f"{int(low > 0)}"
    unit = 100 if stratum.trait in ("polyp_share", "highlights") else 1
    sign = " %" if unit == 100 else ""
    if place == 0 or low < 1e-6:
        return f"below {high * unit:g}{sign}" if high > 1e-6 else "0"
    return f"{low * unit:g} to {high * unit:g}{sign}" if np.isfinite(high) else f"from {low * unit:g}{sign}"


def _add_charts(page: Page, sizes: np.ndarray, shares: np.ndarray) -> None:
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.scatter(sizes[:, 1], sizes[:, 0], s=10, alpha=0.4, color="#0b6bcb", linewidths=0)
    axes.set(xlabel="width, pixels", ylabel="height, pixels", xlim=(0, None), ylim=(0, None))
    page.chart(figure, "Width and height of each image.")
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(shares * 100, bins=np.linspace(0, max(1.0, float(shares.max()) * 100), 31).tolist(), color="#2f9e57")
    for limit in STRATA["size"].limits[1:]:
        axes.axvline(limit * 100, color="#59636e", linewidth=1, linestyle=":")
    axes.set(xlabel="polyp, % of the image's pixels", ylabel="images", xlim=(0, None))
    page.chart(
        figure,
        f"The polyps' share of each image: median {np.median(shares):.1%}, mean {shares.mean():.1%}; dotted lines part "
        "small, medium and large.",
    )


def _outlined(result: Survey, row: int) -> np.ndarray:
    arrays = read_pair(result.pairs[row], allow_empty=True)
    if isinstance(arrays, list):  # it was readable a moment ago
        raise InputError(arrays[0])
    image, mask = arrays
    size = max(1, round(image.shape[1] * HEIGHT / image.shape[0])), HEIGHT
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return contour(small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), TRUTH)


def _add_strata(page: Page, result: Survey) -> None:
    bins = [strata_of(row) for row in result.traits]
    for name, stratum in STRATA.items():
        shown = []
        for bin in stratum.bins:
            rows = [row for row, found in enumerate(bins) if found.get(name) == bin]
            rows.sort(key=lambda row: result.traits[row][stratum.trait])
            for row in dict.fromkeys(rows[place] for place in (0, len(rows) // 2, -1) if rows):
                text = f"{bin}: {result.pairs[row].stem}, {stratum.trait} {result.traits[row][stratum.trait]:.3g}"
                shown.append((_outlined(result, row), text))
        page.heading(name)
        page.gallery(shown)


def _add_groups(page: Page, result: Survey) -> None:
    straddling = result.straddling
    groups = [*straddling, *(rows for rows in result.duplicates if rows not in straddling)]
    if straddling:
        page.text("The groups that straddle the split show in one subset what is in another:", "warning")
        page.table([{"group": f"{n}", "images": _named(result, rows)} for n, rows in enumerate(straddling, 1)])
    subset = result.subset_of()
    for number, rows in enumerate(groups[:GROUPS], 1):
        page.heading(f"Group {number}" + (": straddles the split" if rows in straddling else ""))
        page.text(_why(result, rows), "faint")
        stems = [(row, result.pairs[row].stem) for row in rows[:MEMBERS]]
        page.gallery(
            [
                (_outlined(result, row), stem + (f" ({subset.get(stem, 'unused')})" if subset else ""))
                for row, stem in stems
            ]
        )
    if len(groups) > GROUPS or any(len(rows) > MEMBERS for rows in groups):
        page.heading("All groups")
        page.table([{"group": f"{n}", "images": _named(result, rows)} for n, rows in enumerate(groups, 1)])


def _split_rows(result: Survey) -> list[dict[str, object]]:
    row_of = {pair.stem: row for row, pair in enumerate(result.pairs)}
    table = []
    for name, stems in result.suggestion.items():
        traits_of = [result.traits[row_of[stem]] for stem in stems]
        bins = Counter(strata_of(row)["size"] for row in traits_of)
        median = np.median([row["polyp_share"] for row in traits_of])
        sizes = {bin: bins[bin] for bin in STRATA["size"].bins if bins[bin]}
        table.append({"subset": name, "images": len(stems), "median polyp": f"{median:.1%}", **sizes})
    return table
