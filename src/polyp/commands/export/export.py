"""`polyp export`: a run's model as ONNX and OpenVINO files, with their Dice and speed."""

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
from polyp.commands.export.file import describe_network, write_onnx
from polyp.commands.export.integers import write_int8, write_openvino
from polyp.commands.export.options import RECORD, Options
from polyp.commands.export.proof import SIZES, measure_differences, measure_scores
from polyp.data.pairs import Pair
from polyp.errors import InputError, require, shell_word
from polyp.inference.predictor import Predictor
from polyp.metrics.overlap import DEFINITIONS
from polyp.model import device
from polyp.model.exported import open_exported
from polyp.model.segmenter import PolypSegmenter
from polyp.report.tables import Column, Table
from polyp.runs.folder import RunFolder, replace_folder
from polyp.runs.model import ModelSource, find_sources, load_checkpoint

FILES = {
    ("onnx", "float32"): "model.onnx",
    ("onnx", "float16"): "model_fp16.onnx",
    ("onnx", "int8"): "model_int8.onnx",
    ("openvino", "int8"): "model_openvino.xml",
}
"""The files by backend and precision."""

MAX_DICE_LOSS = 0.003  # against the module in float32; a larger loss is noted
MAX_DIFFERENCE = 1e-3  # between probabilities of the float32 file and of the module
COMPARED, CALIBRATED = 16, 64  # images to measure differences on, and to find the ranges of 8-bit integers on


def run(options: Options) -> dict[str, Any]:
    """Write the files, measure them, and put all in place; a failure leaves nothing behind.

    Returns the content of export.json; raises InputError if the models cannot be exported.
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
    folder = options.folder
    with terminal.loading("loading the model"):
        models = [load_checkpoint(source).eval() for source in sources]
    if len(sizes := {model.image_size for model in models}) > 1:
        raise InputError(f"the runs have several image sizes, {sizes}: export runs of one size")
    references = [copy.copy(model) for model in models]  # they share the weights
    for reference in references:
        reference.precision = "32-true"
    training = TrainingData(sources, options.root, options.archive, needed=True)
    data = training.datasets[sources[0].home]
    metadata = _collect_metadata(sources, models, data.inspection.fingerprint)
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
        if any(training.may_include(source, subset_of(data, "test"), FITTED) for source in sources[1:]):
            record["notes"].append(
                f"the images are the test images of {sources[0].home}, on which other runs were trained: "
                "compare the files, and do not take their Dice for that of new images"
            )
        files.write_json(part / RECORD, record)
    _print_record(record, folder)
    return record


def _collect_metadata(
    sources: Sequence[ModelSource], models: Sequence[PolypSegmenter], data_fingerprint: str
) -> dict[str, str]:
    """The metadata of all files; for several models those of the first, and all fingerprints."""
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
    """Write the files and return notes; raises InputError if probabilities differ from the module's."""
    exact = folder / FILES["onnx", "float32"]
    write_onnx(models, exact, metadata | {"precision": "float32"})
    exported, module = Predictor([open_exported(exact)], "cpu"), Predictor(models, "cpu")
    differences = measure_differences(module, {"onnx": exported}, _select_evenly(validation, COMPARED))
    difference = max(differences["onnx"].values())
    if difference > MAX_DIFFERENCE:
        raise InputError(
            f"the ONNX model's probabilities differ from the module's by up to {difference:.2g}, more than "
            f"{MAX_DIFFERENCE:g}: {describe_network(models)} cannot be exported"
        )
    if options.fp16:
        write_onnx(models, folder / FILES["onnx", "float16"], metadata | {"precision": "float16"}, half=True)
    notes = []
    metadata = metadata | {"precision": "int8"}
    calibration = [pair.image for pair in _select_evenly(validation, CALIBRATED)]
    for is_chosen, name, backend, write in (
        (options.int8, "int8", "onnx", write_int8),
        (options.openvino, "OpenVINO", "openvino", write_openvino),
    ):
        if not is_chosen:
            continue
        file = folder / FILES[backend, "int8"]
        for with_encoder in (True, False):
            write(exact, file, metadata, calibration, with_encoder)
            predictors = {"float32": exported, "int8": Predictor([open_exported(file)], "cpu")}
            scores = measure_scores(predictors, validation, module.threshold)
            loss = scores["float32"]["dice"] - scores["int8"]["dice"]
            if loss <= MAX_DICE_LOSS:
                break
        encoder = "" if with_encoder else ", with its encoder in float32, since in 8 bits it loses more"
        notes.append(f"{name} loses {loss:.4f} of Dice on the validation images{encoder}")
    return notes


def _select_evenly(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """At most `count` pairs, evenly spaced."""
    count = min(count, len(pairs))
    return [pairs[number * len(pairs) // count] for number in range(count)]


def _measure(
    folder: Path,
    models: Sequence[PolypSegmenter],
    references: Sequence[PolypSegmenter],
    validation: Sequence[Pair],
    test: Sequence[Pair],
) -> dict[str, Any]:
    """The content of export.json that is measured: Dice, difference and speed of the module and the files."""
    exact, fast = (
        " and ".join(dict.fromkeys(model.resolve_precision(is_fast) for model in models))
        for is_fast in (False, True)
    )
    module = Predictor(references, "cpu")
    predictors = {("module", f"fast, {fast}"): Predictor(models, "cpu", compute="fast")}
    if exact != "32-true":
        predictors["module", f"exact, {exact}"] = Predictor(models, "cpu")
    written = {key: folder / file for key, file in FILES.items() if (folder / file).is_file()}
    for key, file in written.items():
        predictors[key] = Predictor([open_exported(file)], "cpu")

    differences = measure_differences(module, predictors, _select_evenly(validation, COMPARED))
    scores = measure_scores({("module", "float32"): module} | predictors, test, module.threshold)
    reference = scores["module", "float32"]
    has_openvino = ("openvino", "int8") in written
    packages = ["torch", "onnx", "onnxruntime", *(["openvino"] if has_openvino else [])]
    record: dict[str, Any] = {
        "image_size": list(models[0].image_size),
        "device": device.description("cpu"),
        "n": len(test),
        "compared": min(COMPARED, len(validation)),
        "compared_at": [f"{scale:g}" for scale in SIZES],
        "definitions": {
            "dice": f"of the test images, one by one: {DEFINITIONS['dice']}",
            "dice_loss": "the Dice of the module in float32 less this one's",
            "difference": "the largest of a probability to the module's in float32, by the images' size",
            "latency_ms": "one image, from decoding its file to its mask",
            "faster": "images/s over those of the module in float32",
        },
        "module": {},
        "onnx": {},
        **({"openvino": {}} if has_openvino else {}),
        "notes": [],
        "versions": {"polyp": __version__} | {name: version(name) for name in packages},
    }
    for (backend, precision), score in scores.items():
        row = score | {
            "dice_loss": reference["dice"] - score["dice"],
            "difference": differences.get((backend, precision), {}),
            "faster": round(score["images_per_second"] / reference["images_per_second"], 3),
        }
        if (backend, precision) in written:
            file = written[backend, precision]
            row |= {"file": file.name, "bytes": count_bytes(file)}
        if row["dice_loss"] > MAX_DICE_LOSS:
            note = f"{backend} {precision} loses {row['dice_loss']:.4f} of Dice on the test images"
            record["notes"].append(note)
        record[backend][precision] = row
    return record


def count_bytes(file: Path) -> int:
    """The size of an exported model; for OpenVINO with the file of its weights."""
    files = [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]
    return sum(file.stat().st_size for file in files)


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
    backends = {"module": record["module"], "ONNX": record["onnx"], "OpenVINO": record.get("openvino", {})}
    rows = [
        {"name": f"{backend} {precision}", **row}
        for backend, measured in backends.items()
        for precision, row in measured.items()
    ]
    Table(rows, COLUMNS).print()
    console.print(
        f"  difference: the largest between probabilities and those of the module in float32, on "
        f"{record['compared']} validation images at {', '.join(record['compared_at'])} times their size"
    )
    for note in record["notes"]:
        console.print(f"[bold yellow]note[/] {escape(note)}")
    model = shell_word(os.path.relpath(folder / FILES["onnx", "float32"]))
    terminal.print_places(
        {"models": os.path.relpath(folder), "use it": f"polyp predict {model} FOLDER_OR_VIDEO"}
    )
