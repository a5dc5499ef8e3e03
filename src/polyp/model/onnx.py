"""Exported models: ONNX Runtime in the place of torch."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyp.errors import InputError, describe_error, printable, require

METADATA = ("threshold", "image_size", "precision", "fingerprint")
"""Metadata of every file that `polyp export` writes; other ONNX files do not have them."""


class OnnxModel(nn.Module):
    """A model that `polyp export` wrote; predicts as a `PolypSegmenter` does.

    Args:
        file: model.onnx or one of its variants.

    Attributes:
        metadata: of the file.
        threshold: a pixel is polyp from this probability on.
        precision: float32, float16 or int8.

    Raises:
        InputError: the file is damaged, or not one of polyp's; or the extra is not installed.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        require("onnx", "onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only
        # Else threads that wait for work keep a core each busy, beside whatever else the process does.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class
            raise InputError(f"{file} cannot be opened as an ONNX model ({describe_error(error)})") from error
        self.file = file
        self.metadata: dict[str, Any] = self.session.get_modelmeta().custom_metadata_map
        if missing := [name for name in METADATA if name not in self.metadata]:
            raise InputError(
                f"{file} is no ONNX model of polyp's (it does not tell its {missing[0]}): make one with "
                "polyp export RUN --onnx"
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
        inputs = [(node.name, node.type, len(node.shape)) for node in self.session.get_inputs()]
        outputs = [(node.type, len(node.shape)) for node in self.session.get_outputs()]
        if inputs != [("image", "tensor(uint8)", 4)] or outputs != [("tensor(float)", 3)]:
            raise InputError(
                f"{file} does not take images and give probabilities as polyp's do: export it again"
            )

    def check_scale(self, scale: float) -> None:
        """Find out whether `predict` works at a multiple of the network's resolution.

        Raises:
            InputError: a scale other than 1: the resolution is in the file.
        """
        if scale != 1:
            raise InputError(f"an ONNX model cannot work at another scale ({scale:g}): use the checkpoint")

    def predict(self, images: Sequence[Tensor], scale: float = 1.0, fast: bool = False) -> list[Tensor]:
        """Polyp probabilities of images of any sizes.

        Args:
            images: RGB, (3, H, W), uint8.
            scale: 1.
            fast: compute images of one size together.

        Returns:
            For each image a float32 (H, W) tensor, on the CPU; whether they are in 0-1 is up to the file.

        Raises:
            InputError: another scale, or the file computes nothing of the images' size.
        """
        self.check_scale(scale)
        groups: defaultdict[Any, list[int]] = defaultdict(list)
        for number, image in enumerate(images):
            groups[image.shape if fast else number].append(number)
        results: dict[int, Tensor] = {}
        for numbers in groups.values():
            batch = np.stack([images[number].permute(1, 2, 0).cpu().numpy() for number in numbers])
            try:
                [probabilities] = self.session.run(None, {"image": batch})
            except Exception as error:  # its exceptions have no common class
                raise InputError(f"{self.file} cannot be computed ({describe_error(error)})") from error
            if probabilities.shape != batch.shape[:3]:
                raise InputError(
                    f"{self.file} gives {probabilities.shape} for images {batch.shape}: export it again"
                )
            results |= zip(numbers, torch.from_numpy(probabilities), strict=True)
        return [results[number] for number in range(len(images))]
