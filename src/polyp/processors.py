"""The processors that a process may use."""

import os


def count_processors() -> int:
    """The number of them: a job of Slurm, or a container, may have a part of the machine's."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
