"""The device that a network runs on, and the precision that it gains from there."""

from typing import Any

import torch

from polyp.errors import InputError


def choose(name: str) -> torch.device:
    """A device by name; auto is the first GPU, or the CPU.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the second is torch without CUDA
        raise InputError(f"--device {name} is not there: give cpu, or leave it out") from error
    return device


def precision(wanted: Any, accelerator: Any) -> Any:
    """Lightning's name of a precision; auto is bf16 where the hardware multiplies it faster than float32.

    That is on CPUs with AMX or AVX-512-BF16 and on GPUs from Ampere on.
    """
    if wanted != "auto":
        return wanted
    if cuda(accelerator):
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator != "cpu" and torch.backends.mps.is_available():
        gains = False
    else:
        capabilities = torch.cpu.get_capabilities()
        gains = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bf16-mixed" if gains else "32-true"


def cuda(accelerator: Any) -> bool:
    """Whether Lightning's accelerator of this name is an NVIDIA GPU."""
    return accelerator != "cpu" and torch.cuda.is_available()


def description() -> str:
    """The device that torch prefers here, for the record."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.cpu.get_capabilities().get('cpu_name', 'CPU')}, {torch.get_num_threads()} threads"
