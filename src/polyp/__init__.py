"""polyp: train, sweep and compare polyp segmentation networks.

In Python: `polyp.load`, `polyp.evaluate` and `polyp.compare`, see `polyp.api`, which is imported when it is
used.
"""

import ctypes
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyp.api import Model, Prediction, compare, evaluate, load

# OpenMP reads these when torch is imported. By default a thread that waits for another spins for a
# millisecond, which takes the processor from the thread it waits for where other processes run; one that
# sleeps at once makes small operations slower (tests/benchmarks/environment.py).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# glibc returns a large block to the system as soon as it is freed, and each new one costs page faults: up to
# half of a training step on a CPU (tests/benchmarks/environment.py). Here it keeps and reuses them. Any
# MALLOC_ variable of glibc leaves its settings as they are.
if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
    if _mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        _M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
        _mallopt(_M_MMAP_MAX, 0)
        _mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

__version__ = "0.9.0"

__all__ = ["Model", "Prediction", "compare", "evaluate", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'polyp' has no attribute '{name}'")
    from polyp import api

    return getattr(api, name)
