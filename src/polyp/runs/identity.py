"""Which keys of a configuration can change a result: where these are equal, the experiment is the same."""

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
"""Keys whose values may be the import path of the user's code. It is imported only if the path is in the
user's command or conf/, not if it is in a file of a run or sweep alone.
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


def find_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `CODE` that are the import path of code, by key."""
    paths = {}
    for key in CODE:
        group, _, name = key.partition(".")
        section = config.get(group)
        if isinstance(section, Mapping) and is_import_path(section.get(name)):
            paths[key] = section[name]
    return paths


def matches(key: str, keys: tuple[str, ...]) -> bool:
    """Whether a key, written with dots, is one of `keys` or below one."""
    return any(f"{key}.".startswith(f"{prefix}.") for prefix in keys)


def select_decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can change a result, by key."""
    return {key: value for key, value in flatten(config) if not matches(key, NEUTRAL)}


def list_differences(old_config: Mapping[str, Any], new_config: Mapping[str, Any]) -> list[str]:
    """The settings by which two configurations are two experiments: `model.arch=unet, now linknet`.

    A new batch size of auto is no difference.
    """
    old, new = select_decisive(old_config), select_decisive(new_config)
    if new.get("data.batch_size") == "auto":
        new["data.batch_size"] = old.get("data.batch_size")
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [f"{key}={old.get(key)}, now {new.get(key)}" for key in keys]
