"""`polyp export`: a run's model as ONNX files, with the proof that they are as good."""

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polyp import device, files, runs
from polyp.data.pairs import Pair
from polyp.errors import InputError, require
from polyp.export import proof
from polyp.export.file import write
from polyp.export.integers import write_int8
from polyp.export.report import tell
from polyp.inference.onnx import OnnxModel
from polyp.metrics.overlap import DEFINITIONS
from polyp.model.segmenter import PolypSegmenter
from polyp.runs.data import load_run_data
from polyp.runs.model import Source, load_checkpoint

RECORD = "export.json"

FILES = {"float32": "model.onnx", "float16": "model_fp16.onnx", "int8": "model_int8.onnx"}
"""The variants of an exported model."""

TOLERATED = 0.003
"""Dice that a variant may lose against the module in float32 without a note."""

TOLERANCE = 1e-3
"""The largest difference of a probability to the module's that a float32 model may have."""

COMPARED, TIMED, CALIBRATED = 16, 40, 64
"""Images that differences are measured on, that are timed, and that tell the ranges of 8-bit integers."""


@dataclass(frozen=True)
class Options:
    """What to export; the fields are the options of `polyp export`.

    Attributes:
        fp16: write the float16 variant too.
        int8: write the int8 variant too.
        out: the folder to write; the run's export/ by default.
        root, archive: where the run's data are now, if they have moved.
        overwrite: replace an export that is there.
    """

    fp16: bool = False
    int8: bool = False
    out: str | None = None
    root: str | None = None
    archive: str | None = None
    overwrite: bool = False


def export(run: str, options: Options) -> None:
    """Write a run's model as ONNX, measure it, and put both in place; nothing is left of what fails.

    Args:
        run: its folder, or a checkpoint in it.
        options: what and where.

    Raises:
        InputError: anything that cannot work; before long work wherever that can be known.
    """
    require("onnx", "onnx", "onnxscript", "onnxruntime")
    source = Source.of(run)
    if source.config is None:
        raise InputError(f"{run} is not in a run's folder: the images to prove an export on are unknown")
    folder = Path(options.out).expanduser() if options.out else source.home / runs.EXPORT
    _check_free(folder, options.overwrite)
    model = load_checkpoint(source).eval()
    exact, model.precision = model.precision, "32-true"  # what variants are compared with
    data = load_run_data(source.home, source.config, options.root, options.archive)
    validation, tested = data.get_pairs("val"), data.get_pairs("test")
    say = _metadata(source, model, data.inspection.fingerprint)
    notes: list[str] = []
    with runs.replace_folder(folder, "polyp export") as part:
        write(model, part / FILES["float32"], say | {"precision": "float32"})
        _check_parity(model, part / FILES["float32"], validation)
        if options.fp16:
            write(model, part / FILES["float16"], say | {"precision": "float16"}, half=True)
        if options.int8:
            notes += _write_int8(part, say | {"precision": "int8"}, validation)
        record = _record(source, model, exact, say, part, validation, tested)
        record["notes"] += notes
        if source.data_fingerprint not in (None, data.inspection.fingerprint):
            record["notes"].append("the data have changed since training")
        files.write_json(part / RECORD, record)
    tell(record, folder)


def _check_free(folder: Path, overwrite: bool) -> None:
    files.check_writable(folder)
    if folder.exists() and any(folder.iterdir()):
        if not (folder / RECORD).is_file():
            raise InputError(f"{folder} holds something else than an export: give another --out")
        if not overwrite:
            raise InputError(f"{folder} is there already: replace it with --overwrite, or give another --out")


def _metadata(source: Source, model: PolypSegmenter, fingerprint: str) -> dict[str, str]:
    """What a file says of itself, apart from its precision."""
    finished = source.file == runs.best_checkpoint(source.home) and runs.finished(source.home)
    return {
        "classes": "polyp",
        "threshold": str(model.hparams["threshold"]),
        "image_size": json.dumps(model.image_size),
        "arch": model.hparams["arch"],
        "encoder": model.hparams["encoder"],
        "metrics": json.dumps(runs.read_metrics(source.home)["test"] if finished else {}),
        "config": json.dumps(source.config or {}),
        "fingerprint": files.fingerprint(source.file),
        "data_fingerprint": fingerprint,
        "polyp": version("polyp"),
    }


def _spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """At most so many of them, from all over the list."""
    return [pairs[place * len(pairs) // min(count, len(pairs))] for place in range(min(count, len(pairs)))]


def _check_parity(model: PolypSegmenter, file: Path, pairs: Sequence[Pair]) -> None:
    """Raise InputError if the float32 model is not what the module is."""
    found = proof.differences(model.predict, {"float32": OnnxModel(file).predict}, _spread(pairs, COMPARED))
    if not (worst := max(found["float32"].values())) <= TOLERANCE:  # NaN is not
        raise InputError(
            f"the ONNX model's probabilities differ from the module's by up to {worst:.2g}, more than {TOLERANCE:g}: "
            f"model.arch={model.hparams['arch']} with model.encoder={model.hparams['encoder']} cannot be exported"
        )


def _write_int8(folder: Path, say: dict[str, str], pairs: Sequence[Pair]) -> list[str]:
    """All of the network in integers or, if that costs Dice on validation images, all but its encoder, with a note."""
    exact, integers = folder / FILES["float32"], folder / FILES["int8"]
    calibrated = [pair.image for pair in _spread(pairs, CALIBRATED)]
    for encoder in (True, False):
        write_int8(exact, integers, say, calibrated, encoder)
        scores = proof.dice({str(file): OnnxModel(file).predict for file in (exact, integers)}, pairs)
        if scores[str(exact)] - scores[str(integers)] <= TOLERATED:
            break
    return [] if encoder else [f"int8 has its encoder in float32: else it loses more than {TOLERATED} on validation"]


def _in_precision(model: PolypSegmenter, precision: str) -> proof.Predict:
    other = copy.deepcopy(model)
    other.precision = precision
    return other.predict


def _record(
    source: Source,
    model: PolypSegmenter,
    precision: str,
    say: dict[str, str],
    folder: Path,
    validation: Sequence[Pair],
    tested: Sequence[Pair],
) -> dict[str, Any]:
    """All that is measured, as it goes to export.json."""
    predictors: dict[tuple[str, str], proof.Predict] = {
        ("module", "float32"): model.predict,
        ("module", f"fast, {model.resolve_precision(fast=True)}"): partial(model.predict, fast=True),
    }
    if (own := str(device.precision(precision, "cpu"))) != "32-true":
        predictors["module", f"exact, {own}"] = _in_precision(model, own)
    written = {name: folder / file for name, file in FILES.items() if (folder / file).is_file()}
    predictors |= {("onnx", name): OnnxModel(file).predict for name, file in written.items()}

    plain = predictors["module", "float32"]
    named = {"/".join(key): predict for key, predict in predictors.items()}
    away = proof.differences(
        plain, {name: one for name, one in named.items() if one != plain}, _spread(validation, COMPARED)
    )
    scores, chosen_by = proof.dice(named, tested), proof.dice(named, validation)
    times = proof.latencies(named, _spread(tested, TIMED), model.hparams["threshold"], TIMED)
    reference = times["module/float32"]["images_per_second"]
    record: dict[str, Any] = {
        "run": os.path.relpath(source.home),
        "fingerprint": say["fingerprint"],
        "data_fingerprint": say["data_fingerprint"],
        "image_size": list(model.image_size),
        "device": device.description("cpu"),
        "n": len(tested),
        "timed": TIMED,
        "compared": min(COMPARED, len(validation)),
        "compared_at": [f"{scale:g}" for scale in proof.SIZES],
        "definitions": {
            "dice": f"of the test images, one by one: {DEFINITIONS['dice']}",
            "dice_loss": "the Dice of the module in float32 less this one's",
            "validation_dice_loss": "the same of the validation images, by which the backend is chosen",
            "difference": "the largest of a probability to the module's in float32, by the images' size",
            "latency_ms": "one image, from decoding its file to its mask",
            "faster": "images/s over those of the module in float32",
        },
        "module": {},
        "onnx": {},
        "notes": [],
        "versions": {name: version(name) for name in ("polyp", "torch", "onnx", "onnxruntime")},
    }
    for (kind, name), label in zip(predictors, named, strict=True):
        record[kind][name] = {
            "dice": scores[label],
            "dice_loss": scores["module/float32"] - scores[label],
            "validation_dice_loss": chosen_by["module/float32"] - chosen_by[label],
            "difference": away.get(label, {}),
            **times[label],
            "faster": round(times[label]["images_per_second"] / reference, 3),
        }
        if kind == "onnx":
            record[kind][name] |= {"file": FILES[name], "bytes": written[name].stat().st_size}
        for images in ("dice_loss", "validation_dice_loss"):
            if (loss := record[kind][name][images]) > TOLERATED:
                where = "test" if images == "dice_loss" else "validation"
                record["notes"].append(f"{kind} {name} loses {loss:.4f} of Dice on the {where} images")
    return record
