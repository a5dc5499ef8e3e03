"""Models in 8-bit integers, which are the fastest on CPUs: for ONNX Runtime and for OpenVINO."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyp.commands.export.file import set_metadata, silence
from polyp.data.pairs import read_image

QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operations that gain; for all others, the conversion to integers and back costs more than it saves."""


def write_int8(
    file: Path, out: Path, metadata: Mapping[str, str], images: Sequence[Path], with_encoder: bool = True
) -> None:
    """Write the int8 variant of a model for ONNX Runtime.

    Weights have a range for each channel, activations the mean of their ranges over the images. The first and
    the last convolution and the operations before and after them keep float32.

    Args:
        file: the float32 model in ONNX.
        out: the file to write.
        metadata: all metadata of the file.
        images: at least one, to find the ranges of values on.
        with_encoder: quantize the encoder too.

    Raises:
        InputError: an image cannot be read.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = ({"image": read_image(path)[None]} for path in images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".int8") as folder, silence():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(file, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        quantize_static(
            prepared,
            out,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=_list_excluded(graph, with_encoder),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"WeightSymmetric": True, "CalibMovingAverage": True},
        )
    model = onnx.load(out)
    set_metadata(model, metadata)
    onnx.save(model, out)


def _list_excluded(graph: Any, with_encoder: bool) -> list[str]:
    """The names of the nodes that keep float32.

    These are the nodes up to the first convolution of each network and from its last one on, products without
    weights (attention), and without `with_encoder` the nodes with the encoder's weights.
    """
    weights = {weight.name for weight in graph.initializer}
    excluded = set()
    nodes = [(node, node.input, node.output) for node in graph.node]  # in the order of their computation
    reverse = [(node, outputs, inputs) for node, inputs, outputs in reversed(nodes)]
    for direction in (nodes, reverse):
        connected: set[str] = set()  # values to which a path leads from a convolution
        for node, inputs, outputs in direction:
            is_connected = not connected.isdisjoint(inputs)
            if not is_connected:
                excluded.add(node.name)
            if is_connected or node.op_type == "Conv":
                connected.update(outputs)
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and not weights.intersection(node.input):
            excluded.add(node.name)
        if not with_encoder and any(".encoder." in name for name in node.input):
            excluded.add(node.name)
    return sorted(excluded)


def write_openvino(
    file: Path, out: Path, metadata: Mapping[str, str], images: Sequence[Path], with_encoder: bool = True
) -> None:
    """Write the int8 variant of a model for OpenVINO, by NNCF, which chooses the operations.

    `out` is the .xml file, with the weights in a .bin file beside it. See also `write_int8`.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else NNCF reports each call to its developers
    with silence():
        import nncf
        import openvino

        model = openvino.Core().read_model(file)
        excluded = enlarge_by_products(model)
        if not with_encoder:
            excluded += [op.get_friendly_name() for op in model.get_ops() if _is_in_encoder(op)]
        dataset = nncf.Dataset(list(images), lambda path: read_image(path)[None])
        quantized = nncf.quantize(
            model,
            dataset,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=excluded),
        )
        for name, value in metadata.items():
            quantized.set_rt_info(value, ["polyp", name])
        openvino.save_model(quantized, out, compress_to_fp16=False)


def enlarge_by_products(model: Any) -> list[str]:
    """Replace the bilinear enlargement of the logits to the image's size by two matrix products.

    OpenVINO's own operation takes a quarter of all time: with one channel it does not use the processor's
    vectors, and NNCF would round the logits to 8 bits in front of it.

    Returns:
        The names of the products, which are not to be quantized.
    """
    from openvino import opset13 as ops

    def make_weights(source: int, target: Any) -> Any:
        """(target, source): the shares of the two nearest source pixels in each target pixel.

        In whole numbers, in units of 1 / (2 * target) pixels, since OpenVINO may compute floats in bfloat16.
        """
        positions = (ops.range(0, target, 1, "i64") * 2 + 1) * source - target
        positions = ops.minimum(ops.maximum(positions, 0), target * (2 * (source - 1)))
        distances = ops.abs(ops.unsqueeze(positions, 1) - target * (2 * np.arange(source)))
        shares = ops.maximum(target * 2 - distances, 0)
        return ops.convert(shares, "f32") / ops.convert(target * 2, "f32")

    names = []
    for operation in model.get_ops():
        readers = operation.output(0).get_target_inputs() if operation.get_output_size() else ()
        if operation.get_type_name() == "Interpolate" and _lead_to(readers, "Sigmoid"):
            logits, shape = operation.input_value(0), operation.input_value(1)  # (B, 1, H, W); its new shape
            height, width = (side.get_length() for side in list(logits.get_partial_shape())[2:])
            rows, columns = (ops.gather(shape, axis, 0) for axis in (2, 3))
            wide = ops.matmul(logits, make_weights(width, columns), False, True)
            result = ops.matmul(make_weights(height, rows), wide, False, False)
            for reader in readers:
                reader.replace_source_output(result.output(0))
            names += [wide.get_friendly_name(), result.get_friendly_name()]
    return names


def _lead_to(readers: Any, kind: str) -> bool:
    return any(reader.get_node().get_type_name() == kind for reader in readers)


def _is_in_encoder(operation: Any) -> bool:
    """Whether an operation multiplies with weights of an encoder, which may be reshaped first."""
    if operation.get_type_name() not in ("Convolution", "GroupConvolution", "MatMul"):
        return False
    weight = operation.input_value(1).get_node()
    while weight.get_input_size():
        weight = weight.input_value(0).get_node()
    return ".encoder." in weight.get_friendly_name()
