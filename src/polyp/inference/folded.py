"""A model made ready for use alone: the same function in fewer operations.

Batch normalisation becomes part of the convolution before it, and weights take the type that they are multiplied in
once, not anew with each image.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from polyp import device
from polyp.inference.ensemble import HALF
from polyp.model.segmenter import PolypSegmenter

NORMS = nn.BatchNorm2d, BatchNormAct2d
"""What is folded; other classes that inherit from these may do more."""


def ready_for_cpu(model: PolypSegmenter) -> PolypSegmenter:
    """A copy of a model in what this machine's CPU computes fastest; `Ensemble` asks it in that precision."""
    return folded(model, HALF.get(device.precision("auto", "cpu")))


def folded(model: PolypSegmenter, half: torch.dtype | None = None) -> PolypSegmenter:
    """A copy of a model that computes the same faster; it cannot be trained.

    Args:
        model: on the CPU.
        half: what autocast will multiply in; None for float32.
    """
    model = copy.deepcopy(model).eval()
    watch = _Watch(model.network)
    with torch.no_grad(), watch:
        model.network(torch.zeros(1, 3, *model.image_size))
    for convolution, norm in watch.pairs():
        one, other = model.network.get_submodule(convolution), model.network.get_submodule(norm)
        if isinstance(one, nn.Conv2d) and isinstance(other, nn.BatchNorm2d) and type(other) in NORMS:
            model.network.set_submodule(convolution, fuse_conv_bn_eval(one, other))
            model.network.set_submodule(norm, other.act if isinstance(other, BatchNormAct2d) else nn.Identity())
    if half is not None:
        for name in watch.multiplied:
            model.network.get_submodule(name).to(half)
    return model


class _Watch(TorchFunctionMode):
    """Sees which modules' weights multiply what, and where it goes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        weights = {name: parameter for name, parameter in network.named_parameters() if name.endswith(".weight")}
        self.owner = {id(weight): name.removesuffix(".weight") for name, weight in weights.items()}
        self.multiplied: Counter[str] = Counter()
        self.made: dict[int, tuple[str, Tensor]] = {}  # tensors are held, so that no other takes their place in memory
        self.taken: Counter[int] = Counter()
        self.normalised: dict[int, str] = {}
        self.normalises: Counter[str] = Counter()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, given: Any = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = named or {}
        result = function(*given, **named)
        if isinstance(result, Tensor):
            self.taken.update(id(one) for one in _tensors([*given, *named.values()]) if id(one) in self.made)
            if function in (F.conv2d, F.linear):
                weight = id(given[1] if len(given) > 1 else named["weight"])
                if weight not in self.owner:
                    return result
                name = self.owner[weight]
                self.multiplied[name] += 1
                if function is F.conv2d:
                    self.made[id(result)] = name, result
            elif function is F.batch_norm and id(named.get("weight")) in self.owner:
                norm = self.owner[id(named["weight"])]
                self.normalises[norm] += 1
                if id(given[0]) in self.made:
                    self.normalised[id(given[0])] = norm
        return result

    def pairs(self) -> Iterable[tuple[str, str]]:
        """The names of each convolution and of the normalisation that alone takes what it makes, both called once."""
        for key, norm in self.normalised.items():
            convolution, _ = self.made[key]
            if self.taken[key] == self.multiplied[convolution] == self.normalises[norm] == 1:
                yield convolution, norm


def _tensors(given: Iterable[Any]) -> Iterable[Tensor]:
    for one in given:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, list | tuple):
            yield from _tensors(one)
