"""The ONNX file of a model."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from polyp.errors import InputError, describe_error
from polyp.export.graph import Graph
from polyp.model.segmenter import PolypSegmenter

OPSET = 18
"""The oldest with all that is needed: what runs on old runtimes too."""

EXAMPLE = (2, 96, 80, 3)
"""An image batch to trace with; a 1 in it would be taken for a constant."""


def write(model: PolypSegmenter, file: Path, metadata: Mapping[str, str], half: bool = False) -> None:
    """Write a model as ONNX.

    Its input is `image` (batch, height, width, 3) uint8 RGB, its output `probability` (batch, height, width) float32.

    Args:
        model: on the CPU.
        file: to be written.
        metadata: what the file shall say of itself.
        half: compute in float16, which GPUs gain from; input and output stay what they are.

    Raises:
        InputError: the network has an operation that ONNX cannot express for images of any size.
    """
    import onnx

    graph = Graph(model, half).eval()
    dynamic = {"image": {0: Dim("batch"), 1: Dim("height"), 2: Dim("width")}}
    try:
        with quiet():
            program = torch.onnx.export(
                graph,
                (torch.zeros(EXAMPLE, dtype=torch.uint8),),
                input_names=["image"],
                output_names=["probability"],
                dynamic_shapes=dynamic,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # its exceptions are as many as its stages
        settings = model.hparams
        raise InputError(
            f"model.arch={settings['arch']} with model.encoder={settings['encoder']} cannot be exported "
            f"({describe_error(error.__cause__ or error)})"
        ) from error
    assert program is not None
    proto = program.model_proto
    say(proto, metadata)
    onnx.save(proto, file)


def say(proto: Any, metadata: Mapping[str, str]) -> None:
    """Let a model say of itself this and nothing else; not what its makers' versions of the code looked like either."""
    import onnx

    onnx.helper.set_model_props(proto, dict(metadata))
    for node in proto.graph.node:
        del node.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed or logged: what torch has to say about exporting is for its developers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(disabled)
