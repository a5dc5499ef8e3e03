"""Which image is in which subset."""

import logging
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

from polyp.data.duplicates import find_links, group_images
from polyp.data.layouts import list_pairs
from polyp.data.pairs import Inspection, Pair, inspect
from polyp.data.splits import SHIPPED, SUBSETS, Splitter, draw_split, read_split, repair_split
from polyp.errors import InputError

STEMS = [f"s{n:03}" for n in range(100)]


def look(thumbnails: np.ndarray) -> Inspection:
    count = len(thumbnails)
    return Inspection(
        np.full((count, 2), 64, np.int32), np.full(count, 0.1, np.float32), thumbnails, "0" * 16, thumbnails
    )


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32), np.uint8)


def twins(count: int, size: int) -> np.ndarray:
    """`count` pictures in runs of `size` that hardly differ."""
    frames = np.repeat(noise(-(-count // size)), size, axis=0)[:count].astype(int)
    return np.clip(frames + np.random.default_rng(1).integers(-3, 4, frames.shape), 0, 255).astype(np.uint8)


def divide(split: str, stems: list[str], inspection: Inspection, **options: Any) -> dict[str, list[str]]:
    pairs = [Pair(stem, Path(f"{stem}.png"), None) for stem in stems]
    return Splitter(split, **options).divide(pairs, inspection)


def whole(subsets: dict[str, list[str]], stems: list[str]) -> None:
    assert list(subsets) == list(SUBSETS)
    assert sorted(stem for subset in subsets.values() for stem in subset) == sorted(stems)


def refused(text: str | bytes, path: Path, *parts: str) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError) as caught:
        read_split(str(path), STEMS)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in (path.name, *parts)), caught.value


# random


@pytest.mark.parametrize("count", [10, 11, 57, 100])
def test_random_is_80_10_10(count: int) -> None:
    subsets = divide("random", STEMS[:count], look(noise(count)))
    whole(subsets, STEMS[:count])
    assert len(subsets["val"]) == len(subsets["test"]) == round(count / 10)


def test_random_follows_the_seed() -> None:
    first, again, other = (divide("random", STEMS, look(noise(100)), seed=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 3, 7])
def test_random_keeps_near_duplicates_together(seed: int, size: int) -> None:
    subsets = divide("random", STEMS, look(twins(100, size)), seed=seed)
    whole(subsets, STEMS)
    subset_of = {stem: name for name, stems in subsets.items() for stem in stems}
    for start in range(0, 100, size):
        assert len({subset_of[stem] for stem in STEMS[start : start + size]}) == 1


def test_random_needs_enough_images() -> None:
    with pytest.raises(InputError, match=r"data.split=random cannot divide 9 images"):
        divide("random", STEMS[:9], look(noise(9)))
    with pytest.raises(
        InputError,
        match=r"2 groups that stay together \(near-duplicates, data.group\).*give data.split=FILE.csv",
    ):
        divide("random", STEMS, look(twins(100, 50)))


@pytest.mark.parametrize("seed", range(3))
def test_drawn_split_keeps_groups_and_balances_sizes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.unique(np.sort(rng.integers(0, 150, 200)), return_inverse=True)[1]
    shares = rng.exponential(0.15, 200)
    stems = [f"s{n:03}" for n in range(200)]
    subsets = draw_split(stems, groups, shares, seed)
    whole(subsets, stems)
    subset_of = {stem: name for name, members in subsets.items() for stem in members}
    assert len(subsets["test"]) == len(subsets["val"]) == 20
    assert all(
        len({subset_of[stems[n]] for n in np.flatnonzero(groups == g)}) == 1 for g in range(groups.max() + 1)
    )
    medians = [np.median([shares[int(s[1:])] for s in members]) for members in subsets.values()]
    assert max(medians) < 1.6 * min(medians)
    assert subsets == draw_split(stems, groups, shares, seed) != draw_split(stems, groups, shares, seed + 1)


def test_repaired_split_keeps_test_and_moves_val() -> None:
    groups = {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2, "f": 3, "g": 0}
    subsets = {"train": ["b", "c"], "val": ["d", "e", "g"], "test": ["a", "f"]}
    assert repair_split(subsets, groups) == {"train": ["c", "d"], "val": ["e"], "test": ["a", "f"]}


# a CSV of the user's


def test_csv(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(
        b'\xef\xbb\xbf# by patient\r\nstem,subset\r\ns001,test\r\n\r\n"s000", val\r\n# more\r\ns003,train\r\n'
    )
    with caplog.at_level(logging.INFO):
        subsets = read_split(str(path), STEMS)
    assert subsets == {"train": ["s003"], "val": ["s000"], "test": ["s001"]}
    assert "uses 3 images and leaves 97 out" in caplog.text


def test_malformed_csv_is_told_by_line(tmp_path: Path) -> None:
    path, head = tmp_path / "mine.csv", "stem,subset\n"
    refused("", path, "line 1", "stem and subset")
    refused("# a\nimage,subset\ns000,train\n", path, "line 2", "stem and subset")
    refused("stem;subset\ns000;train\n", path, "line 1", "stem and subset")
    refused(head + "s000,train\n\ns001,tran\n", path, "line 4", "'tran'", "did you mean train?")
    refused(head + "s000,train,val\n", path, "line 2", "3 columns")
    refused("stem,stem\ns000,train\n", path, "line 1", "stem and subset")
    refused(head + "s000,train\ns001,val\ns000,test\n", path, "line 4", "s000 was given in line 2")
    refused(head + "s000,train\ns001,train\n", path, "no image is given for test")
    refused(b"\xff\xfe\x00", path, "cannot be read")


def test_stems_that_are_not_there_are_counted(tmp_path: Path) -> None:
    absent = "".join(f"x{n},train\n" for n in range(7))
    refused(
        "stem,subset\ns000,train\ns001,val\ns002,test\n" + absent,
        tmp_path / "mine.csv",
        "7 of its 10",
        "x0, x1",
        "x4, ...",
    )


def test_unknown_split() -> None:
    with pytest.raises(
        InputError, match=r"data.split=oficial is neither a file nor known: did you mean official"
    ):
        read_split("oficial", STEMS)
    with pytest.raises(
        InputError, match=r"choose from auto, folders, leave-one-group-out, official, pranet, random"
    ):
        read_split("my/split.csv", STEMS)


# the shipped ones

COUNTS = {"official": (800, 80, 120), "pranet": (810, 90, 100)}


def shipped(name: str) -> dict[str, list[str]]:
    path = Path(read_split.__code__.co_filename).with_name("splits") / f"kvasir-seg_{name}.csv"
    stems = [line.split(",")[0] for line in path.read_text().split()[1:]]
    return read_split(name, stems)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_split_is_whole(name: str) -> None:
    subsets = shipped(name)
    stems = [stem for subset in subsets.values() for stem in subset]
    assert len(stems) == len(set(stems)) == 1000
    assert tuple(map(len, subsets.values())) == COUNTS[name]


def test_shipped_splits_are_of_the_same_images() -> None:
    official, pranet = ({s for subset in shipped(name).values() for s in subset} for name in SHIPPED)
    assert official == pranet


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_split_is_for_kvasir_seg(name: str) -> None:
    with pytest.raises(InputError) as caught:
        read_split(name, STEMS)
    text = str(caught.value)
    assert "\n" not in text and f"data.split={name} is a split of Kvasir-SEG" in text
    assert "data.split=random" in text and "1000 of its 1000 images are not in the data" in text


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "listing"), [("official", "official_val"), ("pranet", "pranet_test100")])
def test_shipped_test_set_is_the_published_one(name: str, listing: str, data_folder: Path) -> None:
    assert sorted(shipped(name)["test"]) == sorted(
        (data_folder / f"splits/kvasir-seg_{listing}.txt").read_text().split()
    )


@pytest.fixture(scope="module")
def kvasir(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> tuple[list[str], Inspection]:
    archive = data_folder / "kvasir-seg.zip"
    folder = tmp_path_factory.mktemp("kvasir")
    with ZipFile(archive) as file:
        file.extractall(folder)
    listing = list_pairs(folder / "Kvasir-SEG")
    return [pair.stem for pair in listing.pairs], inspect(listing.pairs, listing.problems)


@pytest.mark.real_data
@pytest.mark.parametrize("name", [*SHIPPED, "random"])
def test_near_duplicates_of_kvasir_seg_never_straddle(
    name: str, kvasir: tuple[list[str], Inspection]
) -> None:
    stems, inspection = kvasir
    subsets = divide(name, stems, inspection)
    whole(subsets, stems)
    links = find_links(inspection.thumbnails, inspection.fields)
    if name in SHIPPED:  # with the published test sets, whole frames alone can be kept together
        links = [
            link for link in links if link.why.startswith(("frames correlate 0.99", "frames correlate 1"))
        ]
        assert len(links) == 4
    subset_of = {stem: subset for subset, names in subsets.items() for stem in names}
    groups = group_images(len(stems), links)
    for group in np.flatnonzero(np.bincount(groups) > 1):
        assert len({subset_of[stems[n]] for n in np.flatnonzero(groups == group)}) == 1


@pytest.mark.real_data
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_validation_is_like_training(name: str, kvasir: tuple[list[str], Inspection]) -> None:
    stems, inspection = kvasir
    share = dict(zip(stems, inspection.shares, strict=True))
    quartiles = {
        subset: np.quantile([share[s] for s in names], (0.25, 0.5, 0.75))
        for subset, names in shipped(name).items()
    }
    np.testing.assert_allclose(quartiles["val"], quartiles["train"], atol=0.005)
