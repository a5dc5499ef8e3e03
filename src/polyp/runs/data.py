"""The data of a run, found and split: the only place where a run's configuration becomes a data module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyp.data.augment import Augmentation
from polyp.data.datamodule import DATASETS, PolypDataModule
from polyp.data.kvasir import KvasirSeg
from polyp.errors import InputError, pick
from polyp.runs.folder import RunFolder
from polyp.settings import check_keys


def build_data(settings: Mapping[str, Any], augment: Mapping[str, Any], seed: int) -> PolypDataModule:
    """The data module of a configuration; nothing is read yet.

    Args:
        settings: the section `data`.
        augment: the section `augment`.
        seed: of the order and the augmentation.

    Raises:
        InputError: a key or a value cannot work.
    """
    check_keys("augment", augment, Augmentation)
    source = pick("data.dataset", settings.get("dataset"), DATASETS)
    check_keys("data", settings, PolypDataModule, source, exclude=["augment", "seed"])
    return PolypDataModule(**settings, augment=augment["transforms"], seed=seed)


def load_run_data(
    home: Path, config: Mapping[str, Any], root: str | None = None, archive: str | None = None, needed: bool = True
) -> PolypDataModule:
    """The data of a run, found and split.

    Args:
        home: the run's folder.
        config: the run's.
        root, archive: where the data are now, if they have moved.
        needed: whether to download or draw them if they are not there.

    Raises:
        InputError: they are not there, or not what the run's split is of.
    """
    settings = dict(config.get("data", {}))
    for key, value in (("root", root), ("archive", archive)):
        if value is not None:
            if key not in settings:
                raise InputError(
                    f"--{key} means nothing for data={settings.get('dataset')}, which the run was trained on"
                )
            settings[key] = value
    try:
        data = build_data(settings, {"transforms": []}, config["seed"])
    except InputError as error:
        raise InputError(f"{RunFolder(home).config_file} does not fit this version of polyp: {error}") from error
    if not needed and isinstance(data.source, KvasirSeg) and data.source.present() is None:
        raise InputError("Kvasir-SEG is no longer where the run found it: say where with --root FOLDER")
    try:
        data.find()
    except InputError as error:
        moved = "" if root or archive else "; if the run's data have moved, say where with --root FOLDER"
        raise InputError(f"{error}{moved}") from error
    return data
