"""`polyp evaluate`: score a trained model, or several together, on its test images or on any others."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polyp import __version__, files, terminal
from polyp.commands.evaluate.contamination import FITTED, TrainingData
from polyp.commands.evaluate.corruptions import CORRUPTIONS_FILE, print_corruptions, score_corruptions
from polyp.commands.evaluate.options import Options
from polyp.commands.evaluate.printing import print_metrics, print_places, print_sets
from polyp.commands.evaluate.report import REPORT, write_report
from polyp.commands.evaluate.scoring import Image, control_risk, score_images, summarise_images
from polyp.commands.evaluate.testsets import TestSet, find_test_sets, subset_of
from polyp.commands.options import name_options
from polyp.data.datamodule import NORMAL
from polyp.data.layouts import NoMasksError
from polyp.errors import InputError
from polyp.inference.predictor import COMPARED, Predictor, load_predictor
from polyp.metrics import literature
from polyp.metrics.calibration import RiskControl
from polyp.report.tables import Table
from polyp.runs.folder import RunFolder, replace_folder
from polyp.runs.model import Source, find_sources

log = logging.getLogger(__name__)

EVALUATIONS = "evaluations"


PACKAGES = ("torch", "segmentation-models-pytorch")
"""Their versions are noted beside polyp's."""


def run(options: Options) -> list[dict[str, Any]]:
    """Score models, and leave the answer in the folder of the first one's run or sweep, under evaluations/.

    Returns:
        The content of each evaluation's metrics.json.

    Raises:
        InputError: anything that cannot work; before the network is used wherever that can be known.
    """
    options.check()
    sources = find_sources(options.models)
    if options.data is None and sources[0].config is None:
        raise InputError(
            f"{sources[0].file} is not in a run's folder: say with --data FOLDER what to score it on"
        )
    training = TrainingData(sources, options.root, options.archive, needed=options.data is None)
    warnings: list[str] = []
    members: dict[str, tuple[int, ...]] = {}
    if options.data is None:
        test_sets, members = _find_own_images(training, options.subset, warnings)
    else:
        try:
            test_sets = find_test_sets(options.data, normal=options.normal, **options.layout)
        except InputError as error:
            normal = ", or with --normal that no image shows a polyp" * isinstance(error, NoMasksError)
            raise InputError(name_options(str(error)) + normal) from error
    folders = [_choose_folder(sources[0], test_set, options, len(test_sets)) for test_set in test_sets]
    if lacking := literature.unavailable():
        log.warning("%s", lacking)
    with terminal.status("loading the model"):
        predictor = load_predictor(
            options.models, options.compute, options.device, options.tta, options.scales
        )
    for folder in folders:  # before the work, not after it
        files.check_writable(folder)
    control = None
    if not options.normal and options.subset == "test":
        control = _control_risk(predictor, training, options, warnings)

    evaluations = []
    for test_set, folder in zip(test_sets, folders, strict=True):
        started = time.time()
        predictors = _choose_predictors(predictor, test_set, members)
        images = _score(predictors, test_set, options.threshold)
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
            **summarise_images(
                images, options.threshold, test_set.normal, None if test_set.normal else control
            ),
            "training_images": options.data
            and _describe_training_images(training, test_set, images, options),
            "warnings": list(warnings),
            "seconds": round(time.time() - started, 1),
            "versions": {"polyp": __version__} | {name: version(name) for name in PACKAGES},
        }
        if not predictor.is_exact:
            first = [test_set.read(pair)[0] for pair in test_set.pairs[:COMPARED]]
            metrics["deviation"] = predictor.deviation(first)
            metrics["warnings"].append(predictor.describe_deviation(first))
        if has_corruptions := options.corruptions is not None and not test_set.normal:
            metrics["corruptions"] = score_corruptions(
                test_set,
                images,
                options.corruptions or (),
                partial(_score, predictors, threshold=options.threshold),
            )
        with replace_folder(folder, "polyp evaluate") as part:
            if has_corruptions:
                files.write_text(part / CORRUPTIONS_FILE, Table(metrics["corruptions"]).to_csv())
            RunFolder(part).write_rows([image.row for image in images])
            with terminal.status("drawing the page"):
                write_report(metrics, images, test_set, predictors, part / REPORT)
            RunFolder(part).write_metrics(metrics)
        print_metrics(metrics, images)
        if has_corruptions:
            print_corruptions(metrics["corruptions"])
        print_places(folder, len(metrics["numbers"]), options.models)
        evaluations.append(metrics)
    if len(evaluations) > 1:
        print_sets(evaluations)
    return evaluations


def _find_own_images(
    training: TrainingData, subset: str, warnings: list[str]
) -> tuple[list[TestSet], dict[str, tuple[int, ...]]]:
    """A subset of the first run's images, which no other model may have been trained on, and for the test its
    normal frames; of folds those of all runs, and for each image, by stem, the models that score it.
    """
    first, *others = training.sources
    data = training.known[first.home]
    test_sets = [subset_of(data, name) for name in ([subset, NORMAL] if subset == "test" else [subset])]
    members: dict[str, tuple[int, ...]] = {}
    if training.has_folds:
        for number, test_set in enumerate(test_sets):
            own = training.assign_models(test_set.name)
            name = "out-of-fold" if test_set.name == "test" else test_set.name
            pairs = [data.pairs[data.rows[stem]] for stem in own]
            test_sets[number] = replace(test_set, name=name, pairs=pairs)
            members |= own
        warnings.append(f"each image is scored by the runs that have it among their {subset} images alone")
    test_sets = [test_set for test_set in test_sets if test_set.pairs]
    if subset != "test":
        warnings.append(f"these are the run's {subset} images, which training has seen")
    for other in others if not members else ():
        if training.of(other) is None:
            warnings.append(f"it is not known what {other.file} was trained on: perhaps on these images")
        elif subset == "test" and any(training.may_include(other, images, FITTED) for images in test_sets):
            raise InputError(
                f"{other.home} was trained on some of the {len(test_sets[0].pairs)} test images of "
                f"{first.home}: average only runs of one split"
            )
    for model, origin in training.origins if subset == "test" else ():
        scored = [subset_of(training.known[model.home], subset)] if members else test_sets
        text = f"it is not known what {origin.file} was trained on: perhaps on these images"
        if training.of(origin) is not None:
            text = (
                f"{origin.home}, which training started from, was trained or validated on some of these "
                "images: the numbers are too good"
            )
        known = text in warnings  # from another model
        if not known and any(training.may_include(origin, images, FITTED) for images in scored):
            warnings.append(text)
    if (before := first.data_fingerprint) not in (None, now := data.inspection.fingerprint):
        warnings.append(f"the data have changed since training: fingerprint {now}, then {before}")
    return test_sets, members


def _choose_predictors(
    predictor: Predictor, test_set: TestSet, members: Mapping[str, tuple[int, ...]]
) -> dict[str, Predictor]:
    """The predictor of each image by stem: of its own models, or of all where none are given."""
    parts = {numbers: predictor.select(numbers) for numbers in set(members.values())}
    return {pair.stem: parts[members[pair.stem]] if members else predictor for pair in test_set.pairs}


def _score(predictors: Mapping[str, Predictor], test_set: TestSet, threshold: float) -> list[Image]:
    """Score each image of a set with its predictor."""
    images: dict[str, Image] = {}
    for predictor in dict.fromkeys(predictors.values()):
        pairs = [pair for pair in test_set.pairs if predictors[pair.stem] is predictor]
        scored = score_images(predictor, replace(test_set, pairs=pairs), threshold)
        images |= {image.pair.stem: image for image in scored}
    return [images[pair.stem] for pair in test_set.pairs]


def _choose_folder(source: Source, test_set: TestSet, options: Options, sets: int) -> Path:
    prefix = "" if source.file == RunFolder(source.home).best_checkpoint else f"{source.file.stem}_"
    name = prefix + options.folder_name(test_set.name)
    if options.name is not None:
        name = options.name if sets == 1 else f"{options.name}_{test_set.name}"
    folder = source.output_folder / EVALUATIONS / name
    if (RunFolder(folder).metrics_file).exists() and not options.overwrite:
        raise InputError(f"{folder} is there already: replace it with --overwrite, or give another --name")
    return folder


def _control_risk(
    predictor: Predictor, training: TrainingData, options: Options, warnings: list[str]
) -> RiskControl | None:
    """The threshold that the first run's validation images allow, if no other model was trained on them.

    Where there is none, the reason is added to the warnings.
    """
    first, *others = training.sources
    if (data := training.of(first)) is None:
        reason = training.unknown[first.home if first.config else first.file]
        warnings.append(f"no threshold is chosen on the validation images of {first.file}: {reason}")
        return None
    validation = subset_of(data, "val")
    for other in others:
        if training.may_include(other, validation, ["train"]):
            warnings.append(
                f"no threshold is chosen on the validation images of {first.home}: {other.home} may have "
                "been trained on some of them"
            )
            return None
    images = score_images(predictor, validation, options.threshold)
    control = control_risk(images, options.missed, options.confidence)
    if control is None:
        warnings.append(
            f"no threshold keeps the missed share of a polyp under {options.missed:g} with confidence "
            f"{options.confidence:g}: {len(images)} validation images are too few or too hard"
        )
    return control


def _describe_training_images(
    training: TrainingData, test_set: TestSet, images: Sequence[Image], options: Options
) -> dict[str, Any]:
    """Which of the images of a folder a model was trained or validated on, and the numbers without them."""
    training_images = training.find_images(test_set)
    stems = {image["stem"] for image in training_images}
    others = [image for image in images if image.pair.stem not in stems]
    without = None
    if stems and others:
        numbers = summarise_images(others, options.threshold, options.normal)["numbers"]
        without = {"n": len(others), "numbers": numbers}
    return {
        "checked": list(map(str, training.known)),
        "unchecked": training.explain_unknown(test_set),
        "found": len(stems),
        "images": training_images,
        "without": without,
    }
