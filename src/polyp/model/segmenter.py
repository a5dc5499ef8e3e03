"""A network and everything that its use needs: it predicts polyps in images of any size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyp.errors import InputError
from polyp.images import SMALLEST, resize, square
from polyp.model import device
from polyp.model.network import PolypNetwork


class PolypSegmenter(nn.Module):
    """Any smp network as a polyp segmenter.

    `predict` takes images of any size and returns probabilities of that size, with everything in between
    (resizing, normalisation, padding) inside the module. `polyp.training.module.TrainingModule` trains it.

    Args:
        arch: unet, unetplusplus, manet, linknet, fpn, pspnet, deeplabv3, deeplabv3plus, pan, upernet,
            segformer or dpt.
        encoder: an encoder of smp (`mobilenet_v2`) or, with the prefix `tu-`, of timm.
        encoder_weights: imagenet or another name that smp knows, the path of a .safetensors or .pt file, or
            None.
        encoder_depth: 3, 4 or 5 halvings; None for the architecture's own.
        decoder_channels: a number per level for unet, unetplusplus and manet, one number for others; None
            derives.
        decoder_attention: scse or None; unet and unetplusplus.
        stages: 2 stacks two networks, the second seeing the image gated by the first one's mask.
        image_size: height and width in pixels that the network works at, or one number for both.
        threshold: of the masks that are shown and written: polyp where the probability is at least this.
            Scores are always at 0.5, which is their definition.
        init_from: the path of a file of weights that training starts from, see
            `polyp.model.weights.match_weights`; None for encoder_weights alone.

    Attributes:
        precision: of `predict`: Lightning's name, or auto for what the device gains from.

    Raises:
        InputError: a value or a combination cannot work.
    """

    def __init__(
        self,
        arch: str,
        encoder: str,
        encoder_weights: str | None,
        encoder_depth: int | None,
        decoder_channels: Sequence[int] | int | None,
        decoder_attention: str | None,
        stages: int,
        image_size: int | Sequence[int],
        threshold: float,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(threshold, int | float) or not 0 < threshold < 1:
            raise InputError(f"model.threshold={threshold} must lie between 0 and 1")
        self.arch, self.encoder, self.threshold = arch, encoder, threshold
        self.image_size = square(image_size)
        self.precision = "32-true"
        self.network = PolypNetwork(
            arch,
            encoder,
            encoder_weights,
            encoder_depth,
            decoder_channels,
            decoder_attention,
            stages,
            self.image_size,
            init_from,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.mean.device

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of images (B, 3, H, W), uint8 in 0-255 or float in 0-1, at the images' own
        size.
        """
        return self.network(image)[-1]

    def check_scale(self, scale: float) -> None:
        """Find out whether `predict` works at a multiple of the network's resolution, in some tenths of a
        second.

        Raises:
            InputError: the encoder works at its own image size only, or the images would be too small.
        """
        height, width = self._scaled(scale)
        if scale != 1 and not (min(height, width) >= SMALLEST and self.network.accepts((height, width))):
            raise InputError(
                f"scale {scale:g} is not possible: model.arch={self.arch} with model.encoder="
                f"{self.encoder}, made for {self.image_size[0]}x{self.image_size[1]}, does not "
                f"work at {height}x{width}: leave the scale at 1"
            )

    def _scaled(self, scale: float) -> tuple[int, int]:
        return round(self.image_size[0] * scale), round(self.image_size[1] * scale)

    def resolve_precision(self, fast: bool = False) -> str:
        """The precision that `predict` computes in on the model's device, by Lightning's name of it."""
        return str(device.precision("auto" if fast else self.precision, self.device.type))

    @torch.inference_mode()
    def predict(self, images: Sequence[Tensor], scale: float = 1.0, fast: bool = False) -> list[Tensor]:
        """Polyp probabilities of images of any sizes.

        Each image is computed by itself, on a CPU by one thread, in the precision of the run: what comes out
        depends neither on other images nor on the number of threads.

        Args:
            images: RGB, (3, H, W), uint8, on any device.
            scale: of the resolution that the network works at.
            fast: compute all images at once, in the precision that the device gains from.

        Returns:
            For each image a float32 (H, W) tensor in 0-1, on the model's device.
        """
        training, size, name = self.training, self._scaled(scale), self.resolve_precision(fast)

        def infer(batch: Sequence[Tensor]) -> list[Tensor]:
            logits = self(torch.stack([resize(image, size) for image in batch]).to(self.device)).float()
            probabilities = []
            for image, image_logits in zip(batch, logits, strict=True):
                sized = F.interpolate(image_logits[None], size=image.shape[-2:], mode="bilinear")
                probabilities.append(torch.sigmoid(sized).reshape(image.shape[-2:]))
            return probabilities

        self.eval()
        try:
            if fast:
                with device.inference(self.device, name):
                    return infer(images)
            return [
                probability
                for [probability] in device.infer_singly(
                    infer, [[image] for image in images], self.device, name
                )
            ]
        finally:
            self.train(training)
