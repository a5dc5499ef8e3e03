"""An exported model at work: ONNX Runtime in the place of torch."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyp.errors import InputError, describe_error, require

METADATA = ("threshold", "image_size", "precision", "fingerprint")
"""What a file of polyp's says of itself, among other things, and others do not."""


class OnnxModel(nn.Module):
    """A model that `polyp export` wrote; predicts as a `PolypSegmenter` does.

    Args:
        file: model.onnx or one of its variants.

    Attributes:
        metadata: what the file says of itself.
        threshold: that masks are made with.
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
        options.log_severity_level = 3  # of what it warns of, nothing is the user's affair
        # Else threads that wait for work keep a core each busy, beside whatever else the process does.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class
            raise InputError(f"{file} cannot be opened as an ONNX model ({describe_error(error)})") from error
        self.metadata: dict[str, Any] = self.session.get_modelmeta().custom_metadata_map
        if lacking := [name for name in METADATA if name not in self.metadata]:
            raise InputError(
                f"{file} is no ONNX model of polyp's (it does not tell its {lacking[0]}): make one with "
                "polyp export RUN --onnx"
            )
        try:
            self.threshold = float(self.metadata["threshold"])
        except ValueError as error:
            raise InputError(
                f"{file} says that its threshold is {self.metadata['threshold'][:50]}: make it anew"
            ) from error
        self.precision = self.metadata["precision"]

    def predict(self, images: Sequence[Tensor], scale: float = 1.0) -> list[Tensor]:
        """Polyp probabilities of images of any sizes.

        Args:
            images: RGB, (3, H, W), uint8; those of one size are looked at together.
            scale: can only be 1, the resolution that is in the file.

        Returns:
            For each image a float32 (H, W) tensor in 0-1, on the CPU.

        Raises:
            InputError: another scale.
        """
        if scale != 1:
            raise InputError(f"an ONNX model cannot work at another scale ({scale:g}): use the checkpoint")
        places = defaultdict(list)
        for place, image in enumerate(images):
            places[image.shape].append(place)
        found: dict[int, Tensor] = {}
        for same in places.values():
            batch = np.stack([images[place].permute(1, 2, 0).cpu().numpy() for place in same])
            found |= zip(same, torch.from_numpy(self.session.run(None, {"image": batch})[0]), strict=True)
        return [found[place] for place in range(len(images))]
