"""`polyp predict`: masks, overlays and polyps of new images, videos, and folders of these."""

import csv
import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from polyp import runs
from polyp.data.folder import LISTED
from polyp.errors import InputError, printable
from polyp.evaluation.sources import Source
from polyp.inference import image as images
from polyp.inference import polyps
from polyp.inference.backends import Predictor, open_models
from polyp.pictures import overlay
from polyp.prediction import record as places
from polyp.prediction.inputs import Input, Inputs, find, named
from polyp.prediction.record import Predictions, Record
from polyp.prediction.video import BATCH, BATCH_PIXELS, EndedEarly, Frame, Video, annotate

PREDICTIONS = "predictions"
WORKERS = max(1, min(4, (os.cpu_count() or 1) // 2))  # that read, and as many that write: more get in the network's way


@dataclass(frozen=True)
class Options:
    """How to predict; the fields are the options of `polyp predict`.

    Attributes:
        out: the folder to write to; by default one in the first run's folder, under predictions/.
        threshold: a pixel is polyp from this probability on; None for the first run's own.
        probabilities: also write the probabilities, as PNG of 16 bits: 65535 is 1.
        overlays: write the images and videos with the polyps drawn on them.
        tta: average over the image and its flips.
        backend: auto, checkpoint or onnx.
        device: auto, cpu, cuda, cuda:1, ...
        overwrite: predict again what is finished, and replace predictions of other models.
    """

    out: str | None = None
    threshold: float | None = None
    probabilities: bool = False
    overlays: bool = True
    tta: bool = False
    backend: str = "auto"
    device: str = "auto"
    overwrite: bool = False


@dataclass(frozen=True)
class _Job:
    """What all images of a call have in common."""

    predictor: Predictor
    threshold: float
    options: Options
    predictions: Predictions
    names: dict[Input, str]
    problems: list[str]

    def files(self, one: Input) -> list[str]:
        """What is to be made of an input."""
        name = self.names[one]
        if one.is_video:
            return [f"{places.VIDEOS}/{name}.csv"] + [f"{places.VIDEOS}/{name}.webm"] * self.options.overlays
        return (
            [f"{places.MASKS}/{name}.png"]
            + [f"{places.OVERLAYS}/{name}.jpg"] * self.options.overlays
            + [f"{places.PROBABILITIES}/{name}.png"] * self.options.probabilities
        )

    def finished(self, one: Input) -> bool:
        """Whether everything is there already, of the file as it is now."""
        known = self.predictions.records.get(str(one.path))
        return known is not None and known["stamp"] == one.stamp and set(self.files(one)) <= set(known["files"])


def predict(models: Sequence[str], given: Sequence[str], options: Options) -> Path:
    """Predict images and videos, and write what is found; what is finished already is left as it is.

    Args:
        models: run folders, checkpoints or exported models; of several the probabilities are averaged.
        given: images, videos, and folders of these.
        options: how.

    Returns:
        The folder that was written.

    Raises:
        InputError: anything that cannot work, before the work; after it, what could not be read.
    """
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise InputError(f"--threshold {options.threshold:g} must lie between 0 and 1")
    sources = [Source.of(one) for one in models]
    inputs = find(given)
    folder = Path(options.out).expanduser() if options.out else _folder(sources, inputs.root, options)
    _check_apart(folder, given, inputs)
    _check_any(inputs)
    predictor = open_models(models, options.backend, options.device, options.tta)
    threshold = predictor.threshold if options.threshold is None else options.threshold
    settings = {
        "runs": [os.path.relpath(one.home) for one in predictor.sources],
        "models": [_sha256(one.file) for one in predictor.sources],
        "backend": predictor.backend,
        "threshold": threshold,
        "tta": options.tta,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with runs.claimed(folder, "polyp predict"):
            predictions = Predictions(folder, settings, options.overwrite)
            try:
                known = {path: one["name"] for path, one in predictions.records.items()}
                job = _Job(predictor, threshold, options, predictions, named(inputs.each, known), inputs.problems)
                _work(job, inputs.each)
            finally:
                predictions.close()
    except OSError as error:
        raise InputError(f"cannot write to {printable(error.filename or folder)}: {error.strerror}") from error
    if job.problems:
        _complain(job.problems, len(inputs.each))
    return folder


def _folder(sources: Sequence[Source], root: Path, options: Options) -> Path:
    """Where predictions go by default: the same place for the same command."""
    best = runs.best_checkpoint(sources[0].home) == sources[0].file
    name = [sources[0].file.stem] * (not best) + [root.name or "images"] + ["tta"] * options.tta
    name += [] if options.threshold is None else [f"threshold-{options.threshold:g}"]
    name += [f"ensemble-of-{len(sources)}"] * (len(sources) > 1)
    return sources[0].home / PREDICTIONS / "_".join(name)


def _check_apart(folder: Path, given: Sequence[str], inputs: Inputs) -> None:
    """Predictions are written neither among the user's images nor over them."""
    out = folder.resolve()
    for one in given:
        if Path(one).is_dir() and out.is_relative_to(Path(one).resolve()):
            raise InputError(
                f"the predictions would be written to {printable(folder)}, which is in {printable(one)}, a folder of "
                "images: give an --out elsewhere"
            )
    for each in inputs.each:
        if each.path.resolve().is_relative_to(out):
            raise InputError(f"{printable(each.path)} lies in {printable(folder)}, where predictions are written")


def _check_any(inputs: Inputs) -> None:
    """At least one can be read."""
    problems = []
    for one in inputs.each:
        try:
            Video(one.path).close() if one.is_video else images.read(one.path)
            return
        except InputError as error:
            problems.append(str(error))
    more = f"; nor can the {len(problems) - 1} others be read" if len(problems) > 1 else ""
    raise InputError(problems[0] + more)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _work(job: _Job, each: Sequence[Input]) -> None:
    """Predict everything, and say how much and how fast."""
    todo = [one for one in each if job.options.overwrite or not job.finished(one)]
    done = len([one for one in each if not one.is_video]) - len([one for one in todo if not one.is_video])
    still = [one for one in todo if not one.is_video]
    started = time.perf_counter()
    with tqdm(total=done + len(still), initial=done, unit="image", leave=False, disable=None) as bar:
        for known in _images(job, still):
            job.predictions.add(known)
            bar.update()
    seconds = time.perf_counter() - started
    now = [job.predictions.records.get(str(one.path)) for one in each if not one.is_video]
    seen = [known for known in now if known is not None]
    if seen:
        parts = [_count(len(seen), "image"), f"{sum(bool(known['polyps']) for known in seen)} with polyps"]
        parts += [f"{done} done before"] * (0 < done < len(seen))
        parts += [f"{(len(seen) - done) / seconds:.1f} images/s" if done < len(seen) else "all done before"]
        print(", ".join([*parts, f"in {printable(os.path.relpath(job.predictions.folder))}"]))
    for one in each:
        if one.is_video:
            _tell_video(job, one, one in todo)


def _images(job: _Job, todo: Sequence[Input]) -> Iterator[Record]:
    """Predict images; reading and writing go on beside the network, a few images are in memory at a time."""
    writing: deque[tuple[int, Future[Record]]] = deque()
    with ThreadPoolExecutor(WORKERS) as readers, ThreadPoolExecutor(WORKERS) as writers:
        try:
            for batch in _batches(job, _read_ahead(readers, todo)):
                probabilities = job.predictor.predict_all([picture for _, picture in batch])
                for (one, picture), probability in zip(batch, probabilities, strict=True):
                    writing.append((probability.size, writers.submit(_write, job, one, picture, probability)))
                while len(writing) > BATCH or sum(pixels for pixels, _ in writing) > BATCH_PIXELS:
                    yield writing.popleft()[1].result()
            for _, future in writing:
                yield future.result()
        finally:
            readers.shutdown(wait=False, cancel_futures=True)


def _read_ahead(readers: ThreadPoolExecutor, todo: Sequence[Input]) -> Iterator[tuple[Input, np.ndarray | InputError]]:
    """The images in their order, with what is wrong with those that cannot be read."""
    reading: deque[tuple[Input, Future[np.ndarray | InputError]]] = deque()
    ahead = 1
    for one in todo:
        reading.append((one, readers.submit(_read, one.path)))
        while len(reading) > ahead:
            first, future = reading.popleft()
            picture = future.result()
            yield first, picture
            if not isinstance(picture, InputError):  # the images of a folder are of like sizes
                ahead = max(1, min(BATCH, BATCH_PIXELS // (picture.shape[0] * picture.shape[1])))
    for first, future in reading:
        yield first, future.result()


def _read(path: Path) -> np.ndarray | InputError:
    try:
        return images.read(path)
    except InputError as error:
        return error


def _batches(
    job: _Job, pictures: Iterator[tuple[Input, np.ndarray | InputError]]
) -> Iterator[list[tuple[Input, np.ndarray]]]:
    """Images that the network sees together."""
    batch: list[tuple[Input, np.ndarray]] = []
    pixels = 0
    for one, picture in pictures:
        if isinstance(picture, InputError):
            job.problems.append(str(picture))
            job.predictions.records.pop(str(one.path), None)  # what was made of it once is not of the file as it is now
            continue
        size = picture.shape[0] * picture.shape[1]
        if batch and (len(batch) == BATCH or pixels + size > BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append((one, picture))
        pixels += size
    if batch:
        yield batch


def _write(job: _Job, one: Input, picture: np.ndarray, probability: np.ndarray) -> Record:
    """Write what is found in an image."""
    mask = polyps.mask(probability, job.threshold)
    files = job.files(one)
    for file in files:
        if file.startswith(places.MASKS):
            content = cv2.imencode(".png", mask)[1]
        elif file.startswith(places.OVERLAYS):
            drawn = cv2.cvtColor(overlay(picture, mask), cv2.COLOR_RGB2BGR)
            content = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        else:
            content = cv2.imencode(".png", np.rint(probability * 65535).astype(np.uint16))[1]
        job.predictions.write(content.tobytes(), file)
    found = [asdict(polyp) for polyp in polyps.find(probability, job.threshold)]
    height, width = mask.shape
    return _record(job, one, {"image": one.relative, "width": width, "height": height, "polyps": found})


def _record(job: _Job, one: Input, content: dict[str, Any]) -> Record:
    about = {"source": str(one.path), "stamp": one.stamp, "name": job.names[one], "files": job.files(one)}
    return content | about


def _tell_video(job: _Job, one: Input, wanted: bool) -> None:
    """Predict a video unless that is done, and say what is in it."""
    started = time.perf_counter()
    try:
        if wanted:
            job.predictions.add(_video(job, one))
    except InputError as error:
        job.problems.append(str(error))
        return
    known = job.predictions.records[str(one.path)]
    if known["problem"]:
        job.problems.append(known["problem"])
    speed = f"{known['frames'] / (time.perf_counter() - started):.1f} frames/s" if wanted else "done before"
    where = os.path.relpath(job.predictions.folder / known["files"][-1])
    print(f"{_count(known['frames'], 'frame')}, {known['with_polyps']} with polyps, {speed}, in {printable(where)}")


def _video(job: _Job, one: Input) -> Record:
    """Predict a video, and write it and its table."""
    table, target = (job.predictions.part(f"video{ending}") for ending in (".csv", ".webm"))
    frames, with_polyps, problem = 0, 0, ""
    video = Video(one.path)
    video.close()
    with (
        table.open("w", newline="", encoding="utf-8") as file,
        tqdm(total=video.count, desc=printable(one.path.name), unit="frame", leave=False, disable=None) as bar,
    ):
        writer = csv.DictWriter(file, list(Frame(0, 0, [], 0).row), lineterminator="\n")
        writer.writeheader()
        try:
            drawn = target if job.options.overlays else None
            for frame in annotate(one.path, drawn, job.predictor, job.threshold):
                writer.writerow(frame.row)
                frames, with_polyps = frames + 1, with_polyps + bool(frame.polyps)
                bar.update()
        except EndedEarly as error:
            problem = str(error)
    for file_name in job.files(one):
        job.predictions.keep(table if file_name.endswith(".csv") else target, file_name)
    content = {"video": one.relative, "frames": frames, "rate": video.rate, "with_polyps": with_polyps}
    return _record(job, one, content | {"problem": problem})


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _complain(problems: Sequence[str], count: int) -> None:
    """Say what could not be read."""
    if len(problems) == 1:
        raise InputError(problems[0])
    more = [f"... and {len(problems) - LISTED} more"] * (len(problems) > LISTED)
    headline = f"{len(problems)} problems with {_count(count, 'input')}; the others are done"
    raise InputError("\n  ".join([headline, *problems[:LISTED], *more]))
