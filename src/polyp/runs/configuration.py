"""A command's configuration: its overrides, what Hydra composes from them, and which keys polyp knows."""

import functools
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polyp.errors import InputError, describe_error, hydra_text, nearest, override_word, printable, shell_word
from polyp.files import read_yaml
from polyp.runs import identity
from polyp.settings import raise_together

OTHER_NAMES = {
    "ckpt_path": "resume=RUN continues a run, model.init_from=FILE begins with a checkpoint's weights",
    "pretrained": "model.encoder_weights=FILE begins with an encoder's weights, model.init_from=RUN with all",
    "ckpt": "resume=RUN continues a run, model.init_from=FILE begins with a checkpoint's weights",
    "epochs": "trainer.max_epochs=NUMBER",
    "lr": "optim.encoder_lr=NUMBER and optim.decoder_lr=NUMBER",
}
"""Keys of other projects' configurations, and what they are called here."""


OVERRIDE = re.compile(r"-|~|\+{0,2}[a-z_$][\w$./@-]*=", re.ASCII | re.IGNORECASE)
"""What a flag or an override begins with; any other word belongs to the value before it."""


def check_overrides(argv: Sequence[str]) -> None:
    """Check that Hydra understands a command line's overrides, and as what they were meant.

    Raises:
        SystemExit: a value needs quotes, or was taken apart by the shell, or has a comma without -m; the line
            has the override, ready to paste.
    """
    is_sweep = bool({"-m", "--multirun"} & set(argv))
    may_sweep = any(word.startswith(("-", "experiment=", "hydra.mode=")) for word in argv)
    overrides = _join_words(argv[1:])
    _check_braces(overrides)
    for override in overrides:
        key, equals, value = override.partition("=")
        if override.startswith("-") or not equals:
            continue
        if (parsed := parse_override(override)) is None or override not in argv:
            if parse_override(quoted := f"{key}={_quote(value, is_sweep)}") is None:
                sys.exit(
                    f"{printable(override)} cannot be understood: give KEY=VALUE, where KEY and the "
                    "names of {NAME: VALUE} have letters a-z, digits and _ only"
                )
            sys.exit(f"{printable(override)} has characters that need quotes: write {shell_word(quoted)}")
        if parsed.value_type == ValueType.SIMPLE_CHOICE_SWEEP and not may_sweep:
            sys.exit(
                f"{printable(override)} gives several values: add -m to run each, or write "
                f"{shell_word(f'{key}=[{value}]')} for a list or {override_word(key, value)} for one text"
            )


def _join_words(words: Sequence[str]) -> list[str]:
    """Flags and overrides; the words of a value with spaces that had no quotes are one again."""
    joined: list[str] = []
    for word in words:
        if OVERRIDE.match(word) or not joined or joined[-1].startswith("-"):
            joined.append(word)
        else:
            joined[-1] += f" {word}"
    return joined


def _check_braces(overrides: Sequence[str]) -> None:
    """Check that a shell has not made two overrides of `data.root={A,B}` or `model.loss={A:1,B:1}`, of which
    Hydra takes the last.

    Raises:
        SystemExit: it has.
    """
    for key, group in groupby(overrides, key=lambda override: override.partition("=")[0]):
        values = [override.partition("=")[2] for override in group]
        are_pairs = all(":" in value for value in values)
        if len(values) > 1 and (key.startswith("data.") or (key == "model.loss" and are_pairs)):
            text = ",".join(values)
            text = _quote(f"{{{text}}}" if are_pairs else f"[{text}]")
            sys.exit(
                f"{key} is given {len(values)} times, which is what a shell makes of {key}={{A,B}}: write "
                f"{shell_word(f'{key}={text}')}"
            )


def parse_override(override: str) -> Override | None:
    """An override as Hydra understands it; None if it does not."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _quote(value: str, is_sweep: bool = False) -> str:
    """A value with quotes around what Hydra does not understand.

    Args:
        value: a text, a list `[A,B]` or `choice(A,B)`, a mapping `{NAME: A}`, or values of a sweep.
        is_sweep: commas separate the values of a sweep.
    """
    value = value.strip()
    if parse_override(f"key={value}"):
        return value
    if parts := re.fullmatch(r"(\[|choice\()(.*)([\])])", value):
        return f"{parts[1]}{','.join(map(_quote, _split(parts[2])))}{parts[3]}"
    pairs = [part.partition(":") for part in _split(value[1:-1])]
    if value.startswith("{") and value.endswith("}") and all(colon for _, colon, _ in pairs):
        return f"{{{','.join(f'{name}: {_quote(text)}' for name, _, text in pairs)}}}"
    if is_sweep and len(choices := _split(value)) > 1:
        return ",".join(map(_quote, choices))
    return hydra_text(value)


def _split(text: str) -> list[str]:
    """The parts between the commas that are outside quotes and brackets."""
    parts, depth = [""], 0
    for token in re.findall(r"""(?<![^\[{,:\s])(?:'[^']*'|"[^"]*")|.""", text, re.DOTALL):
        depth += (token in "[{(") - (token in ")}]")
        if token == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def task_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what is computed, without those that say how the command runs."""
    return [override for override in overrides if override.partition("=")[0] not in identity.COMMAND]


def train_script() -> Path:
    """train.py, which lies beside conf/: in a clone at its top, else in this package."""
    package = Path(__file__).parents[1]
    packaged = package / "script" / "train.py"
    return packaged if packaged.is_file() else package.parents[1] / "train.py"


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
    """The file of a folder of conf/ that has a section as it is, such as `strong` of `augment`; None if none
    has.
    """
    return next((name for name, choice in _load_choices(group).items() if choice == content), None)


def check_composition(argv: Sequence[str], conf: Path) -> None:
    """Check that Hydra can compose what a command line says, with the first value of each key of a sweep.

    Args:
        argv: the command line.
        conf: the folder conf/.

    Raises:
        SystemExit: it cannot; in one line. Command lines with flags other than -m are left to Hydra.
    """
    words = [word for word in argv[1:] if word not in ("-m", "--multirun")]
    if any(word.startswith("-") for word in words):
        return
    overrides = []
    for word in words:
        if (parsed := parse_override(word)) is not None and parsed.is_sweep_override():
            is_interval = parsed.value_type == ValueType.INTERVAL_SWEEP
            first = "0" if is_interval else next(parsed.sweep_string_iterator(), "null")
            word = f"{word.partition('=')[0]}={first}"
        overrides.append(word)
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            compose("train", overrides=overrides)
        except HydraException as error:
            sys.exit(explain_hydra_error(error, overrides, conf))


def explain_hydra_error(error: HydraException, overrides: Sequence[str], conf: Path) -> str:
    """Why Hydra, which must be initialised, cannot compose overrides, in one line.

    That is the first override whose key or choice is not in conf/ and what was probably meant, else what
    Hydra says.
    """
    groups: dict[str, dict[str, Any]] = {}  # the content of each file, by group and choice
    for file in sorted(conf.rglob("*.yaml")):
        group = file.parent.relative_to(conf).as_posix()
        groups.setdefault(group, {})[file.stem] = read_yaml(file) or {}
    known = {key for key, _ in identity.flatten(_default_config())} | _default_config().keys()
    for override in filter(None, map(parse_override, overrides)):
        key, value = override.key_or_group, override.value()
        if key in groups and isinstance(value, str) and value not in groups[key]:
            return f"{key}={printable(value)} is unknown: {nearest(value, groups[key])}"
        if key in groups or key in known or override.is_add() or key.startswith("hydra"):
            continue
        group, _, name = key.rpartition(".")
        files = groups.get(group, {})
        if choices := [choice for choice, content in files.items() if name in content]:
            return f"{key} is a setting of {group}={choices[0]}: add that"
        others = {f"{group}.{other}" for content in files.values() for other in content}
        advice = OTHER_NAMES.get(name) or nearest(key, known | others)
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
