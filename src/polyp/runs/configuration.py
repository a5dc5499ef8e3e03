"""A command's configuration: its overrides, what Hydra composes from them, and which keys polyp knows."""

import functools
import sys
from collections.abc import Sequence
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polyp.errors import InputError, describe_error, nearest, override_text, printable, shell_word
from polyp.runs import identity
from polyp.settings import raise_together

OTHER_NAMES = {
    "ckpt_path": "resume=RUN continues a run",
    "init_from": "model.encoder_weights=FILE begins with an encoder's weights",
    "pretrained": "model.encoder_weights=FILE begins with an encoder's weights",
    "logger": "TensorBoard's curves are always written to the run's folder",
    "callbacks": "patience=EPOCHS stops early, optim.ema_decay= averages the weights",
    "ckpt": "resume=RUN continues a run",
    "epochs": "trainer.max_epochs=NUMBER",
    "lr": "optim.encoder_lr=NUMBER and optim.decoder_lr=NUMBER",
}
"""Keys of other projects' configurations, and what they are called here."""


def check_overrides(argv: Sequence[str]) -> None:
    """Check that Hydra can parse a command line's overrides.

    Raises:
        SystemExit: a value has characters that need quotes; the line has the override, ready to paste.
    """
    parser = OverridesParser.create()
    for word in argv[1:]:
        if word.startswith("-") or "=" not in word:
            continue
        try:
            parser.parse_override(word)
        except HydraException as error:
            key, _, value = word.partition("=")
            quoted = override_text(key, value)
            try:
                parser.parse_override(quoted)
            except HydraException:  # the key is wrong as well
                sys.exit(f"{printable(word)} cannot be understood ({describe_error(error)}): give KEY=VALUE")
            sys.exit(f"{printable(word)} has characters that need quotes: write {shell_word(quoted)}")


def task_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what is computed, without those that say how the command runs."""
    return [override for override in overrides if override.partition("=")[0] not in identity.COMMAND]


def resolve_config(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain containers, with everything resolved and without Hydra's own part.

    Raises:
        InputError: a value is missing, or an interpolation cannot be resolved.
    """
    task = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        if missing := sorted(OmegaConf.missing_keys(task)):
            raise InputError(f"{' and '.join(f'{key}=VALUE' for key in missing)} must be given")
        plain: Any = OmegaConf.to_container(task, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(describe_error(error)) from error
    return plain


def check_single_run(cfg: DictConfig) -> None:
    """Check the configuration of a command without -m: that it has no launcher, and its names.

    Raises:
        InputError: it has a launcher, or as `check_names`.
    """
    if (launcher := HydraConfig.get().runtime.choices["launcher"]) != "local":
        raise InputError(f"launcher={launcher} is for the jobs of a sweep: add -m")
    check_names(cfg)


def check_names(cfg: DictConfig) -> None:
    """Check that a composed configuration has no top-level keys beside those of conf/train.yaml.

    The keys of its sections are checked by the classes that take them.

    Raises:
        InputError: it has; the message names the key that was probably meant.
    """
    problems = []
    for key in (str(key) for key in cfg if key not in _default_config() and key != "hydra"):
        similar = [name for name, _ in identity.flatten(_default_config()) if name.rpartition(".")[2] == key]
        suggestion = f"did you mean {similar[0]}?" if similar else nearest(key, _default_config())
        problems.append(f"{key} is no setting of polyp: {OTHER_NAMES.get(key) or suggestion}")
    raise_together(problems)


@functools.cache
def _default_config() -> dict[str, Any]:
    return resolve_config(compose("train"))
