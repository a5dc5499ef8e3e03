"""Videos: frames in, frames out, and the polyps in each frame."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer

from polyp.errors import InputError, describe_error, printable
from polyp.files import atomic_write
from polyp.inference.polyps import Prediction
from polyp.inference.predictor import Predictor, predict_stream
from polyp.report.pictures import overlay
from polyp.report.tables import to_csv

SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts"}
SUFFIXES |= {".wmv", ".flv", ".ogv"}
"""File name endings that are taken for videos."""

SAFE = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegvideo,mpegts,asf,flv,ogg",
    "protocol_whitelist": "none",
}
"""FFmpeg's options for reading: other formats, such as playlists, open files that they name."""

VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"}
"""FFmpeg's options for writing VP9, which every browser plays: of constant quality, and fast."""

# The first columns of a video's table and their formats. A column for each box follows: its left, top, width
# and height in pixels.
COLUMNS = {
    "frame": "d",
    "seconds": ".3f",
    "polyps": "d",
    "share": ".6f",
    "max_probability": ".4f",
    "mean_probability": ".4f",
}


@dataclass(frozen=True)
class Video:
    """A video that is being read."""

    rate: float  # frames a second, the average if it varies; 25 where that is below 1 or above 240
    count: int  # of frames by the file's header, or 0 if that does not say
    tolerance: int  # by which the count may be too large: half a second where it comes from the duration
    frames: Iterator[tuple[float, np.ndarray]]  # time in seconds, and upright pixels (H, W, 3) uint8 RGB


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video file; raises InputError if it does not exist or is no video that can be read."""
    with ExitStack() as stack:
        try:
            # FFmpeg is given an open file, since it takes some names for addresses.
            file = stack.enter_context(path.open("rb"))
            container = cast(InputContainer, stack.enter_context(av.open(file, container_options=SAFE)))
            stream = container.streams.video[0]
        except (OSError, av.FFmpegError, IndexError) as error:
            reason = describe_error(error)
            raise InputError(
                f"{printable(path)}: not a video that can be read, or damaged ({reason})"
            ) from error
        rate = float(stream.average_rate or 0)
        rate = rate if 1 <= rate <= 240 else 25.0
        estimate = round((container.duration or 0) / av.time_base * rate)
        tolerance = 0 if stream.frames else max(1, round(rate / 2))
        yield Video(rate, stream.frames or estimate, tolerance, _decode(container, rate))


def _decode(container: InputContainer, rate: float) -> Iterator[tuple[float, np.ndarray]]:
    """The frames; damaged frames are left out, and the iteration ends where the file is damaged."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    start = float((stream.start_time or 0) * (stream.time_base or 0))
    number = 0
    with suppress(av.FFmpegError):
        for packet in container.demux(stream):
            with suppress(av.error.InvalidDataError):
                for frame in packet.decode():
                    image = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    seconds = number / rate if frame.time is None else frame.time - start
                    yield seconds, np.ascontiguousarray(image)
                    number += 1


@contextmanager
def write_video(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a WebM video of `rate` frames a second; if anything is raised, no file is left.

    Yields:
        A function that adds a frame (H, W, 3) uint8 RGB.

    Raises:
        WriteError: the file cannot be written.
    """
    with atomic_write(path) as part, part.open("wb") as file, av.open(file, "w", "webm") as container:
        stream = container.add_stream("libvpx-vp9", Fraction(rate).limit_denominator(1001), VP9)
        stream.pix_fmt = "yuv420p"

        def write(image: np.ndarray) -> None:
            if not stream.codec_context.is_open:
                stream.height, stream.width = image.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))

        yield write
        container.mux(stream.encode())


@dataclass(frozen=True, eq=False)
class VideoSummary:
    """What a video shows."""

    rate: float  # frames a second
    frames: int  # number of frames
    with_polyps: int  # number of frames that show a polyp
    most_polyps: int  # the largest number of polyps in a frame
    share: float  # the largest share of a frame's pixels that are polyp, 0-1
    max_probability: float  # of a pixel in any frame
    still: np.ndarray  # (H, W, 3) uint8 RGB, the frame with the largest share, with its polyps drawn
    problem: str  # why there are fewer frames than the header says, in a line; else empty


def predict_video(
    path: Path,
    predictor: Predictor,
    threshold: float,
    table: Path,
    drawing: Path | None = None,
    max_frames: int | None = None,
    progress: Callable[[int, int | None], object] = lambda completed, total: None,
) -> VideoSummary:
    """Find the polyps in each frame of a video; a few frames are in memory at a time.

    If a video breaks off or its frames change in size, the frames before that are kept.

    Args:
        path: of the video.
        predictor: computes the probabilities.
        threshold: a pixel is polyp from this probability on.
        table: a CSV file to write, with a row for each frame.
        drawing: a .webm file to write, the video with the polyps drawn on it: of the same size and frame
            rate, the average one if it varies, without sound. None writes none.
        max_frames: frames that are read; None for all.
        progress: called with the number of frames processed and the number of all (None if unknown).

    Raises:
        InputError: no frame can be read, or a file cannot be written; no files are left.
    """
    name, problem = printable(path), ""
    rows: list[dict[str, Any]] = []
    largest, still = -1.0, np.zeros((0, 0, 3), np.uint8)
    with open_video(path) as video, ExitStack() as stack:
        part = stack.enter_context(atomic_write(table))
        write = stack.enter_context(write_video(drawing, video.rate)) if drawing else None
        for seconds, image, probability in predict_stream(predictor, islice(video.frames, max_frames)):
            if rows and image.shape != still.shape:
                problem = f"{name}: its frames change in size after {len(rows)} frames, which are kept"
                break
            prediction = Prediction(probability, threshold)
            picture = overlay(image, prediction.mask, labels=prediction.labels)
            if write:
                write(picture)
            rows.append({"frame": len(rows), "seconds": seconds} | _describe_frame(prediction))
            if rows[-1]["share"] > largest:
                largest, still = rows[-1]["share"], picture
            progress(len(rows), min(video.count, max_frames or video.count) or None)
        if not rows:
            raise InputError(f"{name}: no frame of it can be read")
        count = max(row["polyps"] for row in rows)
        columns = [*COLUMNS, *(f"box_{number}" for number in range(1, count + 1))]
        cells = [{key: format(value, COLUMNS.get(key, "")) for key, value in row.items()} for row in rows]
        part.write_text(to_csv(cells, columns), encoding="utf-8")
    if not problem and max_frames is None and len(rows) < video.count - video.tolerance:
        problem = f"{name}: ends after {len(rows)} of {video.count} frames, which are kept"
    with_polyps, maximum = sum(row["polyps"] > 0 for row in rows), max(row["max_probability"] for row in rows)
    return VideoSummary(video.rate, len(rows), with_polyps, count, largest, maximum, still, problem)


def _describe_frame(prediction: Prediction) -> dict[str, Any]:
    """The row of a frame in the video's table, without the frame's number and time."""
    polyps = prediction.polyps
    row: dict[str, Any] = {
        "polyps": len(polyps),
        "share": sum(polyp.share for polyp in polyps),
        "max_probability": float(prediction.probability.max()),
    }
    if polyps:
        pixels = sum(polyp.pixels for polyp in polyps)
        row["mean_probability"] = sum(polyp.probability * polyp.pixels for polyp in polyps) / pixels
    for number, polyp in enumerate(polyps, start=1):
        row[f"box_{number}"] = " ".join(map(str, polyp.box))
    return row
