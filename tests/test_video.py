"""Videos: each frame is predicted as an image is, and a video that breaks off is kept as far as it goes."""

import csv
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from planted import plant_model

from polyp.cli import main
from polyp.errors import InputError
from polyp.inference import polyps
from polyp.inference.predictor import Predictor, load_predictor
from polyp.prediction import video
from polyp.prediction.video import EndedEarly, Video, annotate
from polyp.report.pictures import overlay

SHAPE = (58, 74, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_model(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return load_predictor([str(run)], device_name="cpu")


def film(path: Path, count: int = 11, shape: tuple[int, ...] = SHAPE, rate: float = 12.5, code: str = "mp4v") -> Path:
    """A video of something that moves."""
    random = np.random.default_rng(3)
    scene = cv2.resize(random.integers(0, 256, (5, 9, 3), dtype=np.uint8), shape[1::-1])
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), rate, shape[1::-1])
    assert writer.isOpened()
    for number in range(count):
        writer.write(np.roll(scene, 3 * number, axis=1))
    writer.release()
    return path


def frames(path: Path) -> list[np.ndarray]:
    """RGB, read by nothing of polyp's."""
    capture = cv2.VideoCapture(str(path))
    read = []
    while (frame := capture.read()[1]) is not None:
        read.append(frame[..., ::-1].copy())
    return read


def rate(path: Path) -> float:
    return cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS)


def test_frames_are_predicted_as_images_are(tmp_path: Path, predictor: Predictor) -> None:
    source = film(tmp_path / "in.mp4")
    told: list[tuple[int, int | None]] = []
    found = list(annotate(source, tmp_path / "out.webm", predictor, 0.5, lambda *state: told.append(state)))
    pictures = frames(source)
    assert [one.number for one in found] == list(range(11)) and len(pictures) == 11
    assert [one.seconds for one in found] == pytest.approx([number / 12.5 for number in range(11)], abs=1e-3)
    assert told[-1] == (11, 11)
    for one, picture in zip(found, pictures, strict=True):
        probability = predictor.predict(picture)
        expected = polyps.find(probability, 0.5)
        assert one.highest == pytest.approx(float(probability.max()), abs=0.02)  # bf16 in a batch of another size
        assert abs(one.share - sum(polyp.share for polyp in expected)) < 0.02
    assert any(one.polyps for one in found)
    out = frames(tmp_path / "out.webm")
    assert len(out) == 11 and out[0].shape == SHAPE and rate(tmp_path / "out.webm") == pytest.approx(12.5)
    drawn = [overlay(one, polyps.mask(predictor.predict(one), 0.5)) for one in pictures]
    for number, shown in enumerate(out):  # what is drawn on each is what is found in it; VP8 loses a little
        apart = [np.abs(shown - one.astype(int)).mean() for one in drawn]
        assert np.argmin(apart) == number
        assert apart[number] < np.abs(shown - pictures[number].astype(int)).mean()
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.webm"}


@pytest.mark.parametrize(("ending", "code"), [("avi", "MJPG"), ("mov", "mp4v"), ("mkv", "mp4v"), ("webm", "VP80")])
def test_kinds(tmp_path: Path, predictor: Predictor, ending: str, code: str) -> None:
    source = film(tmp_path / f"in.{ending}", 3, rate=29.97, code=code)
    assert len(list(annotate(source, tmp_path / "out.webm", predictor, 0.5))) == 3
    assert rate(tmp_path / "out.webm") == pytest.approx(29.97, abs=0.01)


def test_an_odd_size_is_one_pixel_more(tmp_path: Path, predictor: Predictor) -> None:
    pictures = [cv2.imencode(".jpg", np.full((35, 51, 3), 20 * number, np.uint8))[1] for number in range(3)]
    source = tmp_path / "odd.avi"
    source.write_bytes(motion_jpeg([picture.tobytes() for picture in pictures], 51, 35))
    assert frames(source)[0].shape == (35, 51, 3)
    assert len(list(annotate(source, tmp_path / "out.webm", predictor, 0.5))) == 3
    assert frames(tmp_path / "out.webm")[0].shape == (36, 52, 3)


def motion_jpeg(pictures: list[bytes], width: int, height: int) -> bytes:
    """An AVI of JPEGs, which may have any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)

    def listed(kind: bytes, content: bytes) -> bytes:
        return chunk(b"LIST", kind + content)

    count = len(pictures)
    main_header = struct.pack("<14I", 40_000, 0, 0, 0, count, 0, 1, 0, width, height, 0, 0, 0, 0)
    stream = (
        b"vidsMJPG" + struct.pack("<10I", 0, 0, 0, 1, 25, 0, count, 0, 0, 0) + struct.pack("<4h", 0, 0, width, height)
    )
    form = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MJPG", width * height * 3, 0, 0, 0, 0)
    streams = listed(b"strl", chunk(b"strh", stream) + chunk(b"strf", form))
    header = listed(b"hdrl", chunk(b"avih", main_header) + streams)
    return chunk(b"RIFF", b"AVI " + header + listed(b"movi", b"".join(chunk(b"00dc", one) for one in pictures)))


def test_a_video_held_upright_comes_out_upright(tmp_path: Path, predictor: Predictor) -> None:
    source = film(tmp_path / "phone.mp4", 3)
    upright = frames(source)[0]
    content = bytearray(source.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # the track's matrix
    content[at : at + 36] = struct.pack(">9i", 0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30)  # a quarter turn clockwise
    source.write_bytes(content)
    assert np.array_equal(Video(source).read()[1], np.rot90(upright, -1))
    assert len(list(annotate(source, tmp_path / "out.webm", predictor, 0.5))) == 3
    assert frames(tmp_path / "out.webm")[0].shape == (74, 58, 3)


def test_a_video_that_ends_early_is_kept_as_far_as_it_goes(tmp_path: Path, predictor: Predictor) -> None:
    source = film(tmp_path / "in.avi", 40, code="MJPG")
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    found = []
    with pytest.raises(EndedEarly, match=r"in\.avi: ends after \d+ of 40 frames, which are kept"):
        for one in annotate(source, tmp_path / "out.webm", predictor, 0.5):
            found.append(one)
    assert 10 < len(found) < 30
    assert len(frames(tmp_path / "out.webm")) == len(found)


def test_fewer_frames_can_be_asked_for(tmp_path: Path, predictor: Predictor) -> None:
    source = film(tmp_path / "in.mp4", 20)
    for most in (1, 8, 9):
        assert len(list(annotate(source, tmp_path / "out.webm", predictor, 0.5, most_frames=most))) == most
        assert len(frames(tmp_path / "out.webm")) == most


def test_whoever_stops_leaves_nothing(tmp_path: Path, predictor: Predictor) -> None:
    found = annotate(film(tmp_path / "in.mp4", 20), tmp_path / "out.webm", predictor, 0.5)
    next(found)
    found.close()
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def playlist(path: Path) -> None:
    film(path.with_name("secret.mp4"))
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.mp4\n#EXT-X-ENDLIST\n")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.touch(),
        lambda path: path.write_bytes(b"no video" * 100),
        lambda path: path.write_bytes(film(path.with_name("whole.mp4")).read_bytes()[:300]),
        lambda path: path.write_text("ffconcat version 1.0\nfile /etc/passwd\n"),
        playlist,  # FFmpeg would open what it names
    ],
)
def test_no_video(
    tmp_path: Path, predictor: Predictor, make: Callable[[Path], object], capfd: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "in.mp4")
    with pytest.raises(InputError, match=r"in\.mp4: not a video that can be read, or a damaged one"):
        list(annotate(tmp_path / "in.mp4", tmp_path / "out.webm", predictor, 0.5))
    assert not (tmp_path / "out.webm").exists() and "WARN" not in capfd.readouterr().err


def test_names_that_are_no_text(tmp_path: Path, predictor: Predictor) -> None:
    broken = os.fsdecode(b"\xff\xfe")
    source = film(tmp_path / "in.mp4", 3)
    for video_, target in (
        (Path(shutil.copy(source, tmp_path / f"{broken}.mp4")), "out.webm"),
        (source, f"{broken}/out.webm"),
    ):
        with pytest.raises(InputError, match=r"udcff\S*: a name that is not UTF-8: rename it, or its folder"):
            list(annotate(video_, tmp_path / target, predictor, 0.5))


def test_a_video_without_frames(tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Video, "read", lambda self: None)
    with pytest.raises(InputError, match="no frame of it can be read"):
        list(annotate(film(tmp_path / "in.mp4"), tmp_path / "out.webm", predictor, 0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_frames_that_change_in_size(tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = iter([(48, 64, 3)] * 9 + [(64, 48, 3)] * 50)
    monkeypatch.setattr(Video, "read", lambda self: (0.0, np.zeros(next(shapes), np.uint8)))
    found: Iterator[video.Frame] = annotate(film(tmp_path / "in.mp4"), tmp_path / "out.webm", predictor, 0.5)
    with pytest.raises(EndedEarly, match="change in size after 9 frames"):
        list(found)
    assert len(frames(tmp_path / "out.webm")) == 9


# ---- the command


def test_the_command(tmp_path: Path, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = film(tmp_path / "a.mp4")
    main(["predict", str(run), str(source), "--out", str(tmp_path / "out")])
    told = capfd.readouterr()
    assert told.err == "" and told.out.startswith("11 frames, ") and told.out.rstrip().endswith("out/videos/a.webm")
    rows = list(csv.DictReader((tmp_path / "out" / "videos" / "a.csv").read_text().splitlines()))
    assert [int(row["frame"]) for row in rows] == list(range(11))
    predictor = load_predictor([str(run)], device_name="cpu")
    expected = [one.row for one in annotate(source, None, predictor, 0.5)]
    assert rows == [{key: str(value) for key, value in row.items()} for row in expected]
    again = ["predict", str(run), str(source), str(film(tmp_path / "b.mp4", 3)), "--out", str(tmp_path / "out")]
    main(again)
    assert "done before" in capfd.readouterr().out
    source.write_text("no video")
    with pytest.raises(SystemExit, match=r"a\.mp4: not a video"):
        main(again)
    assert {path.name for path in (tmp_path / "out" / "videos").iterdir()} == {"b.csv", "b.webm"}


def test_the_command_on_a_video_that_ends_early(tmp_path: Path, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = film(tmp_path / "in.avi", 40, code="MJPG")
    source.write_bytes(source.read_bytes()[:10_000])
    for _ in range(2):  # it is said again when nothing is left to do
        with pytest.raises(SystemExit, match=r"^polyp: \S+in\.avi: ends after \d+ of 40 frames, which are kept$"):
            main(["predict", str(run), str(source), "--out", str(tmp_path / "out"), "--no-overlays"])
        assert (tmp_path / "out" / "videos" / "in.csv").is_file()
        assert not (tmp_path / "out" / "videos" / "in.webm").exists()
