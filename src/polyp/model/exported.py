"""Exported models: ONNX Runtime or OpenVINO in the place of torch, which is not imported."""

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from polyp.errors import InputError, describe_error, printable, require

METADATA = ("threshold", "image_size", "precision", "fingerprint")
"""Metadata of every file that `polyp export` writes; other files do not have them."""


class ExportedModel:
    """A model that `polyp export` wrote.

    Args:
        file: of the model.

    Attributes:
        backend: the name of what computes.
        metadata: of the file.
        threshold: a pixel is polyp from this probability on.
        precision: float32, float16 or int8.

    Raises:
        InputError: the file is damaged, or not one of polyp's; or the extra is not installed.
    """

    backend: ClassVar[str]

    def __init__(self, file: Path) -> None:
        self.file = file
        self.metadata = self._open()
        if missing := [name for name in METADATA if name not in self.metadata]:
            raise InputError(
                f"{file} is no model of polyp's (it does not tell its {missing[0]}): make one with "
                "polyp export RUN"
            )
        try:
            self.threshold = float(self.metadata["threshold"])
        except ValueError:
            self.threshold = math.nan
        if not 0 < self.threshold < 1:
            value = printable(self.metadata["threshold"][:50])
            raise InputError(
                f"{file} has the threshold {value}, which must lie between 0 and 1: export it again"
            )
        self.precision = self.metadata["precision"]

    def _open(self) -> Mapping[str, str]:
        """Open the file; returns its metadata."""
        raise NotImplementedError

    def _compute(self, batch: np.ndarray) -> np.ndarray:
        """Probabilities (B, H, W) float32 of images (B, H, W, 3) uint8."""
        raise NotImplementedError

    def check_scale(self, scale: float) -> None:
        """Find out whether `predict` works at a multiple of the network's resolution.

        Raises:
            InputError: a scale other than 1: the resolution is in the file.
        """
        if scale != 1:
            raise InputError(
                f"an exported model cannot work at another scale ({scale:g}): use the checkpoint"
            )

    def predict(
        self, images: Sequence[np.ndarray], scale: float = 1.0, fast: bool = False
    ) -> list[np.ndarray]:
        """Polyp probabilities of images of any sizes.

        Args:
            images: RGB, (H, W, 3), uint8.
            scale: 1.
            fast: compute images of one size together.

        Returns:
            For each image (H, W) float32; whether they are in 0-1 is up to the file.

        Raises:
            InputError: another scale, or the file computes nothing of the images' size.
        """
        self.check_scale(scale)
        groups: defaultdict[Any, list[int]] = defaultdict(list)
        for number, image in enumerate(images):
            groups[image.shape if fast else number].append(number)
        results: dict[int, np.ndarray] = {}
        for numbers in groups.values():
            batch = np.stack([images[number] for number in numbers])
            try:
                probabilities = self._compute(batch)
            except Exception as error:  # its exceptions have no common class
                raise InputError(f"{self.file} cannot be computed ({describe_error(error)})") from error
            if probabilities.shape != batch.shape[:3]:
                raise InputError(
                    f"{self.file} gives {probabilities.shape} for images {batch.shape}: export it again"
                )
            results |= zip(numbers, probabilities, strict=True)
        return [results[number] for number in range(len(images))]


class OnnxModel(ExportedModel):
    """An ONNX file, computed by ONNX Runtime."""

    backend = "onnx"

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        inputs = [(node.name, node.type, len(node.shape)) for node in self.session.get_inputs()]
        outputs = [(node.type, len(node.shape)) for node in self.session.get_outputs()]
        if inputs != [("image", "tensor(uint8)", 4)] or outputs != [("tensor(float)", 3)]:
            raise InputError(
                f"{file} does not take images and give probabilities as polyp's do: export it again"
            )

    def _open(self) -> Mapping[str, str]:
        require("onnx", "onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count_threads()
        options.log_severity_level = 3  # errors only
        # Else threads that wait for work keep a core each busy, beside whatever else the process does.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        try:
            self.session = onnxruntime.InferenceSession(self.file, options, providers=providers)
        except Exception as error:  # its exceptions have no common class
            raise InputError(
                f"{self.file} cannot be opened as an ONNX model ({describe_error(error)})"
            ) from error
        metadata: Mapping[str, str] = self.session.get_modelmeta().custom_metadata_map
        return metadata

    def _compute(self, batch: np.ndarray) -> np.ndarray:
        [probabilities] = self.session.run(None, {"image": batch})
        return probabilities


class OpenvinoModel(ExportedModel):
    """An .xml file with its .bin, computed by OpenVINO; floats become bfloat16 where the CPU has it."""

    backend = "openvino"

    def _open(self) -> Mapping[str, str]:
        require("openvino", "openvino")
        import openvino

        core = openvino.Core()
        try:
            model = core.read_model(self.file)
            options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": count_threads()}
            self.compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise InputError(
                f"{self.file} cannot be opened as an OpenVINO model ({describe_error(error)})"
            ) from error
        if not model.has_rt_info("polyp"):
            return {}
        return {name: str(value) for name, value in model.get_rt_info("polyp").value.items()}

    def _compute(self, batch: np.ndarray) -> np.ndarray:
        return self.compiled(batch)[0]


def count_threads() -> int:
    """OMP_NUM_THREADS, as torch has it, or one for each physical core that this process may use."""
    if (number := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        return int(number)
    if not hasattr(os, "sched_getaffinity"):
        return 0  # the runtimes then count the cores themselves
    processors = os.sched_getaffinity(0)
    siblings = [Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") for n in processors]
    return len({file.read_text() if file.exists() else str(file) for file in siblings})


BACKENDS: dict[str, type[ExportedModel]] = {".onnx": OnnxModel, ".xml": OpenvinoModel}
"""What computes a file, by its suffix."""


def open_exported(file: Path) -> ExportedModel:
    """Open a file that `polyp export` wrote.

    Raises:
        InputError: as `ExportedModel`.
    """
    return BACKENDS[file.suffix](file)
