"""`polyp predict`: masks, overlays and polyps of new images, videos, and folders of these."""

import os
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from polyp import files, runs
from polyp.errors import InputError, describe_error, printable, several
from polyp.inference import image as images
from polyp.inference.predictor import COMPARED, load_predictor
from polyp.prediction.inputs import Input, Inputs, find, named
from polyp.prediction.job import Job, Options
from polyp.prediction.record import Predictions, Record
from polyp.prediction.stream import predicted
from polyp.prediction.video import Video, annotate, tabulate
from polyp.runs.model import Source

PREDICTIONS = "predictions"


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
    predictor = load_predictor(models, options.compute, options.device, options.tta)
    if not predictor.is_exact:
        print(predictor.describe_deviation(_sample(inputs)))
    threshold = predictor.threshold if options.threshold is None else options.threshold
    settings = {
        "runs": [os.path.relpath(one.home) for one in predictor.sources],
        "models": [files.fingerprint(one.file) for one in predictor.sources],
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
                job = Job(predictor, threshold, options, predictions, named(inputs.each, known), inputs.problems)
                _work(job, inputs.each)
            finally:
                predictions.close()
    except OSError as error:
        raise InputError(f"cannot write to {printable(error.filename or folder)}: {describe_error(error)}") from error
    if job.problems:
        if len(job.problems) == 1:
            raise InputError(job.problems[0])
        headline = f"{len(job.problems)} problems with {_count(len(inputs.each), 'input')}; the others are done"
        raise several(headline, job.problems)
    return folder


def _folder(sources: Sequence[Source], root: Path, options: Options) -> Path:
    """Where predictions go by default: the same place for the same command."""
    best = runs.best_checkpoint(sources[0].home) == sources[0].file
    name = [sources[0].file.stem] * (not best) + [root.name or "images"] + ["tta"] * options.tta
    name += [options.compute] * (options.compute != "exact")
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


def _sample(inputs: Inputs) -> list[np.ndarray]:
    """Images that a computation other than the exact one is compared on: the first of the inputs, or of a video."""
    pictures: list[np.ndarray] = []
    for each in inputs.each:
        with suppress(InputError):  # reported with the other problems
            if each.is_video:
                with closing(Video(each.path)) as video:
                    frame = video.read()
                pictures += [] if frame is None else [frame[1]]
            else:
                pictures.append(images.read(each.path))
        if len(pictures) == COMPARED:
            break
    return pictures


def _work(job: Job, each: Sequence[Input]) -> None:
    """Predict everything, and say how much and how fast."""
    todo = [one for one in each if job.options.overwrite or not job.finished(one)]
    done = len([one for one in each if not one.is_video]) - len([one for one in todo if not one.is_video])
    still = [one for one in todo if not one.is_video]
    started = time.perf_counter()
    with tqdm(total=done + len(still), initial=done, unit="image", leave=False, disable=None) as bar:
        for known in predicted(job, still):
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


def _tell_video(job: Job, one: Input, wanted: bool) -> None:
    """Predict a video unless that is done, and say what is in it."""
    started = time.perf_counter()
    try:
        if wanted:
            job.predictions.add(_video(job, one))
    except InputError as error:
        job.problems.append(str(error))
        job.predictions.forget(str(one.path))
        return
    known = job.predictions.records[str(one.path)]
    if known["problem"]:
        job.problems.append(known["problem"])
    speed = f"{known['frames'] / (time.perf_counter() - started):.1f} frames/s" if wanted else "done before"
    where = os.path.relpath(job.predictions.folder / known["files"][-1])
    print(f"{_count(known['frames'], 'frame')}, {known['with_polyps']} with polyps, {speed}, in {printable(where)}")


def _video(job: Job, one: Input) -> Record:
    """Predict a video, and write it and its table."""
    table, target = (job.predictions.part(f"video{ending}") for ending in (".csv", ".webm"))
    video = Video(one.path)
    video.close()
    drawn = target if job.options.overlays else None
    frames = annotate(one.path, drawn, job.predictor, job.threshold)
    name = printable(one.path.name)
    with tqdm(frames, total=video.count, desc=name, unit="frame", leave=False, disable=None) as bar:
        seen = tabulate(bar, table)
    for file_name in job.files(one):
        job.predictions.keep(table if file_name.endswith(".csv") else target, file_name)
    return job.record(one, {"video": one.relative, "rate": video.rate, **vars(seen)})


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
