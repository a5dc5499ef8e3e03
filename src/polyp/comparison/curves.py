"""Curves of a run, from its TensorBoard files: a number per epoch, of unfinished runs too."""

import logging
from functools import cache
from pathlib import Path

NAMES = ("train/loss", "val/loss", "train/dice", "val/dice")


@cache
def read(folder: Path) -> dict[str, list[float]]:
    """The values of NAMES, one for each epoch; a name that was never logged is left out.

    Of a damaged file the values before the damage are taken; a file that cannot be opened has none.
    """
    from tensorboard.backend.event_processing import event_accumulator as events

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each run that was continued
    # Nothing but scalars is kept; the pictures would fill the memory.
    kept = dict.fromkeys(events.DEFAULT_SIZE_GUIDANCE, 1) | {events.SCALARS: 0}
    accumulator = events.EventAccumulator(str(folder), size_guidance=kept)
    try:
        accumulator.Reload()
    except OSError:  # curves are for looking at: they keep nobody from the numbers
        return {}
    return {
        name: [event.value for event in accumulator.Scalars(name)]
        for name in NAMES
        if name in accumulator.Tags()[events.SCALARS]
    }
