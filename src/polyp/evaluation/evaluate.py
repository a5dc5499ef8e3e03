"""`polyp evaluate`: score a trained model, or several together, on its test images or on any others."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from polyp import files, runs
from polyp.errors import InputError
from polyp.evaluation.contamination import FITTED, TrainingData
from polyp.evaluation.report import REPORT, print_metrics, print_sets, write_report
from polyp.evaluation.scoring import Image, control_risk, score_images, summarise_images
from polyp.evaluation.testsets import TestSet, find_test_sets, subset_of
from polyp.inference.predictor import COMPARED, Predictor, load_predictor
from polyp.metrics import literature
from polyp.metrics.calibration import RiskControl
from polyp.runs.model import Source

log = logging.getLogger(__name__)

EVALUATIONS = "evaluations"


@dataclass(frozen=True)
class Options:
    """The options of `polyp evaluate`."""

    models: tuple[str, ...] = ()
    """run folders, checkpoints or exported models; of several the probabilities are averaged"""

    data: str | None = None
    """folder that holds images/ and masks/, or several folders that do; by default the run's own images"""
    images: str = "images"
    """name of the folder of images"""
    masks: str = "masks"
    """name of the folder of masks"""
    normal: bool = False
    """no image of --data shows a polyp; there are no masks"""
    subset: Literal["test", "val", "train"] = "test"
    """which of the run's own images"""
    root: str | None = None
    """folder where the run's data are, if they have moved"""
    archive: str | None = None
    """archive of the run's data, if it has moved"""

    tta: bool = False
    """average over the image and its flips"""
    scales: tuple[float, ...] = (1.0,)
    """average over these multiples of the network's resolution, such as 0.75,1,1.25"""
    threshold: float = 0.5
    """a pixel is predicted to be polyp from this probability on"""
    missed: float = 0.1
    """share of a polyp's pixels that may be missed, for a threshold that is chosen on validation images"""
    confidence: float = 0.95
    """how sure that threshold must be"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    compute: Literal["exact", "fast"] = "exact"
    """exact: each image by itself, in the precision that the run was tested in; fast: several at once, in the
    precision that the device gains from"""
    name: str | None = None
    """name of the evaluation's folder, under evaluations/"""
    overwrite: bool = False
    """replace an evaluation of that name"""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        for key in ("threshold", "missed", "confidence"):
            if not 0 < (value := getattr(self, key)) < 1:
                raise InputError(f"--{key} {value:g} must lie between 0 and 1")
        if not all(0.25 <= scale <= 4 for scale in self.scales):
            raise InputError(
                f"--scales {','.join(map('{:g}'.format, self.scales))} must lie between 0.25 and 4"
            )
        if self.data is not None and self.subset != "test":
            raise InputError(
                f"--subset {self.subset} is of the run's own images, --data of others: leave one out"
            )
        if self.normal and self.data is None:
            raise InputError("--normal needs --data FOLDER, the folder of normal frames")
        if self.name is not None and (Path(self.name).name != self.name or self.name in ("", "..")):
            raise InputError(f"--name {self.name} must be a single folder's name")

    def folder_name(self, test_set: str) -> str:
        """The evaluation's folder: the test set, and the options that are not the default."""
        parts = {
            test_set: True,
            "tta": self.tta,
            f"scales-{'-'.join(map('{:g}'.format, self.scales))}": self.scales != (1.0,),
            self.compute: self.compute != "exact",
            f"threshold-{self.threshold:g}": self.threshold != 0.5,
            f"ensemble-of-{len(self.models)}": len(self.models) > 1,
        }
        return "_".join(part for part, shown in parts.items() if shown)


def run(options: Options) -> None:
    """Score models, and leave the answer in the folder of the first one's run, under evaluations/.

    Raises:
        InputError: anything that cannot work; before the network is used wherever that can be known.
    """
    options.check()
    sources = [Source.of(name) for name in options.models]
    if options.data is None and sources[0].config is None:
        raise InputError(
            f"{sources[0].file} is not in a run's folder: say with --data FOLDER what to score it on"
        )
    training = TrainingData(sources, options.root, options.archive, needed=options.data is None)
    warnings: list[str] = []
    if options.data is None:
        test_sets = [_find_own_images(training, options.subset, warnings)]
    else:
        test_sets = find_test_sets(options.data, options.images, options.masks, options.normal)
    folders = [_choose_folder(sources[0], test_set, options, len(test_sets)) for test_set in test_sets]
    if lacking := literature.unavailable():
        log.warning("%s", lacking)
    predictor = load_predictor(options.models, options.compute, options.device, options.tta, options.scales)
    for folder in folders:  # before the work, not after it
        files.check_writable(folder)
    control = None
    if not options.normal and options.subset == "test":
        control = _control_risk(predictor, training, options, warnings)

    evaluations = []
    for test_set, folder in zip(test_sets, folders, strict=True):
        started = time.time()
        images = score_images(predictor, test_set, options.threshold)
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
            **summarise_images(images, options.threshold, options.normal, control),
            "training_images": options.data
            and _describe_training_images(training, test_set, images, options),
            "warnings": list(warnings),
            "seconds": round(time.time() - started, 1),
            "versions": {name: version(name) for name in ("polyp", "torch", "segmentation-models-pytorch")},
        }
        if not predictor.is_exact:
            first = [test_set.read(pair)[0] for pair in test_set.pairs[:COMPARED]]
            metrics["deviation"] = predictor.deviation(first)
            metrics["warnings"].append(predictor.describe_deviation(first))
        with runs.replace_folder(folder, "polyp evaluate") as part:
            runs.write_per_image(part, [image.row for image in images])
            write_report(metrics, images, test_set, predictor, part / REPORT)
            runs.write_metrics(part, metrics)
        print_metrics(metrics, folder)
        evaluations.append(metrics)
    if len(evaluations) > 1:
        print_sets(evaluations)


def _find_own_images(training: TrainingData, subset: str, warnings: list[str]) -> TestSet:
    """A subset of the first run's images, which no other model may have been trained on."""
    first, *others = training.sources
    test_set = subset_of(training.known[first.home], subset)
    if subset != "test":
        warnings.append(f"these are the run's {subset} images, which training has seen")
    for other in others:
        if training.of(other) is None:
            warnings.append(f"it is not known what {other.file} was trained on: perhaps on these images")
        elif subset == "test" and training.may_include(other, test_set, FITTED):
            raise InputError(
                f"{other.home} was trained on some of the {len(test_set.pairs)} test images of {first.home}: "
                "average only runs of one split"
            )
    if (before := first.data_fingerprint) not in (None, test_set.fingerprint):
        warnings.append(
            f"the data have changed since training: fingerprint {test_set.fingerprint}, then {before}"
        )
    return test_set


def _choose_folder(source: Source, test_set: TestSet, options: Options, sets: int) -> Path:
    prefix = "" if source.file == runs.best_checkpoint(source.home) else f"{source.file.stem}_"
    name = prefix + options.folder_name(test_set.name)
    if options.name is not None:
        name = options.name if sets == 1 else f"{options.name}_{test_set.name}"
    folder = source.home / EVALUATIONS / name
    if (folder / runs.METRICS).exists() and not options.overwrite:
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


def evaluate(models: Sequence[str], options: Options) -> None:
    """Score models as `run` does."""
    run(replace(options, models=tuple(models)))
