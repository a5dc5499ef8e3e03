"""The terminal: text and progress in one look.

Where no terminal is, in a file or a pipe, lines are as long as they are and there is no progress.
"""

import gc
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

T = TypeVar("T")

LIVE = Console(stderr=True)
"""Of all progress: one may be shown within another."""


def console() -> Console:
    """What prints text: a terminal's lines are broken between words. `soft_wrap=True` keeps a line whole."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def print_places(places: Mapping[str, str]) -> None:
    """Print the last lines of a command: where the results are and what to do next, by a name for each."""
    width = max(map(len, places))
    print()
    for name, text in places.items():
        console().print(f"  {name:<{width}}  {text}".rstrip(), markup=False, soft_wrap=True)


def format_seconds(seconds: float) -> str:
    """A time in one unit: 45 s, 12 min, 3.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def status(text: str) -> AbstractContextManager[Any]:
    """Show that something without countable steps goes on, for instance "loading".

    What `print` and logging write meanwhile stands above it; another console of rich's would write into it.
    """
    # what is printed meanwhile goes to standard error
    is_shown = sys.stdout.isatty() and sys.stderr.isatty()
    return LIVE.status(f"{text} ...") if is_shown else nullcontext()


@contextmanager
def loading(text: str = "loading") -> Iterator[None]:
    """`status` while packages are imported, without garbage collection: a quarter of the time less.

    Full collections would look through everything imported so far several times. What has been imported
    stays, so that later collections leave it out.
    """
    is_first = "timm" not in sys.modules  # imported last of the large packages; later there may be garbage
    if is_first:
        gc.disable()
    try:
        with status(text):
            yield
    finally:
        if is_first:
            gc.freeze()
            gc.enable()


class TimeLeft(ProgressColumn):
    """The time left, by the mean speed since the step `first` of the task, 0 by default."""

    def render(self, task: Task) -> Text:
        """For instance "12 min left"."""
        steps = task.completed - task.fields.get("first", 0)
        if not (steps > 0 and task.remaining and task.elapsed):
            return Text("")
        return Text(f"{format_seconds(task.elapsed / steps * task.remaining)} left")


def progress(count: str | ProgressColumn | None = None) -> Progress:
    """A progress bar that is gone when it ends; what is printed meanwhile stands above it.

    Args:
        count: what is shown between the bar and the time left; by default how many are done.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        count or MofNCompleteColumn(separator=" of "),
        TimeLeft(),
        console=LIVE,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        disable=not sys.stderr.isatty(),
    )


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """The items, with a progress bar.

    Args:
        items: to be iterated over.
        label: what is done with them.
        total: their number, if they have no length.
    """
    with progress() as bar:
        yield from bar.track(items, total, description=label)


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes to what sys.stdout is at the time: above a progress bar, or with the name of a parallel job."""

    def __init__(self, stream: TextIO | None = None) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard output."""
        return sys.stdout
