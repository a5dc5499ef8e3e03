"""`polyp export`: a run's model as ONNX files, and how good and how fast they are beside the checkpoint."""

import copy
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.markup import escape

from polyp import __version__, files, terminal
from polyp.commands.evaluate.contamination import FITTED, TrainingData
from polyp.commands.evaluate.testsets import subset_of
from polyp.commands.export import proof
from polyp.commands.export.file import describe_network, write_onnx
from polyp.commands.export.integers import write_int8, write_openvino
from polyp.commands.export.options import Options
from polyp.data.pairs import Pair
from polyp.errors import InputError, require, shell_word
from polyp.metrics.overlap import DEFINITIONS
from polyp.model import device
from polyp.model.exported import OnnxModel, open_exported
from polyp.model.segmenter import PolypSegmenter
from polyp.report.tables import Column, Table
from polyp.runs.folder import RunFolder, replace_folder
from polyp.runs.model import Source, find_sources, load_checkpoint

RECORD = "export.json"


FILES = {
    ("onnx", "float32"): "model.onnx",
    ("onnx", "float16"): "model_fp16.onnx",
    ("onnx", "int8"): "model_int8.onnx",
    ("openvino", "int8"): "model_int8.xml",
}
"""By what computes them, and in what precision."""

MAX_DICE_LOSS = 0.003
"""Dice that a variant may lose against the module in float32 without a note."""

MAX_DIFFERENCE = 1e-3
"""The largest difference of a probability to the module's that a float32 model may have."""

COMPARED, CALIBRATED = 16, 64
"""Images that differences are measured on, and that set the ranges of 8-bit integers."""


def run(options: Options) -> dict[str, Any]:
    """Write models as ONNX, measure the files, and put both in place; a failure leaves nothing behind.

    Returns:
        The content of export.json.

    Raises:
        InputError: anything that cannot work; before long work wherever that can be known.
    """
    require("onnx", "onnx", "onnxscript", "onnxruntime")
    if options.openvino:
        require("openvino", "openvino", "nncf")
    sources = find_sources(options.models)
    for source in sources:
        if source.config is None:
            raise InputError(
                f"{source.file} is not in a run's folder: the images to prove an export on are unknown"
            )
    folder = Path(options.out).expanduser() if options.out else sources[0].output_folder / RunFolder.EXPORTS
    _check_free(folder, options.overwrite)
    with terminal.status("loading the model"):
        models = [load_checkpoint(source).eval() for source in sources]
    if len(sizes := {model.image_size for model in models}) > 1:
        raise InputError(f"the runs have several image sizes, {sizes}: export runs of one size")
    references = [copy.copy(model) for model in models]  # which share the weights
    for reference in references:
        reference.precision = "32-true"
    training = TrainingData(sources, options.root, options.archive, needed=True)
    data = training.datasets[sources[0].home]
    metadata = _describe(sources, models, data.inspection.fingerprint)
    with replace_folder(folder, "polyp export") as part:
        with terminal.status("writing the files"):
            notes = _write_variants(part, references, metadata, data.get_pairs("val"), options)
        record = _measure(part, models, references, data.get_pairs("val"), data.get_pairs("test"))
        record["run"] = os.path.relpath(sources[0].output_folder)
        record["models"] = [os.path.relpath(source.file) for source in sources]
        record |= {"fingerprint": metadata["fingerprint"], "data_fingerprint": metadata["data_fingerprint"]}
        record["notes"] += notes
        if any(source.data_fingerprint not in (None, data.inspection.fingerprint) for source in sources):
            record["notes"].append("the data have changed since training")
        if any(training.may_include(other, subset_of(data, "test"), FITTED) for other in sources[1:]):
            record["notes"].append(
                f"the images are the test images of {sources[0].home}, on which other runs were trained: "
                "compare the files, and do not take their Dice for that of new images"
            )
        files.write_json(part / RECORD, record)
    _print_record(record, folder)
    return record


def _check_free(folder: Path, overwrite: bool) -> None:
    files.check_writable(folder)
    if folder.exists() and any(folder.iterdir()):
        if not (folder / RECORD).is_file():
            raise InputError(f"{folder} holds something else than an export: give another --out")
        if not overwrite:
            raise InputError(f"{folder} is there already: replace it with --overwrite, or give another --out")


def _describe(
    sources: Sequence[Source], models: Sequence[PolypSegmenter], data_fingerprint: str
) -> dict[str, str]:
    """The metadata of all variants; of several models those of the first, and all fingerprints."""
    first = sources[0]
    run = RunFolder(first.home)
    is_final = len(sources) == 1 and first.file == run.best_checkpoint and run.is_finished
    return {
        "classes": "polyp",
        "threshold": str(models[0].threshold),
        "image_size": json.dumps(models[0].image_size),
        "arch": " ".join(dict.fromkeys(model.arch for model in models)),
        "encoder": " ".join(dict.fromkeys(model.encoder for model in models)),
        "metrics": json.dumps(run.read_metrics()["test"] if is_final else {}),
        "config": json.dumps(first.config),
        "fingerprint": " ".join(files.fingerprint(source.file) for source in sources),
        "data_fingerprint": data_fingerprint,
        "polyp": __version__,
    }


def _write_variants(
    folder: Path,
    models: Sequence[PolypSegmenter],
    metadata: dict[str, str],
    validation: Sequence[Pair],
    options: Options,
) -> list[str]:
    """Write the files; returns notes on them.

    Raises:
        InputError: the float32 file does not compute what the module does.
    """
    exact, integers = folder / FILES["onnx", "float32"], folder / FILES["onnx", "int8"]
    write_onnx(models, exact, metadata | {"precision": "float32"})
    predict = proof.on_tensors(OnnxModel(exact))
    differences = proof.differences(proof.average(models), {"": predict}, _spread(validation, COMPARED))[""]
    if not all(difference <= MAX_DIFFERENCE for difference in differences.values()):  # nor NaN
        raise InputError(
            f"the ONNX model's probabilities differ from the module's by up to "
            f"{max(differences.values()):.2g}, more than {MAX_DIFFERENCE:g}: {describe_network(models)} "
            "cannot be exported"
        )
    if options.fp16:
        write_onnx(models, folder / FILES["onnx", "float16"], metadata | {"precision": "float16"}, half=True)
    notes = []
    threshold, metadata = float(metadata["threshold"]), metadata | {"precision": "int8"}
    calibration = [pair.image for pair in _spread(validation, CALIBRATED)]

    def loses_dice(file: Path) -> bool:
        pair = {"float32": predict, "int8": proof.on_tensors(open_exported(file))}
        scores = proof.score(pair, validation, threshold)
        return scores["float32"]["dice"] - scores["int8"]["dice"] > MAX_DICE_LOSS

    if options.int8:
        write_int8(exact, integers, metadata, calibration)
        if loses_dice(integers):
            write_int8(exact, integers, metadata, calibration, with_encoder=False)
            notes.append(
                f"int8 has its encoder in float32: else it loses more than {MAX_DICE_LOSS} on validation"
            )
    if options.openvino:
        file = folder / FILES["openvino", "int8"]
        write_openvino(exact, file, metadata, calibration)
        if loses_dice(file):
            write_openvino(exact, file, metadata, calibration, with_encoder=False)
            notes.append(
                f"OpenVINO has its encoder in float32: else it loses more than {MAX_DICE_LOSS} on validation"
            )
    return notes


def _spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """At most `count` pairs, evenly spaced."""
    count = min(count, len(pairs))
    return [pairs[place * len(pairs) // count] for place in range(count)]


def _measure(
    folder: Path,
    models: Sequence[PolypSegmenter],
    references: Sequence[PolypSegmenter],
    validation: Sequence[Pair],
    test: Sequence[Pair],
) -> dict[str, Any]:
    """Dice, difference and speed of the module and of each file."""
    exact, fast = (
        " and ".join(dict.fromkeys(model.resolve_precision(is_fast) for model in models))
        for is_fast in (False, True)
    )
    plain_predict = proof.average(references)
    others: dict[tuple[str, str], proof.Predict] = {
        ("module", f"fast, {fast}"): proof.average(models, fast=True)
    }
    if exact != "32-true":
        others["module", f"exact, {exact}"] = proof.average(models)
    written = {key: folder / file for key, file in FILES.items() if (folder / file).is_file()}
    others |= {key: proof.on_tensors(open_exported(file)) for key, file in written.items()}

    differences = proof.differences(plain_predict, others, _spread(validation, COMPARED))
    threshold = models[0].threshold
    scores = proof.score({("module", "float32"): plain_predict} | others, test, threshold)
    plain = scores["module", "float32"]
    record: dict[str, Any] = {
        "image_size": list(models[0].image_size),
        "device": device.description("cpu"),
        "n": len(test),
        "compared": min(COMPARED, len(validation)),
        "compared_at": [f"{scale:g}" for scale in proof.SIZES],
        "definitions": {
            "dice": f"of the test images, one by one: {DEFINITIONS['dice']}",
            "dice_loss": "the Dice of the module in float32 less this one's",
            "difference": "the largest of a probability to the module's in float32, by the images' size",
            "latency_ms": "one image, from decoding its file to its mask",
            "faster": "images/s over those of the module in float32",
        },
        "module": {},
        "onnx": {},
        **({"openvino": {}} if ("openvino", "int8") in written else {}),
        "notes": [],
        "versions": {"polyp": __version__}
        | {name: version(name) for name in ("torch", "onnx", "onnxruntime")}
        | ({"openvino": version("openvino")} if ("openvino", "int8") in written else {}),
    }
    for (kind, name), score in scores.items():
        row = score | {
            "dice_loss": plain["dice"] - score["dice"],
            "difference": differences.get((kind, name), {}),
            "faster": round(score["images_per_second"] / plain["images_per_second"], 3),
        }
        if file := written.get((kind, name)):
            row |= {"file": file.name, "bytes": sum(part.stat().st_size for part in _parts(file))}
        if row["dice_loss"] > MAX_DICE_LOSS:
            record["notes"].append(f"{kind} {name} loses {row['dice_loss']:.4f} of Dice on the test images")
        record[kind][name] = row
    return record


def _parts(file: Path) -> list[Path]:
    """The files of an exported model: OpenVINO has the weights beside the graph."""
    weights = file.with_suffix(".bin")
    return [file, weights] if weights.is_file() else [file]


COLUMNS = [
    Column("name", label=""),
    Column("dice", "Dice", ".4f"),
    Column("dice_loss", "loss", "+.4f"),
    Column(
        "difference", format=lambda row: f"{max(row['difference'].values()):.1e}" if row["difference"] else ""
    ),
    Column("median ms", format=lambda row: f"{row['latency_ms']['median']:.1f}"),
    Column("p95 ms", format=lambda row: f"{row['latency_ms']['p95']:.1f}"),
    Column("images_per_second", "images/s", ".1f"),
    Column("faster", format=lambda row: f"{row['faster']:.2f}x"),
    Column("MB", format=lambda row: f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else ""),
]


def _print_record(record: dict[str, Any], folder: Path) -> None:
    """Print the numbers of export.json, and where the files are."""
    console = terminal.console()
    title, count = f"[bold]{escape(record['run'])}[/]", len(record["models"])
    title += f", the average of {count} models" if count > 1 else ""
    console.print(f"\n{title}, {record['n']} test images, {escape(record['device'])}")
    kinds = {"module": record["module"], "ONNX": record["onnx"], "OpenVINO": record.get("openvino", {})}
    Table(
        [{"name": f"{kind} {name}", **row} for kind in kinds for name, row in kinds[kind].items()], COLUMNS
    ).print()
    console.print(
        f"  difference: the largest between probabilities and those of the module in float32, on "
        f"{record['compared']} validation images at {', '.join(record['compared_at'])} times their size"
    )
    for note in record["notes"]:
        console.print(f"[bold yellow]note[/] {escape(note)}")
    where = os.path.relpath(folder)
    model = shell_word(f"{where}/{FILES['onnx', 'float32']}")
    terminal.print_places({"models": where, "use it": f"polyp predict {model} FOLDER_OR_VIDEO"})
