"""The device that a network runs on, and the precision that it gains from there."""

import ctypes
import os
import random
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from polyp.errors import InputError, describe_error

T = TypeVar("T")
Result = TypeVar("Result")

HALF = {
    f"{bits}{kind}": dtype
    for bits, dtype in (("bf16", torch.bfloat16), ("16", torch.float16))
    for kind in ("", "-mixed", "-true")
}
"""What the operations that gain from it are computed in, by Lightning's name of the precision."""

PRECISIONS = (
    "auto",
    *HALF,
    "32",
    "32-true",
    "64",
    "64-true",
    "transformer-engine",
    "transformer-engine-float16",
)
"""The names of precisions: Lightning's, and auto."""


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


def precision(name: Any, accelerator: Any) -> Any:
    """Lightning's name of a precision; auto is bf16 where the hardware multiplies it faster than float32.

    That is on CPUs with AMX or AVX-512-BF16 and on GPUs from Ampere on.
    """
    if name != "auto":
        return name
    if cuda(accelerator):
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator != "cpu" and torch.backends.mps.is_available():
        gains = False
    else:
        capabilities = torch.cpu.get_capabilities()
        gains = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bf16-mixed" if gains else "32-true"


def check_compiler(target: torch.device) -> None:
    """Compile a function that no cache holds, in some seconds.

    Raises:
        InputError: torch.compile does not work here.
    """
    number = random.SystemRandom().random()
    try:
        torch.compile(lambda values: values * number)(torch.ones(2, device=target))
    except Exception as error:  # whatever torch raises, which has many kinds for it
        raise InputError(
            f"model.compile=true does not work here ({describe_error(error)}): it needs a C++ compiler, such "
            "as g++, and on a GPU Triton; or leave it out"
        ) from error


@contextmanager
def inference(target: torch.device, name: str) -> Iterator[None]:
    """Compute in a precision, on a GPU with algorithms that give the same bits each time.

    Args:
        target: the device.
        name: Lightning's name of the precision; the half ones are computed by autocast, others in float32.
    """
    half = HALF.get(name)
    with ExitStack() as stack:
        if target.type == "cuda":
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True))
        stack.enter_context(torch.autocast(target.type, half, enabled=half is not None))
        yield


def infer_singly(
    function: Callable[[T], Result], images: Sequence[T], target: torch.device, name: str
) -> list[Result]:
    """Apply a function to images such that each result has the same bits whatever the number of images and of
    threads.

    On the CPU each image is computed by one thread, and as many images at once as torch has threads: how a
    layer is divided among threads changes its rounding, in bf16 visibly.

    Args:
        function: of an image; it is called in threads without gradients.
        images: any number.
        target: the device.
        name: Lightning's name of the precision.
    """

    @torch.inference_mode()
    def infer(image: T) -> Result:
        with inference(target, name):
            return function(image)

    if target.type != "cpu" or not images:
        return [infer(image) for image in images]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            min(threads, len(images)), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            return list(pool.map(infer, images))
    finally:
        torch.set_num_threads(threads)  # new threads would begin with 1, too


def cuda(accelerator: Any) -> bool:
    """Whether Lightning's accelerator of this name is an NVIDIA GPU."""
    return accelerator != "cpu" and torch.cuda.is_available()


def description(accelerator: str = "auto") -> str:
    """The device that torch prefers here, or the CPU if that is given, for the record."""
    if cuda(accelerator):
        return torch.cuda.get_device_name()
    return f"{torch.cpu.get_capabilities().get('cpu_name', 'CPU')}, {torch.get_num_threads()} threads"


def forget_peak_memory() -> None:
    """Let `peak_memory` begin anew: the jobs of a sweep follow each other in one process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)  # returns what earlier jobs have freed to the system
        # not on Linux, or a /proc that cannot be written: it is then that of all jobs so far
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most memory that was taken at once, in bytes: on the GPU, or else by the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # a process inherits the other measure from the one that started it
        return next(
            int(line.split()[1]) * 1024
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory() -> int:
    """The bytes of main memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
