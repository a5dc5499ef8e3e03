"""`polyp evaluate`: score a trained model, or several together, on its test images or on any others."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polyp import __version__, files, runs
from polyp.data.datamodule import PolypDataModule
from polyp.errors import InputError
from polyp.evaluation import testsets
from polyp.evaluation.contamination import TrainingData
from polyp.evaluation.report import REPORT, tell, tell_together, write_report
from polyp.evaluation.scoring import Image, controlled, scored, summary
from polyp.evaluation.testsets import TestSet
from polyp.inference.predictor import COMPARED, Predictor, load_predictor
from polyp.metrics import literature
from polyp.metrics.calibration import RiskControl
from polyp.runs.data import load_run_data
from polyp.runs.model import Source

log = logging.getLogger(__name__)

EVALUATIONS = "evaluations"

PACKAGES = ("torch", "segmentation-models-pytorch")
"""Their versions are noted beside polyp's."""


@dataclass(frozen=True)
class Options:
    """How to score; the fields are the options of `polyp evaluate`.

    Attributes:
        data: a folder of images; None for the run's own.
        subset: which of the run's own images: train, val or test.
        root, archive: where the run's own data are now, if they have moved.
        images, masks: the names of the folders of images and masks in `data`.
        normal: the images of `data` show no polyp and have no masks.
        tta: average over the image and its flips.
        scales: average over these multiples of the network's resolution.
        threshold: a pixel is predicted to be polyp from this probability on.
        missed, confidence: the share of a polyp's pixels that may be missed, and how sure that is to be, for the
            threshold that is chosen on the validation images.
        device: auto, cpu, cuda, cuda:1, ...
        compute: exact, or fast: several images at once, in the precision that the device gains from.
        name: of the evaluation's folder.
        overwrite: replace an evaluation that is there.
    """

    data: str | None = None
    subset: str = "test"
    root: str | None = None
    archive: str | None = None
    images: str = "images"
    masks: str = "masks"
    normal: bool = False
    tta: bool = False
    scales: Sequence[float] = (1.0,)
    threshold: float = 0.5
    missed: float = 0.1
    confidence: float = 0.95
    device: str = "auto"
    compute: str = "exact"
    name: str | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        for key, value in (("threshold", self.threshold), ("missed", self.missed), ("confidence", self.confidence)):
            if not 0 < value < 1:
                raise InputError(f"--{key} {value:g} must lie between 0 and 1")
        if not all(0.25 <= scale <= 4 for scale in self.scales):
            raise InputError(f"--scales {','.join(f'{scale:g}' for scale in self.scales)} must lie between 0.25 and 4")
        if self.data is not None and self.subset != "test":
            raise InputError(
                f"--subset {self.subset} is of the run's own images, and --data gives others: leave one out"
            )
        if self.normal and self.data is None:
            raise InputError("--normal needs --data FOLDER, the folder of normal frames")
        if self.name is not None and (Path(self.name).name != self.name or self.name in ("", "..")):
            raise InputError(f"--name {self.name} must be a single folder's name")

    def folder_name(self, tested: str, count: int) -> str:
        """The evaluation's folder: what is scored, and how, where that is not the default."""
        views = ["tta"] * self.tta + [f"scales-{'-'.join(f'{s:g}' for s in self.scales)}"] * (self.scales != (1.0,))
        other = [self.compute] * (self.compute != "exact") + [f"threshold-{self.threshold:g}"] * (self.threshold != 0.5)
        other += [f"ensemble-of-{count}"] * (count > 1)
        return "_".join([tested, *views, *other])


def evaluate(models: Sequence[str], options: Options) -> list[dict[str, Any]]:
    """Score models, and leave the answer in the folder of the first one's run, under evaluations/.

    Args:
        models: run folders or checkpoints; of several the probabilities are averaged.
        options: how.

    Returns:
        The content of each evaluation's metrics.json.

    Raises:
        InputError: anything that cannot work; before the network is used wherever that can be known.
    """
    options.check()
    sources = [Source.of(given) for given in models]
    data = _own_data(sources, options)
    test_sets, warnings = _test_sets(sources, data, options)
    folders = [_folder(sources[0], test_set, options, len(test_sets), len(sources)) for test_set in test_sets]
    if lacking := literature.unavailable():
        log.warning("%s", lacking)
    predictor = load_predictor(models, options.compute, options.device, options.tta, options.scales)
    for folder in folders:  # before the work, not after it
        files.check_writable(folder)
    control = _risk_control(predictor, sources, data, options, warnings)

    training = TrainingData.of(sources, data, options.root, options.archive) if options.data is not None else None
    answers = []
    for test_set, folder in zip(test_sets, folders, strict=True):
        started = time.time()
        first = [test_set.read(pair)[0] for pair in test_set.pairs[: 0 if predictor.is_exact else COMPARED]]
        images = list(scored(predictor, test_set, options.threshold))
        metrics = {
            "models": [os.path.relpath(source.file) for source in sources],
            "images": test_set.name,
            "normal": test_set.normal,
            "fingerprint": test_set.fingerprint,
            "n": len(images),
            "threshold": options.threshold,
            "tta": {"flips": options.tta, "scales": list(options.scales)},
            "computed": predictor.backend,
            "deviation": predictor.deviation(first),
            **summary(images, options.threshold, options.normal, control),
            "training_images": training and _training_images(training, test_set, images, options),
            "warnings": warnings if predictor.is_exact else [*warnings, predictor.describe_deviation(first)],
            "seconds": round(time.time() - started, 1),
            "versions": {"polyp": __version__} | {name: version(name) for name in PACKAGES},
        }
        with runs.replace_folder(folder, "polyp evaluate") as part:
            runs.write_per_image(part, [image.row for image in images])
            write_report(metrics, images, test_set, predictor, part / REPORT)
            runs.write_metrics(part, metrics)
        tell(metrics, folder)
        answers.append(metrics)
    if len(answers) > 1:
        tell_together(answers)
    return answers


def _training_images(
    training: TrainingData, test_set: TestSet, images: Sequence[Image], options: Options
) -> dict[str, Any]:
    """Which of the images a model was trained or validated on, and the numbers without them."""
    found = training.images_in(test_set)
    stems = {image.stem for image in found}
    others = [image for image in images if image.pair.stem not in stems]
    without = None
    if found and others:
        without = {"n": len(others), "numbers": summary(others, options.threshold, options.normal)["numbers"]}
    return training.report(found, without)


def _own_data(sources: Sequence[Source], options: Options) -> PolypDataModule | None:
    """The data of the first model's run; None if it is not known, or not there and not needed."""
    config = sources[0].config
    if config is None:
        if options.data is None:
            raise InputError(f"{sources[0].file} is not in a run's folder: say with --data FOLDER what to score it on")
        return None
    try:
        return load_run_data(sources[0].home, config, options.root, options.archive, needed=options.data is None)
    except InputError as error:
        if options.data is None:
            raise
        log.warning("no threshold is chosen on the run's validation images: %s", str(error).partition("\n")[0])
        return None


def _test_sets(
    sources: Sequence[Source], data: PolypDataModule | None, options: Options
) -> tuple[list[TestSet], list[str]]:
    """What to score on, and what to be warned of."""
    warnings = []
    if options.data is not None:
        found = testsets.in_folder(options.data, options.images, options.masks, options.normal)
        own = [(source, source.data_fingerprint) for source in sources]
        own += [(sources[0], data.inspection.fingerprint)] if data is not None else []
        scored_on = {test_set.fingerprint for test_set in found if not test_set.normal}
        for home in dict.fromkeys(source.home for source, fingerprint in own if fingerprint in scored_on):
            warnings.append(
                f"{options.data} is the data set of {home}, and the images that it was trained on are scored as well: "
                "leave --data out for the test images alone"
            )
        return found, warnings
    assert data is not None
    if options.subset != "test":
        warnings.append(f"these are the run's {options.subset} images, which training has seen")
    test_set = testsets.subset_of(data, options.subset)
    stems = {pair.stem for pair in test_set.pairs}
    for other in sources[1:]:
        if other.config is None:
            warnings.append(f"nobody knows what {other.file} was trained on: perhaps on these images")
            continue
        theirs = load_run_data(other.home, other.config, options.root, options.archive)
        seen = stems & {stem for subset in ("train", "val") for stem in theirs.subsets[subset]}
        if options.subset == "test" and theirs.inspection.fingerprint == test_set.fingerprint and seen:
            raise InputError(
                f"{other.home} was trained on {len(seen)} of the {len(stems)} test images of {sources[0].home}: "
                "average only runs of one split"
            )
    if (known := sources[0].data_fingerprint) not in (None, test_set.fingerprint):
        warnings.append(f"the data have changed since training: fingerprint {test_set.fingerprint}, then {known}")
    return [test_set], warnings


def _folder(source: Source, test_set: TestSet, options: Options, sets: int, models: int) -> Path:
    """Where the answer goes."""
    prefix = "" if source.file == runs.best_checkpoint(source.home) else f"{source.file.stem}_"
    name = prefix + options.folder_name(test_set.name, models)
    if options.name is not None:
        name = options.name if sets == 1 else f"{options.name}_{test_set.name}"
    folder = source.home / EVALUATIONS / name
    if (folder / runs.METRICS).exists() and not options.overwrite:
        raise InputError(f"{folder} is there already: replace it with --overwrite, or give another --name")
    return folder


def _trained_on(source: Source, images: TestSet, options: Options) -> bool:
    """Whether images may be among those that a model was trained on."""
    if source.config is None:
        return True
    if source.data_fingerprint not in (None, images.fingerprint):
        return False
    try:
        theirs = load_run_data(source.home, source.config, options.root, options.archive, needed=False)
    except InputError:
        return True
    return not {pair.stem for pair in images.pairs}.isdisjoint(theirs.subsets["train"])


def _risk_control(
    predictor: Predictor,
    sources: Sequence[Source],
    data: PolypDataModule | None,
    options: Options,
    warnings: list[str],
) -> RiskControl | None:
    """The threshold that the first run's validation images allow; they tell nothing if another model has seen them."""
    if data is None or options.normal or (options.data is None and options.subset != "test"):
        return None
    validation = testsets.subset_of(data, "val")
    for other in sources[1:]:
        if _trained_on(other, validation, options):
            warnings.append(
                f"no threshold is chosen on the validation images of {sources[0].home}: {other.home} may have been "
                "trained on some of them"
            )
            return None
    images = list(scored(predictor, validation, options.threshold))
    control = controlled(images, options.missed, options.confidence)
    if control is None:
        warnings.append(
            f"no threshold keeps the missed share of a polyp under {options.missed:g} with confidence "
            f"{options.confidence:g}: {len(images)} validation images cannot vouch for it"
        )
    return control
