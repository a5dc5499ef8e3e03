"""The configuration that Hydra composes from a command, and the keys that polyp knows."""

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polyp.errors import InputError, describe_error, nearest, printable
from polyp.files import read_yaml
from polyp.runs import identity
from polyp.runs.overrides import parse_override
from polyp.settings import raise_together

ALIASES = {
    "ckpt_path": "resume=RUN continues a run, model.init_from=FILE begins with a checkpoint's weights",
    "pretrained": "model.encoder_weights=FILE begins with an encoder's weights, model.init_from=RUN with all",
    "ckpt": "resume=RUN continues a run, model.init_from=FILE begins with a checkpoint's weights",
    "epochs": "trainer.max_epochs=NUMBER",
    "lr": "optim.encoder_lr=NUMBER and optim.decoder_lr=NUMBER",
}
"""Keys of other projects' configurations, and polyp's names of them."""


def train_script() -> Path:
    """train.py, which lies beside conf/: at the top of a clone, or in the installed package."""
    package = Path(__file__).parents[1]
    script = package / "script" / "train.py"
    return script if script.is_file() else package.parents[1] / "train.py"


def compose_config(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of `python train.py OVERRIDES`, in a process without Hydra.

    `training.sweeps`, which registers the resolvers of conf/, must be imported.

    Raises:
        InputError: Hydra does not know a key or a choice, or as `check_names` and `resolve_config`.
    """
    conf = train_script().parent / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            cfg = compose("train", overrides=list(overrides))
        except HydraException as error:
            raise InputError(explain_hydra_error(error, overrides, conf)) from error
        check_names(cfg)
        return resolve_config(cfg)


@functools.cache
def _load_choices(group: str) -> dict[str, Any]:
    conf = train_script().parent / "conf"
    names = sorted(file.stem for file in (conf / group).glob("*.yaml"))
    with initialize_config_dir(str(conf), version_base="1.3"):
        choices: Any = {name: OmegaConf.to_container(compose(f"{group}/{name}")) for name in names}
    return {name: content[group] for name, content in choices.items()}


def find_choice(group: str, content: Mapping[str, Any]) -> str | None:
    """The name of the file in a folder of conf/ with this content, such as `strong` in `augment`; or None."""
    return next((name for name, choice in _load_choices(group).items() if choice == content), None)


def check_composition(argv: Sequence[str], conf: Path) -> None:
    """Check that Hydra can compose a command line; of the values of a sweep, the first one of each key.

    Raises:
        SystemExit: it cannot; in one line. Command lines with flags other than -m are left to Hydra.
    """
    words = [word for word in argv[1:] if word not in ("-m", "--multirun")]
    if any(word.startswith("-") for word in words):
        return
    overrides = []
    for word in words:
        if (override := parse_override(word)) is not None and override.is_sweep_override():
            is_interval = override.value_type == ValueType.INTERVAL_SWEEP
            value = "0" if is_interval else next(override.sweep_string_iterator(), "null")
            word = f"{word.partition('=')[0]}={value}"
        overrides.append(word)
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            compose("train", overrides=overrides)
        except HydraException as error:
            sys.exit(explain_hydra_error(error, overrides, conf))


def explain_hydra_error(error: HydraException, overrides: Sequence[str], conf: Path) -> str:
    """Why Hydra, which must be initialised, cannot compose overrides, in one line.

    This names the first override whose key or choice is not in conf/ and what was probably meant; without
    one, it is Hydra's message.
    """
    groups: dict[str, dict[str, Any]] = {}  # the content of each file, by group and choice
    for file in sorted(conf.rglob("*.yaml")):
        group = file.parent.relative_to(conf).as_posix()
        groups.setdefault(group, {})[file.stem] = read_yaml(file) or {}
    keys = {key for key, _ in identity.flatten(_default_config())} | _default_config().keys()
    for override in filter(None, map(parse_override, overrides)):
        key, value = override.key_or_group, override.value()
        if key in groups and isinstance(value, str) and value not in groups[key]:
            return f"{key}={printable(value)} is unknown: {nearest(value, groups[key])}"
        if key in groups or key in keys or override.is_add() or key.startswith("hydra"):
            continue
        group, _, name = key.rpartition(".")
        choices = groups.get(group, {})
        for choice, content in choices.items():
            if name in content:
                return f"{key} is a setting of {group}={choice}: add that"
        group_keys = {f"{group}.{name}" for content in choices.values() for name in content}
        advice = ALIASES.get(name) or nearest(key, keys | group_keys)
        if group == "trainer":
            advice += f" Others of Lightning's Trainer need a plus: +{key}=VALUE"
        return f"{printable(key)} is no setting of polyp: {advice}"
    return str(error).partition("\n")[0]


def resolve_config(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain containers, with everything resolved and without Hydra's own part.

    Raises:
        InputError: a value is missing, or an interpolation cannot be resolved.
    """
    task = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        if keys := sorted(OmegaConf.missing_keys(task)):
            raise InputError(f"{' and '.join(f'{key}=VALUE' for key in keys)} must be given")
        config: Any = OmegaConf.to_container(task, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(describe_error(error)) from error
    return config


def check_names(cfg: DictConfig) -> None:
    """Check that a composed configuration has no top-level keys beside those of conf/train.yaml.

    The keys of its sections are checked by the classes that take them.

    Raises:
        InputError: it has; the message names the key that was probably meant.
    """
    default, problems = _default_config(), []
    for key in (str(key) for key in cfg if key not in default and key != "hydra"):
        similar = [name for name, _ in identity.flatten(default) if name.rpartition(".")[2] == key]
        suggestion = f"did you mean {similar[0]}?" if similar else nearest(key, default)
        problems.append(f"{key} is no setting of polyp: {ALIASES.get(key) or suggestion}")
    raise_together(problems)


@functools.cache
def _default_config() -> dict[str, Any]:
    return resolve_config(compose("train"))
