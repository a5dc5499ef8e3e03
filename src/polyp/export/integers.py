"""An ONNX model in 8-bit integers, which CPUs multiply fastest."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyp.data.pairs import read_image
from polyp.export.file import quiet, say

IN_8_BITS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operations that are worth it; between others, changing to integers and back costs more than it spares."""


def write_int8(
    file: Path, out: Path, metadata: Mapping[str, str], images: Sequence[Path], encoder: bool = True
) -> None:
    """Write the int8 variant of a model, whose ranges are those that images have, looked at one by one.

    Weights have a range for each channel, activations the mean of the ranges that they have in the images. The first
    and the last convolution, and all that comes before and after, keep float32.

    Args:
        file: the float32 model.
        out: to be written.
        metadata: what it shall say of itself.
        images: at least one; those of validation.
        encoder: whether the encoder, too, is to be in integers.

    Raises:
        InputError: an image cannot be read.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[Path] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            path = next(self.left, None)
            return None if path is None else {"image": read_image(path)[None]}

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".int8") as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(file, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        quantize_static(
            prepared,
            out,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(IN_8_BITS),
            nodes_to_exclude=[*_around(graph), *_not_worth_it(graph), *([] if encoder else _encoder(graph))],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"WeightSymmetric": True, "CalibMovingAverage": True},
        )
    model = onnx.load(out)
    say(model, metadata)
    onnx.save(model, out)


def _around(graph: Any) -> list[str]:
    """The names of the nodes up to the network's first convolution and from its last one on."""
    first, *_, last = (node for node in graph.node if node.op_type == "Conv")
    makers = {output: node for node in graph.node for output in node.output}
    before, waiting = {first.name}, [first.input[0]]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in before:
            before.add(node.name)
            waiting.extend(node.input)
    after, made = {last.name}, set(last.output)
    for node in graph.node:  # which are in the order of their computation
        if made.intersection(node.input):
            after.add(node.name)
            made.update(node.output)
    return sorted(before | after)


def _not_worth_it(graph: Any) -> list[str]:
    """The names of the products that are not of a network's weights: attention."""
    weights = {weight.name for weight in graph.initializer}
    return [n.name for n in graph.node if n.op_type in ("MatMul", "Gemm") and not weights.intersection(n.input)]


def _encoder(graph: Any) -> list[str]:
    """The names of the nodes with an encoder's weights."""
    return [node.name for node in graph.node if any(".encoder." in name for name in node.input)]
