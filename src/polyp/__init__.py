"""polyp: train, sweep and compare polyp segmentation networks.

In Python: `polyp.load`, `polyp.evaluate` and `polyp.compare`, see `polyp.api`, which is imported when it is
used.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyp.api import Model, Prediction, compare, evaluate, load

# OpenMP reads these when torch is imported. By default a thread that waits for another spins for a
# millisecond, which takes the processor from the thread it waits for where other processes run; one that
# sleeps at once makes small operations slower (tests/benchmarks/waiting.py).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.7.0"

__all__ = ["Model", "Prediction", "compare", "evaluate", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'polyp' has no attribute '{name}'")
    from polyp import api

    return getattr(api, name)
