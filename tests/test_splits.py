"""Which image is in which subset."""

import hashlib
import logging
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

from polyp.data.duplicates import find_links, group_images
from polyp.data.layouts import list_pairs
from polyp.data.pairs import Inspection, Pair, inspect
from polyp.data.split_files import SHIPPED, SUBSETS, read_split
from polyp.data.splits import Splitter, draw_split, repair_split
from polyp.errors import InputError

STEMS = [f"s{n:03}" for n in range(100)]


def make_inspection(thumbnails: np.ndarray) -> Inspection:
    count = len(thumbnails)
    shares = np.full(count, 0.1, np.float32)
    sizes, masks = np.full((count, 2), 64, np.int32), np.arange(count, dtype=np.uint64)
    return Inspection(sizes, shares, thumbnails, thumbnails, shares, masks, "0" * 16)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32), np.uint8)


def twins(count: int, size: int) -> np.ndarray:
    """`count` pictures in runs of `size` that hardly differ."""
    frames = np.repeat(noise(-(-count // size)), size, axis=0)[:count].astype(int)
    return np.clip(frames + np.random.default_rng(1).integers(-3, 4, frames.shape), 0, 255).astype(np.uint8)


def divide(split: str, stems: list[str], inspection: Inspection, **options: Any) -> dict[str, list[str]]:
    pairs = [Pair(stem, Path(f"{stem}.png"), None) for stem in stems]
    return Splitter(split, **options).divide(pairs, inspection)


def check_complete(subsets: dict[str, list[str]], stems: list[str]) -> None:
    assert list(subsets) == list(SUBSETS)
    assert sorted(stem for subset in subsets.values() for stem in subset) == sorted(stems)


def check_refusal(text: str | bytes, path: Path, *parts: str) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError) as caught:
        read_split(str(path), STEMS)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in (path.name, *parts)), caught.value


# random


@pytest.mark.parametrize("count", [10, 11, 57, 100])
def test_random_is_80_10_10(count: int) -> None:
    subsets = divide("random", STEMS[:count], make_inspection(noise(count)))
    check_complete(subsets, STEMS[:count])
    assert len(subsets["val"]) == len(subsets["test"]) == round(count / 10)


def test_random_follows_the_seed() -> None:
    first, repeated, different = (
        divide("random", STEMS, make_inspection(noise(100)), seed=seed) for seed in (1, 1, 2)
    )
    assert first == repeated != different


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 3, 7])
def test_random_keeps_near_duplicates_together(seed: int, size: int) -> None:
    subsets = divide("random", STEMS, make_inspection(twins(100, size)), seed=seed)
    check_complete(subsets, STEMS)
    subset_of = {stem: name for name, stems in subsets.items() for stem in stems}
    for start in range(0, 100, size):
        assert len({subset_of[stem] for stem in STEMS[start : start + size]}) == 1


def test_random_needs_enough_images() -> None:
    with pytest.raises(InputError, match=r"data.split=random cannot divide 9 images"):
        divide("random", STEMS[:9], make_inspection(noise(9)))
    with pytest.raises(
        InputError,
        match=r"2 groups that stay together \(near-duplicates, data.group\).*give data.split=FILE.csv",
    ):
        divide("random", STEMS, make_inspection(twins(100, 50)))


@pytest.mark.parametrize("seed", range(3))
def test_drawn_split_keeps_groups_and_balances_sizes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.unique(np.sort(rng.integers(0, 150, 200)), return_inverse=True)[1]
    shares = rng.exponential(0.15, 200)
    stems = [f"s{n:03}" for n in range(200)]
    subsets = draw_split(stems, groups, shares, seed)
    check_complete(subsets, stems)
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
        subsets, _ = read_split(str(path), STEMS)
    assert subsets == {"train": ["s003"], "val": ["s000"], "test": ["s001"]}
    assert "uses 3 images and leaves 97 out" in caplog.text


def test_malformed_csv_is_told_by_line(tmp_path: Path) -> None:
    path, head = tmp_path / "mine.csv", "stem,subset\n"
    check_refusal("", path, "line 1", "stem and subset")
    check_refusal("# a\nimage,subset\ns000,train\n", path, "line 2", "stem and subset")
    check_refusal("stem;subset\ns000;train\n", path, "line 1", "stem and subset")
    check_refusal(head + "s000,train\n\ns001,tran\n", path, "line 4", "'tran'", "did you mean train?")
    check_refusal(head + "s000,train,val\n", path, "line 2", "3 columns")
    check_refusal("stem,stem\ns000,train\n", path, "line 1", "stem and subset")
    check_refusal(head + "s000,train\ns001,val\ns000,test\n", path, "line 4", "s000 was given in line 2")
    check_refusal(head + "s000,train\ns001,train\n", path, "no image is given for test")
    check_refusal(b"\xff\xfe\x00", path, "cannot be read")


def test_stems_that_are_not_there_are_counted(tmp_path: Path) -> None:
    absent = "".join(f"x{n},train\n" for n in range(7))
    check_refusal(
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


# Folds, groups and subsets that the data set has


def pairs_of(*folders: str, count: int = 30) -> list[Pair]:
    """`count` pairs in each folder; the first word of a folder's name is its subset, if it is one."""
    pairs = []
    for folder in folders:
        subset = next((name for name in SUBSETS if folder.startswith(name)), None)
        for number in range(count):
            path = Path(f"{folder}/{number:02}.png")
            pairs.append(Pair(f"{folder}/{number:02}", path, None, folder.rpartition("/")[0], subset))
    return pairs


def make_noise_inspection(count: int, thumbnails: np.ndarray | None = None, seed: int = 0) -> Inspection:
    """An inspection with polyps of all sizes."""
    inspection = make_inspection(noise(count) if thumbnails is None else thumbnails)
    inspection.shares = np.random.default_rng(seed).exponential(0.1, count).astype(np.float32)
    return inspection


def apart(subsets: dict[str, list[str]], group_of: dict[str, Any]) -> bool:
    """Whether no group is in two subsets."""
    subsets_of: dict[Any, set[str]] = {}
    for name, stems in subsets.items():
        for stem in stems:
            subsets_of.setdefault(group_of[stem], set()).add(name)
    return all(len(names) == 1 for names in subsets_of.values())


def test_folds_are_disjoint_complete_and_balanced() -> None:
    inspection = make_noise_inspection(100)
    share = dict(zip(STEMS, inspection.shares.tolist(), strict=True))
    tests = []
    for fold in range(5):
        subsets = divide("random", STEMS, inspection, folds=5, fold=fold)
        check_complete(subsets, STEMS)
        assert len(subsets["test"]) == 20 and len(subsets["val"]) == 8
        tests.append(subsets["test"])
    assert sorted(stem for test in tests for stem in test) == STEMS
    medians = [np.median([share[stem] for stem in test]) for test in tests]
    assert max(medians) < 1.3 * min(medians)


def test_folds_are_the_same_everywhere_and_follow_the_seed() -> None:
    subsets = divide("auto", STEMS, make_noise_inspection(100), folds=5, fold=2, seed=1)
    digest = hashlib.sha256(" ".join(subsets["test"]).encode()).hexdigest()
    assert digest[:16] == "15952fb5ee4f2ba2"  # in every process, with every version of scikit-learn
    assert divide("auto", STEMS, make_noise_inspection(100), folds=5, fold=2, seed=1) == subsets
    assert divide("auto", STEMS, make_noise_inspection(100), folds=5, fold=2, seed=2) != subsets


@pytest.mark.parametrize("options", [{}, {"folds": 5, "fold": 3}, {"folds": 4}])
def test_near_duplicates_and_groups_stay_together(options: dict[str, Any]) -> None:
    pairs = pairs_of(*(f"c/case{n:02}" for n in range(40)), count=3)
    stems = [pair.stem for pair in pairs]
    subsets = Splitter("random", group="folder", **options).divide(pairs, make_noise_inspection(120))
    check_complete(subsets, stems)
    assert apart(subsets, {stem: stem.rpartition("/")[0] for stem in stems})
    frames = twins(120, 4)  # those of one folder and of the next are twins, too
    subsets = Splitter("random", group="folder", **options).divide(pairs, make_noise_inspection(120, frames))
    assert apart(subsets, {stem: row // 12 for row, stem in enumerate(stems)})


def test_a_group_is_a_column_of_the_split_or_of_another_file(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    patient = {stem: f"p{row % 25}" for row, stem in enumerate(STEMS)}
    path.write_text("age,stem,patient\n" + "".join(f"50,{s}.jpg,{p}\n" for s, p in patient.items()))
    for options in (
        {"split": "random", "group": f"{path}:patient"},
        {"split": str(path), "group": "patient"},
    ):
        subsets = divide(options.pop("split"), STEMS, make_noise_inspection(100), **options)
        check_complete(subsets, STEMS)
        assert apart(subsets, patient)
    with pytest.raises(InputError, match=r"data\.group=patent.*did you mean patient"):
        divide(str(path), STEMS, make_noise_inspection(100), group="patent")
    with pytest.raises(InputError, match=r"nowhere\.csv is not a file"):
        divide("random", STEMS, make_noise_inspection(100), group="nowhere.csv:patient")
    path.write_text("stem,patient\n" + "".join(f"{s},{p}\n" for s, p in [*patient.items()][:90]))
    with pytest.raises(InputError, match="10 images have no patient"):
        divide("random", STEMS, make_noise_inspection(100), group=f"{path}:patient")


def test_leave_one_group_out(caplog: pytest.LogCaptureFixture) -> None:
    pairs = pairs_of("a/1", "b/1", "c/1")
    tests = []
    for fold in range(3):
        subsets = Splitter("leave-one-group-out", group="source", fold=fold).divide(
            pairs, make_noise_inspection(90)
        )
        check_complete(subsets, [pair.stem for pair in pairs])
        (source,) = {stem.split("/")[0] for stem in subsets["test"]}
        assert len(subsets["test"]) == 30
        tests.append(source)
    assert tests == ["a", "b", "c"]
    with pytest.raises(InputError, match=r"data\.fold=3 is no group of data\.group=source, which has 3"):
        Splitter("leave-one-group-out", group="source", fold=3).divide(pairs, make_noise_inspection(90))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"folds": 1}, "data.folds=1"),
        ({"folds": 2.5}, "data.folds=2.5"),
        ({"folds": True}, "data.folds=True"),
        ({"folds": 5, "fold": 5}, "data.fold=5 must be below"),
        ({"fold": -1}, "data.fold=-1"),
        ({"fold": 1}, "needs data.folds"),
        ({"split": "leave-one-group-out"}, "needs data.group"),
    ],
)
def test_folds_that_cannot_be(options: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError) as caught:
        Splitter(**options)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_folds_need_as_many_groups() -> None:
    with pytest.raises(InputError, match=r"data\.folds=5 needs as many groups.*there are 2"):
        divide("random", STEMS, make_noise_inspection(100, twins(100, 50)), folds=5)


def test_folders_of_subsets_are_the_split() -> None:
    pairs = pairs_of("train", "val", "test")
    subsets = Splitter().divide(pairs, make_noise_inspection(90))
    assert {name: {stem.split("/")[0] for stem in stems} for name, stems in subsets.items()} == {
        name: {name} for name in SUBSETS
    }
    splitter = Splitter()
    subsets = splitter.divide(pairs_of("train", "test", count=40), make_noise_inspection(80))
    assert {stem.split("/")[0] for stem in subsets["val"]} == {"train"}
    assert (len(subsets["train"]), len(subsets["val"]), len(subsets["test"])) == (36, 4, 40)
    assert splitter.used == "folders"
    splitter.divide(pairs_of("a", "b"), make_noise_inspection(60))
    assert splitter.used == "random"
    with pytest.raises(InputError, match=r"train and val but no test"):
        Splitter().divide(pairs_of("train", "val"), make_noise_inspection(60))
    with pytest.raises(InputError, match=r"data\.split=folders needs folders named train and test"):
        Splitter("folders").divide(pairs_of("a", "b"), make_noise_inspection(60))


def test_lists(tmp_path: Path) -> None:
    parts = {"train": STEMS[:80], "val": STEMS[80:90], "test": STEMS[90:]}
    for name, stems in parts.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"images/{stem}.jpg\n" for stem in stems))
    assert divide(str(tmp_path), STEMS, make_noise_inspection(100)) == parts
    (tmp_path / "val.txt").unlink()
    subsets = divide(str(tmp_path), STEMS[:80] + STEMS[90:], make_noise_inspection(90))
    assert subsets["test"] == STEMS[90:] and len(subsets["val"]) == 8
    pairs = [Pair(stem, Path(f"{stem}.png"), None) for stem in STEMS[:80] + STEMS[90:]]
    assert (
        Splitter().divide(pairs, make_noise_inspection(90), tmp_path) == subsets
    )  # the data set's own lists
    (tmp_path / "test.txt").unlink()
    with pytest.raises(InputError, match=r"without train\.txt and test\.txt"):
        divide(str(tmp_path), STEMS, make_noise_inspection(100))


def test_names_in_a_split_may_have_endings_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    stems = ["C1/a", "C1/b", "C2/a", "C2/c.1"]
    path.write_text("stem,subset\nC1/a.jpg,train\nimages/b.PNG,val\nC2/images/a,test\nc.1,train\n")
    assert read_split(str(path), stems)[0] == {"train": ["C1/a", "C2/c.1"], "val": ["C1/b"], "test": ["C2/a"]}
    path.write_text("stem,subset\na,train\nb,test\n")
    with pytest.raises(InputError, match=r"1 of its 2 images are not in the data \(a\)"):
        read_split(str(path), stems)  # which a?


def test_a_split_without_val_draws_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mine.csv"
    rows = [f"{stem},{'test' if row < 20 else 'train'},c{row % 2}" for row, stem in enumerate(STEMS)]
    path.write_text("\n".join(["stem,subset,centre", *rows]))
    with caplog.at_level(logging.INFO):
        subsets = divide(str(path), STEMS, make_noise_inspection(100, twins(100, 4)))
    check_complete(subsets, STEMS)
    assert subsets["test"] == STEMS[:20] and len(subsets["val"]) == 8
    assert apart(subsets, {stem: row // 4 for row, stem in enumerate(STEMS)})
    assert "validation: 8 images of train" in caplog.text


def test_a_published_split_that_divides_groups_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.csv"
    rows = [f"{stem},{SUBSETS[row % 3]},p{row // 10}" for row, stem in enumerate(STEMS)]
    path.write_text("\n".join(["stem,subset,patient", *rows]))
    divide(str(path), STEMS, make_noise_inspection(100), group="patient")
    assert "10 of 10 groups are in several subsets" in caplog.text


@pytest.mark.parametrize(
    ("folders", "options", "is_said"),
    [
        (("a/case1", "a/case2"), {}, True),
        (("a/case1", "a/case2"), {"folds": 2}, True),
        (("a/case1", "a/case2", "a/case3", "a/case4"), {"group": "folder", "folds": 2}, False),
        (("train/case1", "train/case2", "test/case1"), {}, True),
        (("train", "test"), {}, False),
        (("train", "val/1", "val/2", "test"), {}, False),
        (("a/1", "b/1"), {}, False),
        (("",), {}, False),
    ],
)
def test_sequences_in_folders_are_mentioned_where_a_split_is_drawn(
    caplog: pytest.LogCaptureFixture, folders: tuple[str, ...], options: dict[str, Any], is_said: bool
) -> None:
    pairs = pairs_of(*folders)
    with caplog.at_level(logging.INFO):
        Splitter(**options).divide(pairs, make_noise_inspection(len(pairs)))
    assert ("data.group=folder" in caplog.text) == is_said


def test_normal_frames_are_divided_by_folder() -> None:
    pairs = pairs_of(*(f"video{n}" for n in range(10)), count=4)
    subsets = Splitter().divide_normal(pairs, make_noise_inspection(40))
    assert len(subsets["test"]) == 8 and sorted([*subsets["train"], *subsets["test"]]) == [
        p.stem for p in pairs
    ]
    assert apart(subsets, {pair.stem: pair.image.parent for pair in pairs})
    folds = [
        Splitter(folds=4, fold=fold).divide_normal(pairs, make_noise_inspection(40))["test"]
        for fold in range(4)
    ]
    assert sorted(stem for fold in folds for stem in fold) == [pair.stem for pair in pairs]


def test_normal_frames_of_one_sequence_are_all_trained_on(caplog: pytest.LogCaptureFixture) -> None:
    pairs = pairs_of("video", count=4)
    subsets = Splitter().divide_normal(pairs, make_noise_inspection(4))
    assert subsets == {"train": [pair.stem for pair in pairs], "test": []} and "data.normal" in caplog.text


# the shipped ones

COUNTS = {"official": (800, 80, 120), "pranet": (810, 90, 100)}


def shipped(name: str) -> dict[str, list[str]]:
    path = Path(read_split.__code__.co_filename).with_name("splits") / f"kvasir-seg_{name}.csv"
    stems = [line.split(",")[0] for line in path.read_text().split()[1:]]
    return read_split(name, stems)[0]


@pytest.mark.parametrize(
    ("has_kvasir", "has_clinic", "counts"),
    [(True, True, (1360, 90, 162)), (True, False, (810, 90, 100)), (False, True, (550, 0, 62))],
)
def test_pranet_divides_the_data_sets_that_are_there(
    has_kvasir: bool, has_clinic: bool, counts: tuple[int, int, int]
) -> None:
    kvasir = [f"kvasir/{stem}" for subset in shipped("pranet").values() for stem in subset]
    stems = kvasir * has_kvasir + [f"clinic/{n}" for n in range(1, 613)] * has_clinic
    subsets, _ = read_split("pranet", stems)
    assert tuple(map(len, subsets.values())) == counts
    check_complete(subsets, stems)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_split_is_whole(name: str) -> None:
    subsets = shipped(name)
    stems = [stem for subset in subsets.values() for stem in subset]
    assert len(stems) == len(set(stems)) == 1000
    assert tuple(map(len, subsets.values())) == COUNTS[name]


def test_shipped_splits_are_of_the_same_images() -> None:
    official, pranet = ({s for subset in shipped(name).values() for s in subset} for name in SHIPPED)
    assert official == pranet


def test_pranet_of_both_data_sets_trains_on_1450_images(caplog: pytest.LogCaptureFixture) -> None:
    kvasir = [f"Kvasir-SEG/{stem}" for stems in shipped("pranet").values() for stem in stems]
    stems = [*kvasir, *(f"CVC-ClinicDB/{number}" for number in range(1, 613))]
    subsets, _ = read_split("pranet", stems)
    assert len(subsets["train"]) + len(subsets["val"]) == 1450
    assert [sum(stem.startswith(name) for stem in subsets["test"]) for name in ("K", "C")] == [100, 62]
    check_complete(subsets, stems)


@pytest.mark.parametrize(("name", "count"), [("official", 1000), ("pranet", 1612)])
def test_shipped_split_is_for_kvasir_seg(name: str, count: int) -> None:
    with pytest.raises(InputError) as caught:
        read_split(name, STEMS)
    text = str(caught.value)
    assert "\n" not in text and f"data.split={name} is a split of Kvasir-SEG" in text
    assert "data.split=random" in text and f"{count} of its {count} images are not in the data" in text


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
    check_complete(subsets, stems)
    links = find_links(inspection.thumbnails, inspection.fields)
    if name in SHIPPED:  # with the published test sets, whole frames alone can be kept together
        links = [
            link for link in links if link.reason.startswith(("frames correlate 0.99", "frames correlate 1"))
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
