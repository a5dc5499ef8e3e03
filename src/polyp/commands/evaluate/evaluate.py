"""`polyp evaluate`: score a trained model, or several together, on its test images or on any others."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from polyp import __version__, files, terminal
from polyp.commands.evaluate.contamination import FITTED, TrainingData
from polyp.commands.evaluate.corruptions import CORRUPTIONS_FILE, print_corruptions, score_corruptions
from polyp.commands.evaluate.options import Options
from polyp.commands.evaluate.page import PAGE_FILE, write_page
from polyp.commands.evaluate.scoring import (
    Image,
    Score,
    score_dice,
    score_image,
    score_images,
    summarise_images,
)
from polyp.commands.evaluate.summary import print_metrics, print_sets
from polyp.commands.evaluate.testsets import TestSet, find_test_sets, subset_of
from polyp.commands.options import name_options
from polyp.data.datamodule import NORMAL
from polyp.data.layouts import NoMasksError
from polyp.errors import InputError, shell_word
from polyp.inference.predictor import COMPARED, Predictor, load_predictor
from polyp.metrics import literature
from polyp.metrics.calibration import RiskControl, risk_threshold
from polyp.metrics.suite import get_missed_shares
from polyp.report.tables import Table
from polyp.runs.folder import RunFolder, replace_folder
from polyp.runs.model import ModelSource, find_sources

log = logging.getLogger(__name__)

T = TypeVar("T")

EVALUATIONS_FOLDER = "evaluations"
PACKAGES = ("torch", "segmentation-models-pytorch")  # whose versions metrics.json records


def run(options: Options) -> list[dict[str, Any]]:
    """Score models, and write the results to evaluations/ in the folder of the first model's run or sweep.

    Returns:
        The content of each evaluation's metrics.json.

    Raises:
        InputError: the input cannot work; raised before the network is used if that can be known.
    """
    sources = find_sources(options.models)
    if options.data is None and sources[0].config is None:
        raise InputError(
            f"{sources[0].file} is not in a run's folder: say with --data FOLDER what to score it on"
        )
    training = TrainingData(sources, options.root, options.archive, needed=options.data is None)
    warnings: list[str] = []
    if options.data is None:
        test_sets = _find_run_images(training, options.subset)
        _check_models(training, test_sets, options.subset, warnings)
    else:
        try:
            test_sets = find_test_sets(options.data, normal=options.normal, **options.layout)
        except InputError as error:
            normal = ", or with --normal that no image shows a polyp" * isinstance(error, NoMasksError)
            raise InputError(name_options(str(error)) + normal) from error
    folders = [_choose_folder(sources[0], test_set, options, len(test_sets)) for test_set in test_sets]
    if message := literature.unavailable():
        log.warning("%s", message)
    with terminal.loading("loading the model"):
        predictor = load_predictor(
            options.models, options.compute, options.device, options.tta, options.scales
        )
    for folder in folders:
        files.check_writable(folder)
    control = None
    if not options.normal and options.subset == "test":
        control = _control_risk(predictor, training, options, warnings)

    evaluations = []
    for test_set, folder in zip(test_sets, folders, strict=True):
        started = time.time()
        predictors = _choose_predictors(predictor, test_set)
        images = _score(predictors, test_set, options.threshold, score_image)
        metrics = {
            "models": [os.path.relpath(source.file) for source in sources],
            "images": test_set.name,
            "normal": test_set.normal,
            "fingerprint": test_set.fingerprint,
            "n": len(images),
            "threshold": options.threshold,
            "tta": {"flips": options.tta, "scales": list(options.scales)},
            "computed": predictor.backend,
            "deviation": 0.0,
            **summarise_images(images, options.threshold, test_set.normal, control),
            "training_images": options.data
            and _describe_training_images(training, test_set, images, options),
            "warnings": list(warnings),
            "seconds": round(time.time() - started, 1),
            "versions": {"polyp": __version__} | {name: version(name) for name in PACKAGES},
        }
        if not predictor.is_exact:
            pixels = [test_set.read(pair)[0] for pair in test_set.pairs[:COMPARED]]
            metrics["deviation"] = predictor.deviation(pixels)
            metrics["warnings"].append(predictor.describe_deviation(pixels))
        if options.corruptions is not None and not test_set.normal:
            score_set = partial(_score, predictors, threshold=options.threshold, score_function=score_dice)
            metrics["corruptions"] = score_corruptions(test_set, images, options.corruptions, score_set)
        with replace_folder(folder, "polyp evaluate") as temporary:
            if "corruptions" in metrics:
                files.write_text(temporary / CORRUPTIONS_FILE, Table(metrics["corruptions"]).to_csv())
            RunFolder(temporary).write_rows([image.row for image in images])
            with terminal.status("drawing the page"):
                write_page(metrics, images, test_set, predictors, temporary / PAGE_FILE)
            RunFolder(temporary).write_metrics(metrics)
        print_metrics(metrics, images)
        if "corruptions" in metrics:
            print_corruptions(metrics["corruptions"])
        _print_places(folder, metrics, options.models)
        evaluations.append(metrics)
    if len(evaluations) > 1:
        print_sets(evaluations)
    return evaluations


def _find_run_images(training: TrainingData, subset: str) -> list[TestSet]:
    """A subset of the first run's images, or of all runs if they are folds; with the test, normal frames."""
    data = training.datasets[training.sources[0].home]
    test_sets = []
    for name in [subset, NORMAL] if subset == "test" else [subset]:
        test_set = subset_of(data, name)
        if training.has_folds:
            models = training.assign_models(name)
            pairs = [data.pairs[data.rows[stem]] for stem in models]
            name = "out-of-fold" if name == "test" else name
            test_set = replace(test_set, name=name, pairs=pairs, models=models)
        if test_set.pairs:
            test_sets.append(test_set)
    return test_sets


def _check_models(
    training: TrainingData, test_sets: Sequence[TestSet], subset: str, warnings: list[str]
) -> None:
    """Add a warning for each reason why the numbers may be too good.

    Raises:
        InputError: a model was trained on the test images of the first one, and they are not folds.
    """
    first = training.sources[0]
    if training.has_folds:
        warnings.append(f"each image is scored by the runs that have it among their {subset} images alone")
    if subset != "test":
        warnings.append(f"these are the run's {subset} images, which training has seen")
    for source in training.sources[1:] if not training.has_folds else ():
        if training.get_data(source) is None:
            warnings.append(f"it is not known what {source.file} was trained on: perhaps on these images")
        elif subset == "test" and any(training.may_include(source, images, FITTED) for images in test_sets):
            raise InputError(
                f"{source.home} was trained on some of the {len(test_sets[0].pairs)} test images of "
                f"{first.home}: average only runs of one split"
            )
    for model, origin in training.origins if subset == "test" else ():
        sets = [subset_of(training.datasets[model.home], subset)] if training.has_folds else test_sets
        if training.get_data(origin) is None:
            warning = f"it is not known what {origin.file} was trained on: perhaps on these images"
        else:
            warning = (
                f"{origin.home}, which training started from, was trained or validated on some of these "
                "images: the numbers are too good"
            )
        is_new = warning not in warnings
        if is_new and any(training.may_include(origin, images, FITTED) for images in sets):
            warnings.append(warning)
    fingerprint = training.datasets[first.home].inspection.fingerprint
    if first.data_fingerprint not in (None, fingerprint):
        warnings.append(
            f"the data have changed since training: fingerprint {fingerprint}, then {first.data_fingerprint}"
        )


def _choose_predictors(predictor: Predictor, test_set: TestSet) -> dict[str, Predictor]:
    """The predictor of each image by stem: of the image's models, or of all models."""
    if not test_set.models:
        return {pair.stem: predictor for pair in test_set.pairs}
    parts = {numbers: predictor.select(numbers) for numbers in set(test_set.models.values())}
    return {stem: parts[numbers] for stem, numbers in test_set.models.items()}


def _score(
    predictors: Mapping[str, Predictor], test_set: TestSet, threshold: float, score_function: Score[T]
) -> list[T]:
    """Score each image of a set with its predictor."""
    scores: dict[str, T] = {}
    for predictor in dict.fromkeys(predictors.values()):
        pairs = [pair for pair in test_set.pairs if predictors[pair.stem] is predictor]
        results = score_images(predictor, replace(test_set, pairs=pairs), threshold, score_function)
        scores |= {pair.stem: result for pair, result in zip(pairs, results, strict=True)}
    return [scores[pair.stem] for pair in test_set.pairs]


def _choose_folder(source: ModelSource, test_set: TestSet, options: Options, sets: int) -> Path:
    if options.name is not None:
        name = options.name if sets == 1 else f"{options.name}_{test_set.name}"
    else:
        name = options.folder_name(test_set.name)
        if source.file != RunFolder(source.home).best_checkpoint:
            name = f"{source.file.stem}_{name}"
    folder = source.output_folder / EVALUATIONS_FOLDER / name
    if RunFolder(folder).metrics_file.exists() and not options.overwrite:
        raise InputError(f"{folder} is there already: replace it with --overwrite, or give another --name")
    return folder


def _control_risk(
    predictor: Predictor, training: TrainingData, options: Options, warnings: list[str]
) -> RiskControl | None:
    """The threshold from the first run's validation images; None, with a warning, if there is none."""
    first = training.sources[0]
    data = training.get_data(first)
    if data is None:
        reason = training.reasons[first.home if first.config else first.file]
        warnings.append(f"no threshold is chosen on the validation images of {first.file}: {reason}")
        return None
    validation = subset_of(data, "val")
    for source in training.sources[1:]:
        if training.may_include(source, validation, ["train"]):
            warnings.append(
                f"no threshold is chosen on the validation images of {first.home}: {source.home} may have "
                "been trained on some of them"
            )
            return None
    images = score_images(predictor, validation, options.threshold, score_image)
    shares = get_missed_shares([image.scores for image in images])
    control = risk_threshold(shares, options.missed, options.confidence) if len(shares) else None
    if control is None:
        warnings.append(
            f"no threshold keeps the missed share of a polyp under {options.missed:g} with confidence "
            f"{options.confidence:g}: {len(images)} validation images are too few or too hard"
        )
    return control


def _describe_training_images(
    training: TrainingData, test_set: TestSet, images: Sequence[Image], options: Options
) -> dict[str, Any]:
    """The images of a folder that a model was trained or validated on, and the numbers without them."""
    training_images = training.find_images(test_set)
    stems = {image["stem"] for image in training_images}
    new_images = [image for image in images if image.pair.stem not in stems]
    without = None
    if stems and new_images:
        numbers = summarise_images(new_images, options.threshold, options.normal)["numbers"]
        without = {"n": len(new_images), "numbers": numbers}
    return {
        "checked": list(map(str, training.datasets)),
        "unchecked": training.explain_unknown(test_set),
        "found": len(stems),
        "images": training_images,
        "without": without,
    }


def _print_places(folder: Path, metrics: Mapping[str, Any], models: Sequence[str]) -> None:
    """Print where the files of an evaluation are, and the command that predicts with its models."""
    relative = RunFolder(os.path.relpath(folder))
    names = [shell_word(model) for model in models]
    terminal.print_places(
        {
            "page": f"{relative.path / PAGE_FILE}",
            "numbers": f"{relative.metrics_file}    {len(metrics['numbers'])} with their definitions",
            "images": f"{relative.rows_file}",
            "use it": " --with ".join([f"polyp predict {names[0]} FOLDER_OR_VIDEO", *names[1:]]),
        }
    )
