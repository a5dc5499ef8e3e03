"""Where visitors' images are looked at: one after the other, with what was seen kept for a while."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeVar

import numpy as np

from polyp.errors import InputError, pick
from polyp.inference.predictor import Predictor, load_predictor

T = TypeVar("T")

MOST_WAITING = 40
"""Visitors who wait at once; the next is told to come back."""

KEPT = 2**29
"""Bytes of probability maps and images that are kept, the latest: sliders move without asking a network again."""


ENDS = "the app is shutting down"


class Busy(InputError):
    """Too many are waiting already, or the app ends."""


@dataclass(frozen=True)
class Photo:
    """An image to be looked at.

    Attributes:
        key: tells it from all others.
        name: for people; it may be hostile.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) uint8 in {0, 1}; None if nobody knows.
    """

    key: str
    name: str
    image: np.ndarray
    truth: np.ndarray | None = None


@dataclass
class Seen:
    """What a model says of an image.

    Attributes:
        model: its name.
        photo: the image.
        probability: (H, W) float32 in 0-1.
        milliseconds: from the file's bytes to the probabilities.
        spread: (H, W) float32 in 0-0.5, each pixel's standard deviation between the image and its flips; None until
            it is asked for.
    """

    model: str
    photo: Photo
    probability: np.ndarray
    milliseconds: float
    spread: np.ndarray | None = None

    @property
    def bytes(self) -> int:
        """That it takes."""
        return sum(
            a.nbytes for a in (self.photo.image, self.photo.truth, self.probability, self.spread) if a is not None
        )


class Desk:
    """The models, and the one thread that asks them, decodes for them and draws what they say.

    One is enough: a network uses all cores. Memory stays flat however many visitors come.

    Args:
        given: the run or checkpoint of each model, by the model's name.
        compute, device: as `load_predictor` takes them.

    Raises:
        InputError: as `load_predictor` does.
    """

    def __init__(self, given: Mapping[str, str], compute: str = "exact", device: str = "auto") -> None:
        self._thread = ThreadPoolExecutor(1, "desk")
        # In that thread too: OpenMP has threads for each that computes and, where they outnumber the cores, lets them
        # sleep between any two operations, which takes half as long again.
        opened = {name: self._thread.submit(load_predictor, [run], compute, device) for name, run in given.items()}
        self.predictors = {name: one.result() for name, one in opened.items()}
        self._kept: OrderedDict[tuple[str, str], Seen] = OrderedDict()
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)

    @property
    def models(self) -> Sequence[str]:
        """Their names; the first is asked unless another is chosen."""
        return list(self.predictors)

    def predictor(self, model: str | None) -> tuple[str, Predictor]:
        """A model by its name.

        Raises:
            InputError: there is none of that name.
        """
        model = model or self.models[0]
        return model, pick("model", model, self.predictors)

    def submit(self, work: Callable[[], T], patient: bool = False) -> Future[T]:
        """Do something when it is one's turn; cancelled before, it is not done.

        Args:
            work: calls `see` and draws.
            patient: wait however many others do.

        Raises:
            Busy: too many are waiting, or the app ends.
        """
        if not patient and not self._waiting.acquire(blocking=False):
            raise Busy("busy: too many are waiting, try again in a moment")
        try:
            future = self._thread.submit(work)
        except RuntimeError as error:  # closed
            raise Busy(ENDS) from error
        if not patient:
            future.add_done_callback(lambda _: self._waiting.release())
        return future

    def turn(self, work: Callable[[], T], patient: bool = False) -> T:
        """What `submit` does, once it is done."""
        try:
            return self.submit(work, patient).result()
        except CancelledError as error:  # closed
            raise Busy(ENDS) from error

    def ask(self, photo: Callable[[], Photo], model: str | None = None) -> Seen:
        """What a model says of an image. To be called in a `turn`.

        Args:
            photo: decodes the image.
            model: its name; the first if None.

        Raises:
            InputError: there is no such model, it answers with NaN, or as `photo` does.
        """
        name, predictor = self.predictor(model)
        started = perf_counter()
        taken = photo()
        probability = predictor.predict(taken.image)
        return Seen(name, taken, probability, (perf_counter() - started) * 1000)

    def see(self, key: str, photo: Callable[[], Photo], model: str | None = None, spread: bool = False) -> Seen:
        """What `ask` gives, kept from the last time if it still is. To be called in a `turn`.

        Args:
            key: of the photo.
            photo, model: as `ask` takes them.
            spread: also how far the answers to the image and its flips are apart.
        """
        name, _ = self.predictor(model)
        seen = self._kept.pop((key, name), None) or self.ask(photo, name)
        if spread and seen.spread is None:
            flipping = replace(self.predictors[name], flips=True)
            seen.spread = flipping.spread(seen.photo.image)
        self._kept[key, name] = seen
        while sum(one.bytes for one in self._kept.values()) > KEPT and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return seen

    def kept(self, key: str, model: str) -> Seen:
        """What a model has said of an image. To be called in a `turn`.

        Raises:
            InputError: it is no longer kept, or never was.
        """
        if (key, model) not in self._kept:
            raise InputError("this answer is no longer kept: choose the image again")
        self._kept.move_to_end((key, model))
        return self._kept[key, model]

    def close(self) -> None:
        """Let nobody in any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
