"""polyp: train, sweep and compare polyp segmentation networks.

In Python: `polyp.load`, `polyp.evaluate` and `polyp.compare`, see `polyp.api`, which is imported when it is
used.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyp.api import Model, Prediction, compare, evaluate, load

# OpenMP reads it when torch is imported. By default its threads spin while they wait for each other, which
# takes the processors from other processes, and from each other where there are not enough for all.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.7.0"

__all__ = ["Model", "Prediction", "compare", "evaluate", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'polyp' has no attribute '{name}'")
    from polyp import api

    return getattr(api, name)
