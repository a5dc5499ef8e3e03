"""Videos: each frame is predicted as an image is, and a video that breaks off is kept as far as it goes."""

import csv
import os
import re
import shutil
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from run_writers import write_model_run

from polyp.cli import main
from polyp.commands.predict.video import open_video, predict_video
from polyp.errors import InputError
from polyp.inference import polyps
from polyp.inference.predictor import Predictor, load_predictor
from polyp.report.pictures import overlay

SHAPE = (58, 74, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return load_predictor([str(run)], device_name="cpu")


def film(
    path: Path, count: int = 11, shape: tuple[int, ...] = SHAPE, rate: float = 12.5, code: str = "mp4v"
) -> Path:
    """A video of something that moves."""
    random = np.random.default_rng(3)
    scene = cv2.resize(random.integers(0, 256, (5, 9, 3), dtype=np.uint8), shape[1::-1])
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), rate, shape[1::-1])
    assert writer.isOpened()
    for number in range(count):
        writer.write(np.roll(scene, 3 * number, axis=1))
    writer.release()
    return path


def read_frames(path: Path) -> list[np.ndarray]:
    """RGB, read by OpenCV."""
    capture = cv2.VideoCapture(str(path))
    images = []
    while (frame := capture.read()[1]) is not None:
        images.append(frame[..., ::-1].copy())
    return images


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def rate(path: Path) -> float:
    return cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS)


def test_frames_are_predicted_as_images_are(tmp_path: Path, predictor: Predictor) -> None:
    source, table, drawing = film(tmp_path / "in.mp4"), tmp_path / "out.csv", tmp_path / "out.webm"
    progress: list[tuple[int, int]] = []
    summary = predict_video(
        source, predictor, 0.5, table, drawing, progress=lambda *state: progress.append(state)
    )
    images = read_frames(source)
    rows = read_rows(table)
    assert [int(row["frame"]) for row in rows] == list(range(11)) and len(images) == 11
    assert [row["seconds"] for row in rows] == [f"{number / 12.5:.3f}" for number in range(11)]
    assert progress[-1] == (11, 11) and summary.problem == ""
    for row, image in zip(rows, images, strict=True):
        probability = predictor.predict(image)
        expected = polyps.find_polyps(probability, 0.5)
        assert float(row["max_probability"]) == pytest.approx(
            float(probability.max()), abs=0.02
        )  # another decoder
        assert abs(float(row["share"]) - sum(polyp.share for polyp in expected)) < 0.02
        boxes = [row[f"box_{number}"].split() for number in range(1, int(row["polyps"]) + 1)]
        assert all(len(box) == 4 for box in boxes) and not row.get(f"box_{len(boxes) + 1}")
    assert (summary.frames, summary.with_polyps) == (11, sum(row["polyps"] != "0" for row in rows))
    assert summary.with_polyps
    out = read_frames(drawing)
    assert len(out) == 11 and out[0].shape == SHAPE and rate(drawing) == pytest.approx(12.5)
    predictions = [polyps.Prediction(predictor.predict(image), 0.5) for image in images]
    overlays = [overlay(i, p.mask, labels=p.labels) for i, p in zip(images, predictions, strict=True)]
    for number, frame in enumerate(out):  # VP9 loses a little
        distances = [np.abs(frame - image.astype(int)).mean() for image in overlays]
        assert np.argmin(distances) == number
        assert distances[number] < np.abs(frame - images[number].astype(int)).mean()
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.csv", "out.webm"}


def test_frames_match_opencv_and_have_their_times(tmp_path: Path) -> None:
    source = film(tmp_path / "in.mp4")
    with open_video(source) as video:
        assert (video.rate, video.count) == (12.5, 11)
        for number, ((seconds, image), expected) in enumerate(
            zip(video.frames, read_frames(source), strict=True)
        ):
            assert seconds == pytest.approx(number / 12.5, abs=1e-3)
            assert np.abs(image - expected.astype(int)).mean() < 2


@pytest.mark.parametrize(
    ("ending", "code"), [("avi", "MJPG"), ("mov", "mp4v"), ("mkv", "mp4v"), ("webm", "VP80")]
)
def test_predict_video_reads_common_formats(
    tmp_path: Path, predictor: Predictor, ending: str, code: str
) -> None:
    source = film(tmp_path / f"in.{ending}", 3, rate=29.97, code=code)
    assert predict_video(source, predictor, 0.5, tmp_path / "out.csv", tmp_path / "out.webm").frames == 3
    assert rate(tmp_path / "out.webm") == pytest.approx(29.97, abs=0.01)


def test_variable_frame_rate_keeps_the_times(tmp_path: Path, predictor: Predictor) -> None:
    source, table = tmp_path / "in.mkv", tmp_path / "out.csv"
    times = [0, 40, 80, 500, 540, 1000]  # milliseconds
    with av.open(source, "w") as container:
        stream = container.add_stream("mpeg4", 25)
        stream.height, stream.width, stream.codec_context.time_base = 48, 64, Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), time // 5, np.uint8), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    predict_video(source, predictor, 0.5, table)
    assert [float(row["seconds"]) for row in read_rows(table)] == pytest.approx(
        [time / 1000 for time in times]
    )


def test_drawing_has_the_size_of_the_video(tmp_path: Path, predictor: Predictor) -> None:
    source = tmp_path / "odd.avi"
    source.write_bytes(motion_jpeg([(51, 35)] * 3))
    assert read_frames(source)[0].shape == (35, 51, 3)
    assert predict_video(source, predictor, 0.5, tmp_path / "out.csv", tmp_path / "out.webm").frames == 3
    assert read_frames(tmp_path / "out.webm")[0].shape == (35, 51, 3)


def motion_jpeg(sizes: list[tuple[int, int]], damaged: Sequence[int] = ()) -> bytes:
    """An AVI of JPEGs of any (width, height); of the damaged ones all bytes are 0."""
    (width, height), count = sizes[0], len(sizes)
    frames = []
    for number, (columns, rows) in enumerate(sizes):
        jpeg = cv2.imencode(".jpg", np.full((rows, columns, 3), 20 * number % 256, np.uint8))[1].tobytes()
        frames.append(bytes(len(jpeg)) if number in damaged else jpeg)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)

    def chunk_list(kind: bytes, content: bytes) -> bytes:
        return chunk(b"LIST", kind + content)

    main_header = struct.pack("<14I", 40_000, 0, 0, 0, count, 0, 1, 0, width, height, 0, 0, 0, 0)
    stream = (
        b"vidsMJPG"
        + struct.pack("<10I", 0, 0, 0, 1, 25, 0, count, 0, 0, 0)
        + struct.pack("<4h", 0, 0, width, height)
    )
    form = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MJPG", width * height * 3, 0, 0, 0, 0)
    streams = chunk_list(b"strl", chunk(b"strh", stream) + chunk(b"strf", form))
    header = chunk_list(b"hdrl", chunk(b"avih", main_header) + streams)
    movie = chunk_list(b"movi", b"".join(chunk(b"00dc", frame) for frame in frames))
    return chunk(b"RIFF", b"AVI " + header + movie)


def test_rotated_video_is_predicted_upright(tmp_path: Path, predictor: Predictor) -> None:
    source = film(tmp_path / "phone.mp4", 3)
    upright = read_frames(source)[0]
    content = bytearray(source.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # the track's matrix
    content[start : start + 36] = struct.pack(
        ">9i", 0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30
    )  # a quarter turn clockwise
    source.write_bytes(content)
    with open_video(source) as video:
        _, image = next(video.frames)
    assert np.abs(image - np.rot90(upright, -1).astype(int)).mean() < 2
    assert predict_video(source, predictor, 0.5, tmp_path / "out.csv", tmp_path / "out.webm").frames == 3
    assert read_frames(tmp_path / "out.webm")[0].shape == (74, 58, 3)


def test_truncated_video_is_predicted_as_far_as_it_goes(tmp_path: Path, predictor: Predictor) -> None:
    source = film(tmp_path / "in.avi", 40, code="MJPG")
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    summary = predict_video(source, predictor, 0.5, tmp_path / "out.csv", tmp_path / "out.webm")
    assert re.search(rf"in\.avi: ends after {summary.frames} of 40 frames, which are kept", summary.problem)
    assert 10 < summary.frames < 30
    assert len(read_frames(tmp_path / "out.webm")) == len(read_rows(tmp_path / "out.csv")) == summary.frames


def test_max_frames_limits_what_is_read(tmp_path: Path, predictor: Predictor) -> None:
    source = film(tmp_path / "in.mp4", 20)
    for most in (1, 8, 9):
        table, drawing = tmp_path / "out.csv", tmp_path / "out.webm"
        assert predict_video(source, predictor, 0.5, table, drawing, most).frames == most
        assert len(read_frames(drawing)) == most


def test_interrupted_video_leaves_no_files(tmp_path: Path, predictor: Predictor) -> None:
    def interrupt(completed: int, total: int) -> None:
        if completed == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_video(
            film(tmp_path / "in.mp4", 20), predictor, 0.5, tmp_path / "out.csv", tmp_path / "out.webm",
            progress=interrupt,
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def playlist(path: Path) -> None:
    film(path.with_name("secret.mp4"))
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.mp4\n#EXT-X-ENDLIST\n")


def concatenation(path: Path) -> None:
    film(path.with_name("secret.mp4"))
    path.write_text("ffconcat version 1.0\nfile secret.mp4\n")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.touch(),
        lambda path: path.write_bytes(b"no video" * 100),
        lambda path: path.write_bytes(film(path.with_name("whole.mp4")).read_bytes()[:300]),
        concatenation,  # FFmpeg would open what these name
        playlist,
    ],
)
def test_predict_video_refuses_other_files(
    tmp_path: Path, predictor: Predictor, make: Callable[[Path], object], capfd: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "in.mp4")
    with pytest.raises(InputError, match=r"in\.mp4: not a video that can be read, or damaged"):
        predict_video(tmp_path / "in.mp4", predictor, 0.5, tmp_path / "out.csv", tmp_path / "out.webm")
    assert not list(tmp_path.glob("*out*")) and capfd.readouterr().err == ""


def test_video_without_frames_is_refused(tmp_path: Path, predictor: Predictor) -> None:
    source = tmp_path / "in.avi"
    source.write_bytes(motion_jpeg([(64, 48)] * 3, damaged=range(3)))
    with pytest.raises(InputError, match="no frame of it can be read"):
        predict_video(source, predictor, 0.5, tmp_path / "out.csv", tmp_path / "out.webm")
    assert [path.name for path in tmp_path.iterdir()] == ["in.avi"]


def test_damaged_frames_are_left_out(tmp_path: Path, predictor: Predictor) -> None:
    source = tmp_path / "in.avi"
    source.write_bytes(motion_jpeg([(64, 48)] * 9, damaged=[4]))
    assert predict_video(source, predictor, 0.5, tmp_path / "out.csv").frames == 8


def test_video_ends_where_its_frames_change_in_size(tmp_path: Path, predictor: Predictor) -> None:
    source = tmp_path / "in.avi"
    source.write_bytes(motion_jpeg([(64, 48)] * 9 + [(48, 64)] * 5))
    summary = predict_video(source, predictor, 0.5, tmp_path / "out.csv", tmp_path / "out.webm")
    assert "change in size after 9 frames" in summary.problem
    assert len(read_frames(tmp_path / "out.webm")) == len(read_rows(tmp_path / "out.csv")) == 9


def test_names_that_are_no_text(tmp_path: Path, predictor: Predictor) -> None:
    broken = os.fsdecode(b"\xff\xfe")
    source = Path(shutil.copy(film(tmp_path / "in.mp4", 3), tmp_path / f"{broken}.mp4"))
    predict_video(source, predictor, 0.5, tmp_path / f"{broken}.csv", tmp_path / f"{broken}.webm")
    assert len(read_rows(tmp_path / f"{broken}.csv")) == 3 and (tmp_path / f"{broken}.webm").stat().st_size


# ---- the command


def test_predict_writes_and_skips_videos(
    tmp_path: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = film(tmp_path / "a.mp4")
    main(["predict", str(run), str(source), "--out", str(tmp_path / "out")])
    output = capfd.readouterr()
    assert output.err == "" and output.out.startswith("11 frames, ") and "out/a.webm\n" in output.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("a_frames.csv", "a.webm", "a.jpg", "predictions.json", "index.html", ".lock"),
    }
    rows = read_rows(tmp_path / "out" / "a_frames.csv")
    assert [int(row["frame"]) for row in rows] == list(range(11))
    predict_video(source, load_predictor([str(run)], device_name="cpu"), 0.5, tmp_path / "expected.csv")
    assert rows == read_rows(tmp_path / "expected.csv")
    page = (tmp_path / "out" / "index.html").read_text()
    cells = [re.sub(r"\W+$", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page)]
    assert cells[:4] == ["a.mp4", "11", "0.9", str(sum(row["polyps"] != "0" for row in rows))]
    command = [
        "predict",
        str(run),
        str(source),
        str(film(tmp_path / "b.mp4", 3)),
        "--out",
        str(tmp_path / "out"),
    ]
    main(command)
    assert "done before" in capfd.readouterr().out
    source.write_text("no video")
    with pytest.raises(SystemExit, match=r"a\.mp4: not a video"):
        main(command)
    assert {path.name for path in (tmp_path / "out" / "videos").iterdir()} == {"b.csv", "b.webm", "b.jpg"}
    assert not (tmp_path / "out" / "a.webm").exists()


def test_predict_reports_a_truncated_video_each_time(
    tmp_path: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = film(tmp_path / "in.avi", 40, code="MJPG")
    source.write_bytes(source.read_bytes()[:10_000])
    for _ in range(2):  # it is said again when nothing is left to do
        with pytest.raises(
            SystemExit, match=r"^polyp: \S+in\.avi: ends after \d+ of 40 frames, which are kept$"
        ):
            main(["predict", str(run), str(source), "--out", str(tmp_path / "out"), "--no-overlays"])
        assert (tmp_path / "out" / "in_frames.csv").is_file()
        assert not (tmp_path / "out" / "in.webm").exists()
