"""`polyp data`: what it prints, the page and the split."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
from drawn import lay_out, numbered, picture, polyp, write

from polyp.cli import main
from polyp.data.sources import Synthetic
from polyp.data.split_files import read_split


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty drawn pairs, in a folder that may be changed."""
    drawn = Synthetic(root=str(tmp_path_factory.getbasetemp() / "drawn"), count=20, size=48).prepare()
    return Path(shutil.copytree(drawn, tmp_path / "mine"))


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_message(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as error:
        main(["data", *arguments])
    text = str(error.value)
    assert text.startswith("polyp: ") and "\n" not in text
    return text


def copy(folder: Path, stem: str, new: str) -> None:
    shutil.copy(folder / f"images/{stem}.jpg", folder / f"images/{new}.jpg")
    shutil.copy(folder / f"masks/{stem}.png", folder / f"masks/{new}.png")


def subsets_in(file: Path) -> dict[str, str]:
    with file.open() as stream:
        return {row["stem"]: row["subset"] for row in csv.DictReader(stream)}


def write_split(file: Path, stems: list[str]) -> str:
    subsets = ["test", "test", "val", "val"] + ["train"] * (len(stems) - 4)
    file.write_text("stem,subset\n" + "".join(f"{a},{b}\n" for a, b in zip(stems, subsets, strict=True)))
    return str(file)


def test_page_summary_and_split(folder: Path, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", str(folder)])
    page = (workspace / "outputs/data/mine.html").read_text()
    assert not re.search(
        r'https?://|src="(?!data:)|<script|<link|url\((?!#)', page
    )  # opens without asking any other host
    assert "synthetic_0000" in page and "data:image/jpeg" in page
    output = capsys.readouterr().out
    assert "20 images" in output and "0 problems" in output and "outputs/data/mine.html" in output
    split = workspace / "outputs/data/mine_split.csv"
    stems = sorted(path.stem for path in (folder / "images").iterdir())
    assert {name: len(members) for name, members in read_split(str(split), stems)[0].items()} == {
        "train": 16,
        "val": 2,
        "test": 2,
    }


def test_every_problem_is_on_the_page_and_the_good_ones_too(folder: Path, workspace: Path) -> None:
    images, masks = folder / "images", folder / "masks"
    (images / "synthetic_0001.jpg").write_bytes(b"no image")
    (masks / "synthetic_0002.png").unlink()
    size = cv2.imread(str(masks / "synthetic_0003.png")).shape[:2]
    for stem, mask in (("3", np.ones((5, 5))), ("4", np.zeros(size))):
        cv2.imwrite(str(masks / f"synthetic_000{stem}.png"), (mask * 255).astype(np.uint8))
    image = cv2.imread(str(images / "synthetic_0004.jpg"))
    cv2.imwrite(str(masks / "synthetic_0004.png"), np.zeros(image.shape[:2], np.uint8))
    main(["data", str(folder)])
    page = (workspace / "outputs/data/mine.html").read_text()
    for text in (
        "0001.jpg: not a readable",
        "0002.jpg: no mask",
        "0003.jpg: is",
        "0004.png: the mask is empty",
    ):
        assert text in page
    assert "(--allow-empty if that is meant)" in page
    assert "16 images" in page and "4 problems" in page
    main(["data", str(folder), "--allow-empty"])
    assert "17 images" in (workspace / "outputs/data/mine.html").read_text()


def test_a_pair_that_straddles_is_named_and_left_out(
    folder: Path, workspace: Path, capsys: pytest.CaptureFixture
) -> None:
    copy(folder, "synthetic_0000", "twin")
    stems = sorted(path.stem for path in (folder / "images").iterdir())
    main(["data", str(folder), "--split", write_split(workspace / "split.csv", stems)])
    for text in (capsys.readouterr().out, (workspace / "outputs/data/mine.html").read_text()):
        assert "synthetic_0000 (test), twin (train)" in text
        assert "near-duplicates of test: 1;" in text
    suggestion = subsets_in(workspace / "outputs/data/mine_split.csv")
    assert "twin" not in suggestion and len(suggestion) == 20
    assert sorted(s for s in suggestion if suggestion[s] == "test") == ["synthetic_0000", "synthetic_0001"]


def test_a_split_is_never_overwritten_and_a_page_of_ours_is(folder: Path, workspace: Path) -> None:
    main(["data", str(folder)])
    main(["data", str(folder)])
    split = workspace / "outputs/data/mine_split.csv"
    content = split.read_bytes()
    assert len(list(split.parent.iterdir())) == 2  # the same again
    main(["data", str(folder), "--seed", "1"])
    assert split.read_bytes() == content != (workspace / "outputs/data/mine_split_2.csv").read_bytes()


def test_a_training_takes_the_suggested_split(folder: Path, workspace: Path, train) -> None:
    from conftest import SMALL

    main(["data", str(folder)])
    mine = [o for o in SMALL if not o.startswith("data") or "size" in o.replace("data.size", "")]
    run = train(
        *mine, "data=folder", f"data.root={folder}", f"data.split={workspace}/outputs/data/mine_split.csv"
    )
    assert (run / "run/metrics.json").is_file()


@pytest.mark.slow
def test_the_suggested_split_is_the_random_one_of_training(folder: Path, workspace: Path) -> None:
    from conftest import SMALL, run_script

    copy(folder, "synthetic_0000", "twin")
    main(["data", str(folder), "--seed", "3"])
    suggestion = subsets_in(workspace / "outputs/data/mine_split.csv")
    mine = [o for o in SMALL if not o.startswith("data") or "size" in o.replace("data.size", "")]
    run_script(*mine, "data=folder", f"data.root={folder}", "data.split_seed=3", "hydra.run.dir=run")
    split = json.loads((workspace / "run/split.json").read_text())
    assert suggestion == {stem: name for name, stems in split.items() for stem in stems}


def test_a_known_data_set_has_its_own_options(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--archive is not for synthetic" in error_message(capsys, "synthetic", "--archive", "x.zip")


def test_one_image_has_no_split(folder: Path, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted(folder.rglob("synthetic_*"))[::-1]:
        if "0007" not in path.name:
            path.unlink()
    main(["data", str(folder), "--out", "one.html"])
    assert "No split is suggested" in capsys.readouterr().out
    assert "synthetic_0007" in (workspace / "one.html").read_text()
    assert not (workspace / "one_split.csv").exists()


def test_other_names_of_folders(folder: Path, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images").rename(folder / "Colonoscopies")
    (folder / "masks").rename(folder / "Drawn by hand")
    text = error_message(capsys, str(folder))
    assert "Colonoscopies/, Drawn by hand/" in text and "--images" in text and "data." not in text
    main(["data", str(folder), "--images", "Colonoscopies", "--masks", "Drawn by hand"])
    assert (workspace / "outputs/data/mine.html").is_file()


def test_bad_input_is_one_line(folder: Path, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "mine.html").write_text("a page of somebody else")
    (workspace / "file").write_text("")
    mine = str(folder)
    for arguments, parts in {
        ("nowhere",): ("nowhere is not a folder", "kvasir_seg"),
        (mine, "--masks", "gone"): ("no masks in 'gone'", "--masks"),
        (mine, "--split", "offical"): ("--split offical", "official"),
        (mine, "--split", "official"): ("not in the data",),
        (mine, "--root", "x"): ("--root",),
        (mine, "--out", "mine.html"): ("mine.html", "--out"),
        (mine, "--out", "file/page.html"): ("cannot write",),
        (mine, "--out", "."): ("cannot write",),
    }.items():
        text = error_message(capsys, *arguments)
        assert all(part in text for part in parts), text
    assert (workspace / "mine.html").read_text() == "a page of somebody else"


def test_nothing_usable(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    assert "none of its 20 pairs can be used" in error_message(capsys, str(folder))


@pytest.mark.real_data
def test_frames_that_kvasir_seg_has_twice(
    data_folder: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With and without black border and green box; in the official split one trains, the other tests."""
    twice = {
        "cju1dfeupuzlw0835gnxip369": "cjyzul1qggwwj07216mhiv5sy",
        "cju2i6acqvo6l0799u20fift8": "cjz14qsk2wci60794un9ozwmw",
        "cju3tp94kfstl08181awh6z49": "cjyzk8qieoboa0848ogj51wwm",
    }
    with ZipFile(data_folder / "kvasir-seg.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg") and "/images/" in name]
        stems = {*twice, *twice.values(), *(Path(name).stem for name in names[:20])}
        archive.extractall(workspace, [name for name in archive.namelist() if Path(name).stem in stems])
    (workspace / "split.csv").write_text(
        "stem,subset\n"
        + "".join(f"{a},train\n{b},test\n" for a, b in twice.items())
        + f"{Path(names[0]).stem},val\n"
    )
    main(["data", str(workspace / "Kvasir-SEG"), "--split", str(workspace / "split.csv")])
    output = capsys.readouterr().out
    assert "3 groups of near-duplicates with 6 images; 3 of them are divided" in output
    assert all(f"{first} (train), {second} (test)" in output for first, second in twice.items())


def test_a_split_has_no_formulas_and_is_read_as_it_was_written(folder: Path, workspace: Path) -> None:
    for stem, new in (("synthetic_0000", "=1+1"), ("synthetic_0001", "-a"), ("synthetic_0002", "@b")):
        copy(folder, stem, new)
        (folder / f"images/{stem}.jpg").unlink()
        (folder / f"masks/{stem}.png").unlink()
    main(["data", str(folder)])
    split = workspace / "outputs/data/mine_split.csv"
    assert not any(line.startswith(("=", "+", "-", "@")) for line in split.read_text().splitlines())
    stems = sorted(path.stem for path in (folder / "images").iterdir())
    subsets, _ = read_split(str(split), stems)
    assert sorted(stem for subset in subsets.values() for stem in subset) == stems


# Everything that training understands


def run_survey(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["data", *arguments, "--out", "page.html"])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("image", "mask", "note"),
    [
        ("image_{}.jpg", "image_{}_mask.png", "masks are named {stem}_mask"),
        ("CVC/Original/{}.tif", "CVC/Ground Truth/{}.tif", "images are in CVC/Original/"),
        ("Frame/case1/{}.jpg", "GT/case1/{}.png", "masks are in GT/case1/"),
        ("imagesTr/{}_0000.png", "labelsTr/{}.png", "images are named {stem}_0000"),
    ],
)
def test_a_layout_is_shown(
    workspace: Path, capsys: pytest.CaptureFixture[str], image: str, mask: str, note: str
) -> None:
    lay_out(workspace / "mine", *numbered(image, mask, range(12)))
    output = run_survey(capsys, "mine")
    assert "12 images" in output and note in output and note[1:] in (workspace / "page.html").read_text()


def test_sources_are_counted(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for centre, count in ((1, 4), (2, 6)):
        names = numbered(
            f"data_C{centre}/images_C{centre}/{{}}.jpg",
            f"data_C{centre}/masks_C{centre}/{{}}.png",
            range(count),
        )
        lay_out(workspace / "gen", *names)
    output = run_survey(capsys, "gen")
    assert (
        "4 data_C1, 6 data_C2" in output and "4 data_C1, 6 data_C2" in (workspace / "page.html").read_text()
    )
    lay_out(workspace / "other", *numbered("images/{}.jpg", "masks/{}.png", range(5)))
    output = run_survey(capsys, "gen", "other")
    assert "15 images" in output and "4 gen/data_C1, 6 gen/data_C2, 5 other" in output
    assert "groups of near-duplicates" in output  # which the first four of each are


def test_folders_of_subsets_are_the_split(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for subset, numbers in (("train", range(14)), ("test", range(20, 26))):
        for number in numbers:
            write(workspace / f"mine/{subset}/images/{number}.jpg", picture(number))
            write(workspace / f"mine/{subset}/masks/{number}.png", polyp(number) * 255)
    assert "folders: 14 train, 0 val, 6 test" in run_survey(capsys, "mine")


def paste(text: str) -> list[str]:
    """The options that a message says to add, as a shell takes them; more than one way is cut off."""
    words = shlex.split(re.split(r"[Aa]dd |: say which are masks, for example |Say how: ", text)[1])
    options = []
    for word in words:
        if not (word.startswith("--") or (options and options[-1].startswith("--"))):
            break
        options.append(word.rstrip(",") if word.startswith("--") else word.rstrip(",."))
    assert options and len(options) % 2 == 0, text
    return options


@pytest.mark.parametrize(
    "coding",
    ["three values", "ignore", "two colours", "colours and black", "inverted", "palette"],
)
def test_what_the_message_says_to_add_can_be_pasted(
    workspace: Path, capsys: pytest.CaptureFixture[str], coding: str
) -> None:
    for number in range(12):
        mask, other = polyp(number), np.roll(polyp(number), 18, axis=1)
        palette: list[int] = []
        if coding == "inverted":
            mask = 255 - 255 * mask
        elif "colours" in coding:
            mask = np.dstack([mask * 255, other * 255, mask * 0])
        elif coding == "palette":
            mask, palette = mask | 2 * other, [0, 0, 0, 128, 0, 0, 0, 128, 0]
        else:
            mask = np.where(other, 255 if coding == "ignore" else 2, mask).astype(np.uint8)
        write(workspace / f"mine/images/{number}.jpg", picture(number))
        write(workspace / f"mine/masks/{number}.png", mask, palette)
    if coding == "inverted":
        text = run_survey(capsys, "mine").replace("\n", " ")
        assert "look inverted" in text
    else:
        with pytest.raises(SystemExit) as error:
            main(["data", "mine", "--out", "page.html"])
        text = str(error.value)
        assert "it is not clear what is polyp" in text and "page.html" in text and "data." not in text
        page = (workspace / "page.html").read_text()
        assert page.count("data:image/jpeg") >= 2 and "share of the pixels" in page  # a picture of each value
    output = run_survey(capsys, "mine", *paste(text))
    assert "12 images" in output and "inverted" not in output and "polyp is where" in output


def test_names_that_the_message_says_to_add_can_be_pasted(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(workspace / "mine", *numbered("{}.jpg", "{}.png", range(12)))
    text = error_message(capsys, "mine")
    assert "12 images" in run_survey(capsys, "mine", *paste(text))
    lay_out(workspace / "other", *numbered("images/{}.jpg", "masks/{}_a.png", range(12)))
    lay_out(workspace / "other", *numbered("images/{}.jpg", "masks/{}_mask.png", range(12)))
    assert "it is not clear which masks" in error_message(capsys, "other")
    assert "12 images" in run_survey(capsys, "other", "--mask-name", "{stem}_mask")


def test_an_odd_mask_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "masks/synthetic_0004.png"
    write(file, cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) // 255)
    with pytest.raises(SystemExit, match=r"only in synthetic_0004\.png"):
        main(["data", str(folder)])


def test_polygons(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        write(workspace / f"mine/images/{number}.jpg", picture(number))
        line = "0 0.2 0.2 0.6 0.2 0.6 0.5\n" + "1 0.7 0.7 0.9 0.7 0.9 0.9\n" * (number == 3)
        (workspace / "mine/labels").mkdir(exist_ok=True)
        (workspace / f"mine/labels/{number}.txt").write_text(line)
    text = error_message(capsys, "mine", "--masks", "labels")
    assert "several labels" in text and "data." not in text
    output = run_survey(capsys, "mine", "--masks", "labels", *paste(text))
    assert "12 images" in output and "13 outlines in labels (YOLO)" in output
    assert "12 one" in run_survey(capsys, "mine", "--masks", "labels", "--polyp-labels", "0")


def test_groups_are_in_one_subset_of_the_suggestion(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        n for case in range(20) for n in numbered(f"Frame/c{case}/{{}}.jpg", f"GT/c{case}/{{}}.png", [1, 2])
    ]
    lay_out(workspace / "mine", *names)
    run_survey(capsys, "mine", "--group", "folder")
    subsets = subsets_in(workspace / "page_split.csv")
    assert len(subsets) == 40
    assert all(subsets[f"c{case}/1"] == subsets[f"c{case}/2"] for case in range(20))


def test_images_without_masks_can_be_empty(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "masks/synthetic_0004.png").unlink()
    output = run_survey(capsys, str(folder), "--missing-mask", "empty")
    assert "20 images" in output and "0 problems" in output and "1 none" in output
