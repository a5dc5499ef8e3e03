"""`polyp predict`: masks, overlays and polyps of new images, videos, and folders of these."""

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from polyp import files, terminal
from polyp.commands.predict.inputs import Input, find_inputs
from polyp.commands.predict.options import Options
from polyp.commands.predict.page import write_page
from polyp.commands.predict.results import PAGE, Results, is_single, write_jpeg
from polyp.commands.predict.video import open_video, predict_video
from polyp.errors import InputError, printable, several
from polyp.images import read_image
from polyp.inference.predictor import BATCH, COMPARED, Predictor, load_predictor, predict_stream
from polyp.processors import count_processors
from polyp.report.tables import count
from polyp.runs.folder import RunFolder, lock_folder
from polyp.runs.model import ModelSource, find_sources

PREDICTIONS = "predictions"
WORKERS = max(2, min(8, count_processors()))  # threads that read and write images; more slow the network down

A = TypeVar("A")
B = TypeVar("B")


def run(options: Options) -> Path:
    """Predict images and videos and write the results, except for inputs that are finished already.

    Returns the folder of predictions. Raises InputError before the prediction for options or inputs that
    cannot work, and after it for files that could not be read.
    """
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise InputError(f"--threshold {options.threshold:g} must lie between 0 and 1")
    models = [options.model, *options.with_]
    sources = find_sources(models)
    root, inputs, problems = find_inputs(options.inputs)
    name = Path(inputs[0].relative).stem if is_single(options.inputs) else root.name or "images"
    folder = Path(options.out).expanduser() if options.out else _default_folder(sources[0], name, options)
    _check_apart(folder, options.inputs, inputs)
    with terminal.loading():
        predictor = load_predictor(models, options.compute, options.device, options.tta)
    # For exported models, `polyp export` has measured it: loading the checkpoint would take seconds.
    if not predictor.is_exact and not any(source.is_exported for source in sources):
        print(predictor.describe_deviation(list(islice(_read_samples(inputs), COMPARED))))
    settings = {
        "runs": [os.path.relpath(source.home) for source in sources],
        "models": [files.fingerprint(source.file) for source in sources],
        "backend": predictor.backend,
        "threshold": predictor.threshold if options.threshold is None else options.threshold,
        "tta": options.tta,
    }
    files.check_writable(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, "polyp predict"):
        results = Results(folder, settings, options, inputs)
        try:
            _predict_images([item for item in inputs if not item.is_video], predictor, results, problems)
            for item in inputs:
                if item.is_video:
                    _predict_video(item, predictor, results, problems)
        finally:
            results.save()
        if results.records:
            write_page(folder, settings, list(results.records.values()))
            terminal.print_places({"page": printable(os.path.relpath(folder / PAGE))})
    if is_new and not results.records:
        shutil.rmtree(folder)  # nothing could be read
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        headline = f"{len(problems)} problems with {count(len(inputs), 'input')}; the others are done"
        raise several(headline, sorted(problems))
    return folder


def _default_folder(first: ModelSource, name: str, options: Options) -> Path:
    """The default output folder for inputs of this name: the same folder for the same options."""
    words = [name]
    if first.file != RunFolder(first.home).best_checkpoint:
        words.insert(0, first.file.stem)
    if options.tta:
        words.append("tta")
    if options.compute != "exact":
        words.append(options.compute)
    if options.threshold is not None:
        words.append(f"threshold-{options.threshold:g}")
    if options.with_:
        words.append(f"ensemble-of-{1 + len(options.with_)}")
    return first.output_folder / PREDICTIONS / "_".join(words)


def _check_apart(folder: Path, names: Sequence[str], inputs: Sequence[Input]) -> None:
    """Refuse an output folder inside a folder of inputs, and inputs inside the output folder."""
    out = folder.resolve()
    for name in names:
        if Path(name).is_dir() and out.is_relative_to(Path(name).resolve()):
            place = f"{printable(folder)}, which is in {printable(name)}, a folder of images"
            raise InputError(f"the predictions would be written to {place}: give an --out elsewhere")
    for item in inputs:
        if item.path.resolve().is_relative_to(out):
            place = f"{printable(folder)}, where predictions are written"
            raise InputError(f"{printable(item.path)} lies in {place}: give an --out elsewhere")


def _read_samples(inputs: Sequence[Input]) -> Iterator[np.ndarray]:
    """The images that can be read, and the first frames of the videos."""
    for item in inputs:
        with suppress(InputError):  # reported when the input is predicted
            if item.is_video:
                with open_video(item.path) as video:
                    yield from (image for _, image in islice(video.frames, 1))
            else:
                yield read_image(item.path)


def _predict_images(images: list[Input], predictor: Predictor, results: Results, problems: list[str]) -> None:
    """Predict images, and print how many and how fast; threads read and write while the network computes."""
    unfinished = [item for item in images if str(item.path) not in results.records]
    finished, started = len(images) - len(unfinished), time.perf_counter()

    def read(item: Input) -> tuple[Input, np.ndarray | None]:
        try:
            return item, read_image(item.path)
        except InputError as error:
            problems.append(str(error))
            return item, None

    with ThreadPoolExecutor(WORKERS) as pool, terminal.progress() as bar:
        task = bar.add_task("predicting", total=len(images), completed=finished, first=finished)
        arrays = ((item, image) for item, image in _map_ahead(pool, read, unfinished) if image is not None)
        predictions = predict_stream(predictor, arrays)
        for item, record in _map_ahead(pool, lambda result: results.write_image(*result), predictions):
            results.add(item, record)
            bar.advance(task)
    seconds = time.perf_counter() - started
    records = [results.records[str(item.path)] for item in images if str(item.path) in results.records]
    if records:
        predicted, polyps = len(records) - finished, sum(bool(record["polyps"]) for record in records)
        speed = f"{predicted / seconds:.1f} images/s" if predicted else "all done before"
        if finished and predicted:
            speed = f"{finished} done before, {speed}"
        folder = printable(os.path.relpath(results.folder))
        print(f"{count(len(records), 'image')}, {polyps} with polyps, {speed}, in {folder}")


def _map_ahead(pool: Executor, function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Like `Executor.map`, but takes at most `BATCH` items ahead of the result that is asked for."""
    pending: deque[Future[B]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > BATCH:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _predict_video(item: Input, predictor: Predictor, results: Results, problems: list[str]) -> None:
    """Predict a video unless it is finished, and print a summary."""
    speed, started = "done before", time.perf_counter()
    if str(item.path) not in results.records:
        table, *drawings = (results.folder / name for name in results.files(item))
        still, drawing = drawings if drawings else (None, None)
        threshold = results.settings["threshold"]
        try:
            with terminal.progress() as bar:
                task = bar.add_task(printable(item.path.name), total=None)

                def update(completed: int, total: int | None) -> None:
                    bar.update(task, completed=completed, total=total)

                summary = predict_video(item.path, predictor, threshold, table, drawing, progress=update)
            if still:
                write_jpeg(still, summary.still)
        except InputError as error:
            problems.append(str(error))
            return
        values = {name: value for name, value in vars(summary).items() if name != "still"}
        results.add(item, {"video": item.relative, **values})
        speed = f"{summary.frames / (time.perf_counter() - started):.1f} frames/s"
    record = results.records[str(item.path)]
    if record["problem"]:
        problems.append(record["problem"])
    file = printable(os.path.relpath(results.folder / record["files"][-1]))
    print(f"{count(record['frames'], 'frame')}, {record['with_polyps']} with polyps, {speed}, in {file}")
