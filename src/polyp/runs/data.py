"""The data of a run: the only place where a run's configuration becomes a data module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyp import files
from polyp.data.augment import Augmentation, MultiScale
from polyp.data.datamodule import PolypDataModule
from polyp.data.sources import DATASETS
from polyp.data.split_files import SUBSETS
from polyp.errors import InputError, pick
from polyp.runs.folder import RunFolder
from polyp.settings import check_keys


def build_data(settings: Mapping[str, Any], augment: Mapping[str, Any], seed: int) -> PolypDataModule:
    """The data module of a configuration's sections `data` and `augment` and its seed; nothing is read yet.

    Raises:
        InputError: a key or a value cannot work.
    """
    check_keys("augment", augment, Augmentation, MultiScale, exclude=["image_size", "seed"])
    source = pick("data.dataset", settings.get("dataset"), DATASETS)
    check_keys("data", settings, PolypDataModule, source, exclude=["augment", "scales", "seed"])
    return PolypDataModule(
        **settings, augment=augment["transforms"], scales=augment.get("scales", [1]), seed=seed
    )


def read_recorded_split(folder: RunFolder) -> dict[str, list[str]] | None:
    """The stems of each subset of a run's data; None if they are not recorded, as by earlier versions.

    Raises:
        DamagedError: the record is damaged.
    """
    if not (file := folder.split_file).is_file():
        return None
    subsets = files.read_json(file)
    if not isinstance(subsets, dict) or list(subsets)[: len(SUBSETS)] != list(SUBSETS):
        raise files.DamagedError(f"{file} is damaged (it must list the images of {', '.join(SUBSETS)})")
    return subsets


def restore_split(data: PolypDataModule, folder: RunFolder) -> None:
    """Set the split of a run's data to the one that is recorded in its folder, before they are read.

    Raises:
        InputError: a random split is not recorded, or the record is damaged.
    """
    if subsets := read_recorded_split(folder):
        data.recorded_split = subsets
    elif data.split == "random":
        raise InputError(
            f"{folder} has no {folder.split_file.name}: polyp 0.5 or earlier drew its random split, and this "
            "version would draw another, in which training images are test images; train it anew, or "
            "evaluate it on other images (polyp evaluate --data FOLDER)"
        )


def _move_root(root: Any, folder: str) -> Any:
    """The new `data.root`: the folder, or the folders of the same names in it if the run has several."""
    if isinstance(root, list):
        return [str(Path(folder, Path(path).name)) for path in root]
    if isinstance(root, dict):
        return {name: _move_root(path, str(Path(folder, name))) for name, path in root.items()}
    return folder


def load_run_data(
    home: Path,
    config: Mapping[str, Any],
    root: str | None = None,
    archive: str | None = None,
    needed: bool = True,
) -> PolypDataModule:
    """The data of a run, found and split.

    Args:
        home: the run's folder.
        config: the run's.
        root, archive: where the data are, if they have moved.
        needed: whether to download or draw them if they are not there.

    Raises:
        InputError: they are not there, or do not have the images of the run's split.
    """
    settings = dict(config.get("data", {}))
    for key, value in (("root", root), ("archive", archive)):
        if value is not None:
            if key not in settings:
                raise InputError(
                    f"--{key} means nothing for data={settings.get('dataset')}, which the run was trained on"
                )
            settings[key] = _move_root(settings[key], value) if key == "root" else value
    try:
        data = build_data(settings, {"transforms": []}, config["seed"])
    except InputError as error:
        raise InputError(
            f"{RunFolder(home).config_file} does not fit this version of polyp: {error}"
        ) from error
    restore_split(data, RunFolder(home))
    if not needed and not data.source.available():
        raise InputError(f"{data.dataset} is no longer where the run found it: say where with --root FOLDER")
    try:
        data.find()
    except InputError as error:
        advice = "" if root or archive else "; if the run's data have moved, say where with --root FOLDER"
        raise InputError(f"{error}{advice}") from error
    return data
