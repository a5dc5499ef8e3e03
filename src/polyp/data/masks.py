"""Masks: reads their files, and decides which values or colours are polyp.

A mask is two-valued, or data.polyp_values says which of its values or colours are polyp. Each file's values
are counted in its `Levels`, and `describe_coding` accepts or refuses those of a data set together.
"""

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.ImageColor import getrgb

from polyp.errors import InputError, override_word, printable
from polyp.images import IGNORED, fill_transparent, open_image

Value = int | str
"""A grey value or palette index, or a colour as #rrggbb."""

LOSSY = ("JPEG", "MPO", "WEBP")
MANY = 32  # a file with more different values was compressed or resized before, whatever its format is
STEP = 32  # values of such files are counted in bins of so many
COLOURFUL = 48  # difference between the channels of a pixel from which it is a colour, not a grey
MAX_DISTANCE = 128  # distance to a colour of data.polyp_values within which a pixel has that colour
NAMED = 3  # masks that a message names
MIN_PIXELS = 20  # that make a value one of the mask's levels
MIN_SHARE = 0.01  # of what is not background, likewise

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "!=": operator.ne, "==": operator.eq, ">": operator.gt, ">=": operator.ge, "<": operator.lt,
    "<=": operator.le,
}  # fmt: skip


@dataclass(frozen=True)
class MaskCoding:
    """Which values or colours of mask files are polyp, and which pixels count in no loss and no score.

    Attributes:
        polyp_values: grey values or palette indices such as (1, 2), colours such as ("#ff0000", "#00ff00"),
            or a comparison such as "!= 0"; None: masks must be two-valued.
        ignore_value: a value or a colour, or None; colours are kept in lower case.

    Raises:
        InputError: on construction, for another kind of value.
    """

    polyp_values: tuple[Value, ...] | str | None = None
    ignore_value: Value | None = None

    def __post_init__(self) -> None:
        """Check both and turn lists into tuples."""
        values = self.polyp_values
        if isinstance(values, int) or (isinstance(values, str) and values.startswith("#")):
            values = (values,)
        if isinstance(values, str):
            if not _parse_comparison(values):
                raise InputError(
                    f"data.polyp_values={values} is neither a list nor a comparison: give values such as [1] "
                    "or ['#ff0000'], or a comparison such as '!= 0' or '> 127'"
                )
        elif isinstance(values, Sequence):
            values = tuple(_check_value("data.polyp_values", value) for value in values)
        elif values is not None:
            raise InputError(f"data.polyp_values={values} must be a list such as [1] or ['#ff0000']")
        if values == ():
            raise InputError("data.polyp_values=[] names nothing: give values such as [1], or null")
        object.__setattr__(self, "polyp_values", values)
        if self.ignore_value is not None:
            object.__setattr__(self, "ignore_value", _check_value("data.ignore_value", self.ignore_value))
            if self.ignore_value in self.values:
                raise InputError(f"data.ignore_value={self.ignore_value} is one of data.polyp_values as well")

    @property
    def values(self) -> tuple[Value, ...]:
        """The polyp's values that are listed; empty for a comparison or None."""
        return self.polyp_values if isinstance(self.polyp_values, tuple) else ()


AUTO = MaskCoding()


@dataclass(frozen=True)
class Levels:
    """The values or colours that fill areas of one mask, the background's 0 or #000000 among them."""

    counts: dict[Value, int]  # the pixels of each
    pixels: int  # of the mask
    label: str  # value, index or colour


@dataclass(frozen=True)
class _Pixels:
    """A decoded mask file."""

    values: np.ndarray  # (H, W)
    colours: np.ndarray | None  # (H, W, 3) uint8 RGB, if it has any
    is_lossy: bool  # compression or resizing has changed values
    has_palette: bool = False  # whose indices the values are


def read_mask(path: Path, coding: MaskCoding = AUTO) -> np.ndarray:
    """Read a mask as (H, W) uint8: 1 polyp, 0 background, 255 (`polyp.images.IGNORED`) neither.

    Raises:
        InputError: the file cannot be read, or `coding` is of another kind.
    """
    return read_levels(path, coding)[0]


def read_levels(path: Path, coding: MaskCoding = AUTO) -> tuple[np.ndarray, Levels]:
    """Read a mask as `read_mask` does, and what it holds."""
    pixels = _read_pixels(path)
    if pixels.colours is not None and not pixels.has_palette:
        for key, values in (("polyp_values", coding.values), ("ignore_value", (coding.ignore_value,))):
            if any(isinstance(value, int) for value in values):
                raise InputError(f"{path}: has colours: give data.{key} as colours, such as '#ff0000'")
    levels = _find_levels(pixels)
    if isinstance(coding.polyp_values, str):
        compare, number = _parse_comparison(coding.polyp_values) or (operator.ne, 0)
        if compare in (operator.eq, operator.ne):
            polyp = _match_value(pixels, levels, number) == (compare is operator.eq)
        else:
            polyp = compare(pixels.values.astype(np.int64), number)
    elif coding.values:
        polyp = np.any([_match_value(pixels, levels, value) for value in coding.values], axis=0)
    else:
        polyp = pixels.values > _find_threshold(pixels, levels, coding)
    mask = polyp.astype(np.uint8)
    if coding.ignore_value is not None:
        mask[_match_value(pixels, levels, coding.ignore_value)] = IGNORED
    return mask, levels


def describe_coding(levels: Sequence[Levels], coding: MaskCoding, name: str, files: Sequence[Path]) -> str:
    """What the masks of a data set hold, in a sentence, if it is clear what is polyp.

    Args:
        levels: of all its masks.
        coding: how they were read.
        name: of the data set, for the message.
        files: the masks' files, in the order of `levels`.

    Returns:
        An empty text for the usual masks of 0 and 255.

    Raises:
        InputError: the masks are not two-valued, and the coding does not say what is polyp; or it names
            colours, and no mask has any.
    """
    background = {0, "#000000"}
    counts = Counter[Value]()  # the highest of any mask
    for mask in levels:
        counts |= Counter(mask.counts)
    foreground = counts.keys() - background - {coding.ignore_value}
    # A few pixels between black and white are a small polyp that was resized, and no other class.
    foreground = {value for value in foreground if counts[value] >= MIN_PIXELS} or foreground
    shares = _list_shares(levels, files)
    if coding.polyp_values is not None:
        has_colours = any(mask.label != "value" for mask in levels)
        if foreground and not has_colours and any(isinstance(value, str) for value in coding.values):
            reason = f"the masks have no colours ({shares})"
            raise InputError(f"{name}: {reason}: give data.polyp_values as numbers, such as [255]")
        polyp = " or ".join(map(str, coding.values)) or coding.polyp_values
        ignored = f", ignored where {coding.ignore_value}" if coding.ignore_value is not None else ""
        return f"polyp is where a mask has {polyp}{ignored}; the masks hold {shares}"
    if foreground <= {255} or foreground <= {"#ffffff"}:
        return ""
    if len(foreground) == 1:
        return f"the masks hold {shares}: polyp is where they have {foreground.pop()}"
    if not counts.keys() & background:  # the value that fills most is the background then
        totals = sum_levels(levels)
        foreground.discard(max(totals, key=lambda value: totals[value]))
    plural = {"colour": "colours", "index": "palette colours", "value": "values"}
    kinds = " and ".join(sorted({plural[mask.label] for mask in levels if len(mask.counts) > 1}))
    raise InputError(
        f"{name}: the masks hold several {kinds}, so that it is not clear what is polyp: "
        f"{shares}. Add {_suggest(foreground)}"
    )


def _suggest(foreground: set[Value]) -> str:
    """The keys that a user adds to explain values."""
    numbers = sorted(value for value in foreground if isinstance(value, int))
    colours = sorted(value for value in foreground if isinstance(value, str))
    setting = override_word("data.polyp_values", [*numbers, *colours])
    if numbers and numbers[-1] == 255 and len(foreground) > 1:
        without_255 = override_word("data.polyp_values", [*numbers[:-1], *colours])
        setting += (
            f" if all are polyps, or {without_255} data.ignore_value=255 if 255 marks pixels to leave out,"
        )
    return f"{setting} or name only those that are polyps"


def _list_shares(levels: Sequence[Levels], files: Sequence[Path]) -> str:
    """The 12 most frequent values with their shares of the pixels, and the files of one that few have."""
    ranked = sorted(sum_levels(levels).items(), key=lambda item: -item[1])[:12]
    ranked.sort(key=lambda item: (isinstance(item[0], str), item[0]))
    texts = []
    for value, share in ranked:
        names = [
            printable(file.name) for mask, file in zip(levels, files, strict=True) if value in mask.counts
        ]
        text = f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
        if len(names) <= NAMED and 4 * len(names) <= len(levels):
            text += f", only in {', '.join(names)}"
        texts.append(f"{value} ({text})")
    return ", ".join(texts)


def _check_value(key: str, value: Any) -> Value:
    if type(value) is int and 0 <= value <= 65535:
        return value
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        return value.lower()
    raise InputError(
        f"{key}: {value} is neither a whole number from 0 to 65535 nor a colour such as '#ff0000'"
    )


def _parse_comparison(text: str) -> tuple[Callable[[Any, Any], Any], int] | None:
    match = re.fullmatch(r"\s*(!=|==|>=|<=|>|<)\s*(\d+)\s*", text)
    return (COMPARISONS[match[1]], int(match[2])) if match else None


def _read_pixels(path: Path) -> _Pixels:
    with open_image(path) as image:
        is_compressed = image.format in LOSSY
        image = fill_transparent(image)
        values, colours = np.asarray(image), None
        if image.mode == "P":
            colours = np.asarray(image.convert("RGB"))
            if (colours != colours[..., :1]).any():
                return _Pixels(values, colours, is_lossy=False, has_palette=True)
            # Black, white and greys: a grey image that was saved smaller.
            values, colours = np.ascontiguousarray(colours[..., 0]), None
        elif image.mode == "1":
            values = np.asarray(image.convert("L"))
        elif image.mode.startswith("I"):
            if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
                raise InputError(f"{path}: has pixels of 32 bits: save it with 8 or 16 bits")
            if values.max(initial=0) > 255 and len(_count(values)) > MANY:  # resized or compressed
                values = (values // 257).astype(np.uint8)
        elif image.mode != "L":
            colours = np.asarray(image.convert("RGB"))
            values = colours.max(axis=2)
            colourful = np.count_nonzero(values - colours.min(axis=2) > COLOURFUL)
            if colourful < max(MIN_PIXELS, MIN_SHARE * np.count_nonzero(values > 16)):
                values, colours = np.asarray(Image.fromarray(colours).convert("L")), None
    return _Pixels(values, colours, is_compressed or len(_count(values)) > MANY)


def _find_threshold(pixels: _Pixels, levels: Levels, coding: MaskCoding) -> float:
    """Half of a two-valued mask's higher value; without one, what compression adds to black is below it."""
    foreground = [value for value in levels.counts if value not in (0, "#000000", coding.ignore_value)]
    if not foreground:
        return 127 if pixels.is_lossy else 0
    return max(max(getrgb(value)) if isinstance(value, str) else value for value in foreground) / 2


def _match_value(pixels: _Pixels, levels: Levels, value: Value) -> np.ndarray:
    """Where a mask has a value or a colour; after compression, where its level is near the value."""
    if isinstance(value, str):
        colours = pixels.colours if pixels.colours is not None else np.repeat(pixels.values[..., None], 3, 2)
        colours = colours.astype(np.int32)
        distance = np.square(colours - np.array(getrgb(value))).sum(axis=2)
        from_black = np.square(colours).sum(axis=2)
        return (distance < MAX_DISTANCE**2) & ((distance < from_black) | (value == "#000000"))
    if pixels.is_lossy and levels.label == "colour":
        return np.abs(pixels.values.astype(np.int32) - value) < 2 * STEP  # as black was counted
    if pixels.is_lossy:
        numbers = np.array([level for level in levels.counts if isinstance(level, int)])
        nearest = numbers[np.abs(np.arange(256)[:, None] - numbers).argmin(axis=1)]
        return ((np.abs(nearest - value) <= STEP) & ((nearest == 0) == (value == 0)))[pixels.values]
    return pixels.values == value


def _count(values: np.ndarray) -> dict[int, int]:
    """How often each value of an array of integers from 0 on occurs, in ascending order."""
    if values.max(initial=0) > 65535:  # packed colours
        return dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True))
    counts = np.bincount(values.ravel())
    return {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}


def _find_levels(pixels: _Pixels) -> Levels:
    """The values that fill areas: a pixel counts where its four neighbours have the same value.

    That leaves out the edges that compression or interpolation has softened.
    """
    packed = pixels.values.astype(np.int64)
    if pixels.colours is not None and not pixels.has_palette:
        colours = pixels.colours.astype(np.int64)
        if pixels.is_lossy:  # to 0, 64, 128, 192 or 255
            colours = np.minimum((colours + 32) // 64 * 64, 255)
        packed = colours @ np.array([1 << 16, 1 << 8, 1])
    elif pixels.is_lossy:
        packed = packed // STEP * STEP + STEP // 2
        packed[pixels.values < 64] = 0
        packed[pixels.values >= 192] = 255
    elif packed.max(initial=0) <= 255:
        packed[packed >= 240] = 255
    flat = np.zeros(packed.shape, bool)
    inner = packed[1:-1, 1:-1]
    flat[1:-1, 1:-1] = (
        (inner == packed[:-2, 1:-1]) & (inner == packed[2:, 1:-1])
        & (inner == packed[1:-1, :-2]) & (inner == packed[1:-1, 2:])
    )  # fmt: skip
    counts, areas = _count(packed), _count(packed[flat])
    minimum = max(MIN_PIXELS, MIN_SHARE * np.count_nonzero(packed))
    levels = [value for value in counts if value == 0 or areas.get(value, 0) >= minimum]
    highest = max(counts)  # a level even where it fills no area: of a thin border, or of a small polyp
    if highest not in levels and (counts[highest] >= minimum or not any(levels)):
        levels.append(highest)
    if pixels.is_lossy and sum(counts[value] for value in levels) < packed.size * 2 / 3:
        # A photograph, or nothing that has areas.
        levels = sorted(counts, key=lambda value: -counts[value])[:6]
    if pixels.colours is not None and not pixels.has_palette:
        return Levels({f"#{value:06x}": counts[value] for value in levels}, packed.size, "colour")
    label = "index" if pixels.has_palette else "value"
    return Levels({value: counts[value] for value in levels}, packed.size, label)


def sum_levels(levels: Iterable[Levels]) -> dict[Value, float]:
    """The share of each value in the pixels of all masks."""
    total, counts = 0, Counter[Value]()
    for mask in levels:
        total += mask.pixels
        counts.update(mask.counts)
    return {value: count / total for value, count in counts.items()}
