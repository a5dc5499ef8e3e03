"""When two configurations are the same experiment: the one list of keys that cannot change a result."""

from collections.abc import Iterator, Mapping
from typing import Any

from polyp.settings import is_import_path

COMMAND = ("resume", "launcher")
"""Keys that say how a command runs, not what it computes."""

NEUTRAL = (
    *COMMAND,
    *("name", "changes", "logger"),
    *("model.compile", "model.gradient_checkpointing"),
    *("data.root", "data.archive", "data.cache", "data.num_workers", "data.eval_workers"),
    *(
        "trainer.log_every_n_steps",
        "trainer.enable_progress_bar",
        "trainer.enable_model_summary",
        "trainer.profiler",
    ),
)
"""Keys that cannot change a result by more than rounding: names, locations of data and cache, workers,
compilation, logging and progress display.
"""

CODE = ("model.loss",)
"""Keys whose values may be the import path of the user's code. It is imported only if the user's command or
conf/ has the path, not if it is in a file of a run or sweep alone.
"""

EXTENSIBLE = ("trainer.max_epochs", "patience", "callbacks")
"""Keys that `resume=RUN` may change as well: how long the run trains, and code that no folder may name."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, with keys written with dots; an empty dict is a leaf, so is a list."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def code(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `CODE` that are the import path of code, by key."""
    found = {}
    for key in CODE:
        group, _, name = key.partition(".")
        section = config.get(group)
        if isinstance(section, Mapping) and is_import_path(section.get(name)):
            found[key] = section[name]
    return found


def matches(key: str, keys: tuple[str, ...]) -> bool:
    """Whether a key, written with dots, is one of `keys` or below one."""
    return any(key == other or key.startswith(f"{other}.") for other in keys)


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can change a result, by key."""
    return {key: value for key, value in flatten(config) if not matches(key, NEUTRAL)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings by which two configurations are two experiments: `model.arch=unet, now linknet`.

    A batch size of auto is the one that was found.
    """
    old, new = decisive(before), decisive(now)
    if new.get("data.batch_size") == "auto":
        new["data.batch_size"] = old.get("data.batch_size")
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [f"{key}={old.get(key)}, now {new.get(key)}" for key in keys]
