"""The models, the one thread that runs them, its queue, and a cache of the latest predictions."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from polyp.errors import InputError, pick
from polyp.inference.predictor import Predictor, load_predictor

T = TypeVar("T")

AVERAGE = "average of all"  # the ensemble that is offered beside several models
MAX_QUEUED = 40  # requests in the queue; further ones are refused
CACHE_BYTES = 2**29  # size of the cache, by which moving a slider does not run the network again


class Busy(InputError):
    """Too many requests are waiting, or the app is shutting down."""


@dataclass(frozen=True)
class InputImage:
    """An image to predict."""

    key: str  # in the cache
    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    truth: np.ndarray | None = None  # (H, W) uint8 in {0, 1, 255}, see `polyp.images.IGNORED`


@dataclass
class Prediction:
    """The output of the model with a name for an image."""

    model: str
    image: InputImage
    probability: np.ndarray  # (H, W) float32 in 0-1
    milliseconds: float  # from the file's bytes to the probabilities
    spread: np.ndarray | None = None  # of `Predictor.spread` for the image and its flips, once it is needed

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        arrays = (self.image.pixels, self.image.truth, self.probability, self.spread)
        return sum(array.nbytes for array in arrays if array is not None)


class InferenceQueue:
    """The models, and the one thread that decodes, predicts and draws for all requests.

    One thread is enough, since a network uses all cores, and it limits memory whatever the number of clients.

    Args:
        models: the run, checkpoint or ONNX file of each model by the model's name; the first is the default.
            With several there is also their average.
        compute, device: see `load_predictor`.

    Raises:
        InputError: as `load_predictor` does.
    """

    def __init__(self, models: Mapping[str, str], compute: str = "exact", device: str = "auto") -> None:
        self._executor = ThreadPoolExecutor(1, "inference")
        # Models are loaded in that thread too: OpenMP starts threads for each thread that computes, and more
        # threads than cores make operations slower by half.
        self.predictors = {
            name: self._executor.submit(load_predictor, [run], compute, device).result()
            for name, run in models.items()
        }
        members = list(self.predictors.values())
        if len(members) > 1:
            networks = [network for member in members for network in member.models]
            sources = [source for member in members for source in member.sources]
            self.predictors[AVERAGE] = replace(members[0], models=networks, sources=sources)
        self._cache: OrderedDict[tuple[str, str], Prediction] = OrderedDict()
        self._pending: list[Future[Any]] = []  # in the order of the queue; the first one runs

    def find_predictor(self, name: str | None) -> tuple[str, Predictor]:
        """A model's name and predictor, by default the first; raises InputError if there is no such model."""
        name = name or next(iter(self.predictors))
        return name, pick("model", name, self.predictors)

    def submit(self, work: Callable[[], T], limited: bool = True) -> Future[T]:
        """Queue a function, which may call `predict` and `predict_cached`; `limited` by `MAX_QUEUED`.

        Raises:
            Busy: the queue is full or closed.
        """
        if limited and len(self._pending) >= MAX_QUEUED:
            raise Busy("busy: too many requests are waiting, try again in a moment")
        try:
            future = self._executor.submit(work)
        except RuntimeError as error:
            raise Busy("the app is shutting down") from error
        if limited:
            self._pending.append(future)
            future.add_done_callback(self._pending.remove)
        return future

    def find_position(self, future: Future[Any]) -> int:
        """The number of requests that are handled before a limited one of `submit`."""
        try:
            return self._pending.index(future)
        except ValueError:  # it has been handled
            return 0

    def predict(self, load: Callable[[], InputImage], model: str | None = None) -> Prediction:
        """Run a model by its name, or the first one, on the image that `load` decodes; only within `submit`.

        Raises:
            InputError: there is no such model, it outputs NaN, or the image cannot be decoded.
        """
        name, predictor = self.find_predictor(model)
        started = perf_counter()
        image = load()
        probability = predictor.predict(image.pixels)
        return Prediction(name, image, probability, (perf_counter() - started) * 1000)

    def predict_cached(
        self, key: str, load: Callable[[], InputImage], model: str | None = None, spread: bool = False
    ) -> Prediction:
        """`predict` unless the cache has the prediction of the image with this key; only within `submit`.

        `spread` also computes `Prediction.spread`.
        """
        name, predictor = self.find_predictor(model)
        prediction = self._cache.pop((key, name), None)
        if prediction is None:
            images = [entry.image for entry in self._cache.values() if entry.image.key == key]
            prediction = self.predict((lambda: images[0]) if images else load, name)
        if spread and prediction.spread is None:
            prediction.spread = replace(predictor, flips=True).spread(prediction.image.pixels)
        self._cache[key, name] = prediction
        while len(self._cache) > 1 and sum(entry.nbytes for entry in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return prediction

    def close(self) -> None:
        """Accept no more requests and cancel those in the queue."""
        self._executor.shutdown(wait=False, cancel_futures=True)
