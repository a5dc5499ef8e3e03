"""Polyps in a video: the video with them drawn on it, and what each frame shows."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from polyp.errors import InputError, describe_error, printable
from polyp.inference import polyps
from polyp.inference.polyps import Polyp
from polyp.inference.predictor import BATCH, BATCH_PIXELS, Predictor
from polyp.prediction.webm import Writer, address

SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv", ".ogv"}
"""Of the files that are taken for videos."""

MAGIC = (
    *((4, kind) for kind in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),  # mp4, mov
    *((0, start) for start in (b"RIFF", b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3")),  # avi, mkv and webm, mpg
    *((0, start) for start in (b"G", b"\x30\x26\xb2\x75", b"FLV", b"OggS")),  # ts, wmv, flv, ogv
    (4, b"G"),  # m2ts
)
"""Where each kind of video has which bytes. FFmpeg also opens playlists, which make it open what they name."""

RATES = 1, 240
"""Frames a second that are believed; of a video that claims others, 25 are written."""


@dataclass(frozen=True)
class Frame:
    """What a frame shows.

    Attributes:
        number: from 0.
        seconds: its time in the video.
        polyps: the largest first.
        highest: its highest probability, 0-1.
    """

    number: int
    seconds: float
    polyps: Sequence[Polyp]
    highest: float

    @property
    def share(self) -> float:
        """Of the frame's pixels that the polyps cover, 0-1."""
        return sum(polyp.share for polyp in self.polyps)

    @property
    def row(self) -> dict[str, Any]:
        """Its row of the video's table; a box is its left, top, width and height in pixels."""
        return {
            "frame": self.number,
            "seconds": f"{self.seconds:.3f}",
            "polyps": len(self.polyps),
            "share": f"{self.share:.6f}",
            "max_probability": f"{self.highest:.4f}",
            "mean_probability": f"{polyps.mean_probability(self.polyps):.4f}" if self.polyps else "",
            "boxes": "; ".join(f"{p.left} {p.top} {p.width} {p.height}" for p in self.polyps),
        }


class EndedEarly(InputError):
    """A video has fewer frames than it says; those that could be read are kept."""


class Video:
    """A video that is being read. Frames are upright, whatever way the camera was held.

    Args:
        path: of the file.

    Attributes:
        count: frames that it says it has; None if it does not say.
        rate: frames a second, the average if it varies.
        exact: whether `count` is counted, not estimated from the duration.

    Raises:
        InputError: it is not there, or no video that can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"{printable(path)}: {'not a file' if path.exists() else 'not there'}")
        try:
            with path.open("rb") as file:
                start = file.read(16)
        except OSError as error:
            raise InputError(f"{printable(path)}: cannot be read ({describe_error(error)})") from error
        known = any(start[at : at + len(bytes_)] == bytes_ for at, bytes_ in MAGIC)
        # Quiet: what is wrong is said below.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        self._capture = cv2.VideoCapture(address(path), cv2.CAP_FFMPEG) if known else None
        if self._capture is None or not self._capture.isOpened():
            raise InputError(f"{printable(path)}: not a video that can be read, or a damaged one")
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = round(count) if 0 < count < 1e9 else None
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if RATES[0] <= rate <= RATES[1] else 25.0
        self.exact = start[4:8] in {kind for at, kind in MAGIC if at == 4} or start[:4] == b"RIFF"

    def read(self) -> tuple[float, np.ndarray] | None:
        """The next frame: its time in seconds, and (H, W, 3) uint8 RGB; None after the last."""
        assert self._capture is not None
        there, picture = self._capture.read()
        if not there:
            return None
        return self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        """Let go of the file."""
        if self._capture is not None:
            self._capture.release()

    def complete(self, frames: int) -> bool:
        """Whether so many are all, as far as can be known: an estimate may be off by half a second."""
        return self.count is None or frames >= self.count - (0 if self.exact else max(1, round(self.rate / 2)))


@dataclass(frozen=True)
class Seen:
    """What a video shows.

    Attributes:
        frames, with_polyps: how many there are, and show one.
        problem: why there are fewer than it says, in a line; blank if there are not.
    """

    frames: int
    with_polyps: int
    problem: str


def tabulate(frames: Iterable[Frame], table: Path) -> Seen:
    """Write the table of a video, a row for each frame, while the frames come.

    Raises:
        InputError: as `annotate` does, but for a video that ends early: that is told.
    """
    count, with_polyps, problem = 0, 0, ""
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Frame(0, 0, [], 0).row), lineterminator="\n")
        writer.writeheader()
        try:
            for frame in frames:
                writer.writerow(frame.row)
                count, with_polyps = count + 1, with_polyps + bool(frame.polyps)
        except EndedEarly as error:
            problem = str(error)
    return Seen(count, with_polyps, problem)


def annotate(
    video: Path,
    target: Path | None,
    predictor: Predictor,
    threshold: float,
    told: Callable[[int, int | None], None] = lambda done, count: None,
    most_frames: int | None = None,
) -> Iterator[Frame]:
    """Draw the polyps of a video on it; a few frames are in memory at a time.

    The new video has the same size, one pixel more where that is odd, which VP8 does not allow. It has the same frame
    rate, the average one if it varies; each frame's `seconds` are the original's. There is no sound.

    Args:
        video: any that OpenCV reads.
        target: a .webm file (VP8), which every browser plays; it is there, in one piece, when the last frame is given.
            None draws nothing.
        predictor: what predicts.
        threshold: a pixel is polyp from this probability on.
        told: is called with the frames that are done, and how many there should be (None if nobody knows).
        most_frames: that are read; the rest is left out.

    Yields:
        Each frame, in order. Whoever stops before the last leaves no file.

    Raises:
        EndedEarly: after the last frame that could be read; they are kept.
        InputError: no frame can be read, or the target cannot be written.
    """
    source = Video(video)
    count = source.count if most_frames is None else min(source.count or most_frames, most_frames)
    part = target and target.with_name(f".{target.stem}.part.webm")
    writer = Writer(part, source.rate)
    done, size_changed = 0, False
    shape: tuple[int, ...] | None = None
    try:
        with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as writing:
            ahead = reading.submit(_batch, source, most_frames)
            written: Future[None] | None = None
            while batch := ahead.result():
                left = None if most_frames is None else most_frames - done - len(batch)
                ahead = reading.submit(_batch, source, left)
                shape = shape or batch[0][1].shape
                same = [picture.shape == shape for _, picture in batch]
                size_changed = not all(same)
                batch = batch[: same.index(False)] if size_changed else batch
                probabilities = predictor.predict_all([picture for _, picture in batch]) if batch else []
                if written is not None:
                    written.result()
                masks = [polyps.mask(probability, threshold) for probability in probabilities]
                written = writing.submit(writer.write, [picture for _, picture in batch], masks)
                for (seconds, _), probability in zip(batch, probabilities, strict=True):
                    yield Frame(done, seconds, polyps.find(probability, threshold), float(probability.max()))
                    done += 1
                told(done, count)
                if size_changed:
                    break
            ahead.result()
            if written is not None:
                written.result()
        if not done:
            raise InputError(f"{printable(video)}: no frame of it can be read")
        writer.close()
        if part and target:
            os.replace(part, target)
    finally:
        source.close()
        writer.close()
        if part:
            part.unlink(missing_ok=True)
    if size_changed:
        raise EndedEarly(f"{printable(video)}: its frames change in size after {done} frames, which are kept")
    if most_frames is None and not source.complete(done):
        raise EndedEarly(f"{printable(video)}: ends after {done} of {source.count} frames, which are kept")


def _batch(source: Video, most: int | None) -> list[tuple[float, np.ndarray]]:
    """The next frames; none at the end."""
    frames: list[tuple[float, np.ndarray]] = []
    limit = BATCH if most is None else min(BATCH, most)
    while len(frames) < limit and (frame := source.read()) is not None:
        frames.append(frame)
        limit = min(limit, max(1, BATCH_PIXELS // (frame[1].shape[0] * frame[1].shape[1])))
    return frames
