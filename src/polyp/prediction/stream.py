"""Images predicted one after the other: reading and writing go on beside the network."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from polyp.errors import InputError
from polyp.inference import image, polyps
from polyp.inference.predictor import BATCH, BATCH_PIXELS
from polyp.prediction import record as places
from polyp.prediction.inputs import Input
from polyp.prediction.job import Job
from polyp.prediction.record import Record
from polyp.report.pictures import overlay

WORKERS = max(1, min(4, (os.cpu_count() or 1) // 2))  # that read, and as many that write: more get in the network's way


def predicted(job: Job, todo: Sequence[Input]) -> Iterator[Record]:
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
        return image.read(path)
    except InputError as error:
        return error


def _batches(
    job: Job, pictures: Iterator[tuple[Input, np.ndarray | InputError]]
) -> Iterator[list[tuple[Input, np.ndarray]]]:
    """Images that the network sees together."""
    batch: list[tuple[Input, np.ndarray]] = []
    pixels = 0
    for one, picture in pictures:
        if isinstance(picture, InputError):
            job.problems.append(str(picture))
            job.predictions.forget(str(one.path))
            continue
        size = picture.shape[0] * picture.shape[1]
        if batch and (len(batch) == BATCH or pixels + size > BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append((one, picture))
        pixels += size
    if batch:
        yield batch


def _write(job: Job, one: Input, picture: np.ndarray, probability: np.ndarray) -> Record:
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
    return job.record(one, {"image": one.relative, "width": width, "height": height, "polyps": found})
