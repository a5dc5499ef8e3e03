"""The ONNX file of a model."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from polyp.commands.export.graph import Graph
from polyp.errors import InputError, describe_error
from polyp.model.segmenter import PolypSegmenter

OPSET = 18  # the oldest that has all operations, so that old runtimes can run the file
EXAMPLE = (2, 96, 80, 3)  # the shape of the images to trace with; a batch of 1 would be taken for a constant
MAX_BYTES = 2**31  # an ONNX file must be smaller


def write_onnx(
    models: Sequence[PolypSegmenter], file: Path, metadata: Mapping[str, str], half: bool = False
) -> None:
    """Write a model, or the average of several, as ONNX.

    Its input is `image` (batch, height, width, 3) uint8 RGB, its output `probability` (batch, height, width)
    float32.

    Args:
        models: on the CPU, of one image size.
        file: to write.
        metadata: all metadata of the file.
        half: compute in float16, which is faster on GPUs; input and output keep their types.

    Raises:
        InputError: a network has an operation that ONNX cannot express for images of any size, or the weights
            are too large for a file.
    """
    import onnx

    size = sum(weight.nbytes for model in models for weight in model.network.state_dict().values())
    if size >= MAX_BYTES:
        raise InputError(
            f"the weights of {len(models)} networks take {size / 1e9:.1f} GB, and an ONNX file holds less "
            f"than {MAX_BYTES / 1e9:.1f}: export fewer runs"
        )
    try:
        with silence():
            program = torch.onnx.export(
                Graph(models, half).eval(),
                (torch.zeros(EXAMPLE, dtype=torch.uint8),),
                input_names=["image"],
                output_names=["probability"],
                dynamic_shapes={"image": {0: Dim("batch"), 1: Dim("height"), 2: Dim("width")}},
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # each stage of the exporter has its own exceptions
        reason = describe_error(error.__cause__ or error)
        raise InputError(f"{describe_network(models)} cannot be exported ({reason})") from error
    assert program is not None
    proto = program.model_proto  # made at each access
    set_metadata(proto, metadata)
    onnx.save(proto, file)


def describe_network(models: Sequence[PolypSegmenter]) -> str:
    """The architecture and encoder of models, such as "model.arch=unet with model.encoder=resnet34"."""
    names = (f"model.arch={model.arch} with model.encoder={model.encoder}" for model in models)
    return " and ".join(dict.fromkeys(names))


def set_metadata(proto: Any, metadata: Mapping[str, str]) -> None:
    """Replace all metadata of an `onnx.ModelProto`, including the exporter's notes on nodes and values."""
    import onnx

    onnx.helper.set_model_props(proto, dict(metadata))
    graph = proto.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]


@contextmanager
def silence() -> Iterator[None]:
    """Suppress the output, log and warnings of exporters, which are meant for their developers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(disabled)
