"""What can be checked of a new run before torch, timm and Lightning are imported, which takes seconds."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from polyp.data.locations import check_locations
from polyp.data.sources import DATASETS
from polyp.errors import pick
from polyp.model.names import check_names
from polyp.runs.model import find_weights
from polyp.settings import check_keys, collect, raise_together


def check_names_and_paths(config: Mapping[str, Any]) -> None:
    """Check the names of a configuration and the files and folders that it refers to.

    The rest is checked, and all of it again, when network, optimiser and data are built.

    Raises:
        InputError: a name is unknown, or a file or folder is not there; all of them.
    """
    problems: list[str] = []
    model, settings = config["model"], config["data"]
    with collect(problems):
        check_names(model, config["optim"])
    with collect(problems):
        find_weights(model.get("init_from"))
    with collect(problems):
        source = pick("data.dataset", settings.get("dataset"), DATASETS)
        arguments = {field.name: settings[field.name] for field in fields(source) if field.name in settings}
        check_keys("data", arguments, source)
        check_locations(source(**arguments), settings.get("split"), settings.get("normal"))
    raise_together(problems)
