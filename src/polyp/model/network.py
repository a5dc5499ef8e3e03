"""The network: any architecture and encoder of segmentation-models-pytorch, from pixels to logits."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from polyp.errors import InputError, describe_error, pick
from polyp.model.fitting import (
    ARCHITECTURES,
    SIZE_ARGUMENTS,
    STRIDE,
    DecoderOptions,
    Size,
    check_encoder_name,
    create_network,
    find_settings,
    pad_size,
    try_size,
    without_memory,
)
from polyp.model.weights import describe_match, load_encoder_weights, match_weights, normalisation


class PolypNetwork(nn.Module):
    """One or two encoder-decoders with everything around them that inference needs: normalisation, padding,
    cropping.

    Two stages are DoubleU-Net's scheme (Jha et al., CBMS 2020): the second network sees the image multiplied
    by the first one's mask, and the loss supervises both.

    Args:
        arch, encoder, encoder_weights, encoder_depth, decoder_channels, decoder_attention, stages: as in
            conf/model.
        image_size: height and width in pixels that the network will be used at; the combination is tried at
            this size.
        init_from: a file of weights, see `match_weights`; the encoder weights are for what it does not have.

    Attributes:
        init_summary: how much of the network `init_from` has filled; None without it.

    Raises:
        InputError: a name is unknown or the combination cannot work; in one line, with the nearest that can.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arch: str,
        encoder: str,
        encoder_weights: str | None,
        encoder_depth: int | None,
        decoder_channels: Sequence[int] | int | None,
        decoder_attention: str | None,
        stages: int,
        image_size: tuple[int, int],
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder_frozen = False
        pick("model.arch", arch, ARCHITECTURES)
        check_encoder_name(encoder)
        if type(stages) is not int or stages not in (1, 2):
            raise InputError(
                f"model.stages={stages} is not possible: choose 1, or 2 for two stacked networks"
            )
        options = DecoderOptions(encoder_depth, decoder_channels, decoder_attention)
        settings = find_settings(arch, encoder, options, stages, pad_size(image_size))
        self.recipe = arch, encoder, settings
        self.stages = nn.ModuleList(_build(*self.recipe) for _ in range(stages))
        mean, std = normalisation(encoder, encoder_weights)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.init_summary: str | None = None
        weights = {} if init_from is None else match_weights(Path(init_from), self)
        fills_encoder = weights.keys() >= {name for name in self.state_dict() if ".encoder." in name}
        if encoder_weights is not None and not fills_encoder:
            adapted = {key: settings[key] for key in SIZE_ARGUMENTS if key in settings}
            for stage in self.stages:
                load_encoder_weights(stage.get_submodule("encoder"), encoder, encoder_weights, adapted)
        if init_from is not None:
            self.load_state_dict(self.state_dict() | weights)
            self.init_summary = f"{init_from} has {describe_match(weights, self)}"

    def forward(self, image: Tensor) -> list[Tensor]:
        """The logits of each stage, the last one's being the answer.

        Args:
            image: (B, 3, H, W) RGB, uint8 in 0-255 or float in 0-1, of any height and width.

        Returns:
            One (B, 1, H, W) tensor of logits for each stage.
        """
        height, width = image.shape[-2:]
        scaled = image if image.is_floating_point() else image.float() / 255
        padding = (0, -width % STRIDE, 0, -height % STRIDE)
        gated = scaled = F.pad(scaled, padding, mode="replicate") if any(padding) else scaled
        logits = []
        for stage in self.stages:
            normalised = ((gated - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
            padded = stage(normalised)
            gated = scaled * torch.sigmoid(padded.float())
            logits.append(padded[..., :height, :width])
        return logits

    def train(self, mode: bool = True) -> "PolypNetwork":
        """As for any module; a frozen encoder keeps its statistics and drops nothing whatever the mode."""
        super().train(mode)
        if self.encoder_frozen:
            for stage in self.stages:
                stage.get_submodule("encoder").eval()
        return self

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Leave the encoder as it is from here on: no gradients, no new batch statistics, no dropout; or let
        it train again.
        """
        self.encoder_frozen = frozen
        for parameter in self.encoder_parameters():
            parameter.requires_grad_(not frozen)
        self.train(self.training)

    def checkpoint_gradients(self) -> None:
        """Compute the encoder's stages again in the backward pass instead of keeping their activations.

        Raises:
            InputError: the encoder does not offer it.
        """
        encoder = self.recipe[1]
        for stage in self.stages:
            modules = [*stage.get_submodule("encoder").modules()]
            offering = next((module for module in modules if hasattr(module, "set_grad_checkpointing")), None)
            reason = ""
            if offering is None or not encoder.startswith("tu-"):  # smp's own do not call timm's stages
                reason = "it does not offer that"
            else:
                try:
                    offering.set_grad_checkpointing(True)  # type: ignore[operator]
                except (AssertionError, NotImplementedError) as error:  # how timm refuses
                    reason = describe_error(error)
            if reason:
                raise InputError(
                    f"model.gradient_checkpointing=true does not work with model.encoder={encoder} "
                    f"({reason}): take one of timm's (tu-NAME) that does, or leave it out"
                )
            for module in modules:
                if isinstance(module, _BatchNorm) and module.momentum:
                    module.register_forward_pre_hook(partial(_update_statistics_once, module.momentum))

    def accepts(self, image_size: Size) -> bool:
        """Whether the network, which was made for one image size, works at another; tried without memory."""
        size = pad_size(image_size)
        try:
            return try_size(*self.recipe, size)[0] == size
        except Exception:  # whatever timm and torch raise, the answer is no
            return False

    def trains_on_single_images(self, image_size: Size, encoder_trains: bool = True) -> bool:
        """Whether a batch of one image has more than one value per channel at each batch normalisation."""
        with without_memory():
            network = create_network(*self.recipe).train()
            network.get_submodule("encoder").train(encoder_trains)
            try:
                network(torch.empty(1, 3, *pad_size(image_size)))
            except ValueError as error:  # torch has no class of its own for it
                if "more than 1 value per channel" in str(error):
                    return False
                raise
        return True

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that pretrained weights are for."""
        for stage in self.stages:
            yield from stage.get_submodule("encoder").parameters()

    def encoder_stages(self, image_size: Size) -> list[list[nn.Parameter]]:
        """The encoder's parameters by the resolution that they work at, the stem first.

        A parameter belongs to the first of the encoder's features that depends on it, which is found on a
        network without memory; what no feature depends on belongs to the last.
        """
        with without_memory():
            encoder = create_network(*self.recipe).eval().get_submodule("encoder")
            names, parameters = zip(*encoder.named_parameters(), strict=True)
            features = encoder(torch.empty(1, 3, *pad_size(image_size)))
            features = features[0] if isinstance(features[0], list) else features  # dpt's come with tokens
            first = dict.fromkeys(names, len(features) - 1)
            for number, feature in reversed([*enumerate(features)]):
                if feature.requires_grad:  # not the image itself, nor the empty one of transformers
                    gradients = torch.autograd.grad(
                        feature.sum(), parameters, retain_graph=True, allow_unused=True
                    )
                    dependent = compress(names, (gradient is not None for gradient in gradients))
                    first |= dict.fromkeys(dependent, number)
        encoders = [dict(stage.get_submodule("encoder").named_parameters()) for stage in self.stages]
        return [
            [encoder[name] for encoder in encoders for name in names if first[name] == number]
            for number in sorted(set(first.values()))
        ]

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """All others: decoders and heads."""
        encoder = {id(parameter) for parameter in self.encoder_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in encoder)


def _update_statistics_once(momentum: float, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Leave the running averages of a batch norm as they are where the backward pass computes it again."""
    module.momentum = 0.0 if torch._C._current_graph_task_id() != -1 else momentum  # type: ignore[assignment]


def _build(arch: str, encoder: str, settings: dict[str, Any]) -> nn.Module:
    network = create_network(arch, encoder, settings)
    network.to(memory_format=torch.channels_last)
    _keep_contiguous(network)
    return network


def _keep_contiguous(network: nn.Module) -> None:
    """Keep the convolutions out of channels_last that oneDNN computes wrongly in it.

    The backward pass of a 1x1 convolution with a stride and fewer than 8 input channels writes past its
    memory on CPUs without AVX-512, which ends the process, and can return wrong gradients elsewhere:
    uxlfoundation/oneDNN#6035.
    """
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    for module in convolutions:
        if module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels < 8:
            # A 1x1 weight is contiguous in either format by torch's own test, so contiguous() would not copy
            # it.
            module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(_contiguous_input)


def _contiguous_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in inputs)
