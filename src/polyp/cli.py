"""`polyp COMMAND`: the options of a command are the fields of the dataclass in its package's options.py."""

import inspect
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import Annotated, Any, NoReturn, Union, get_type_hints

try:
    import tyro
    from tyro.conf import DisallowNone, FlagCreatePairsOff, Positional, subcommand

    from polyp import __version__
    from polyp.commands.app.options import Options as App
    from polyp.commands.compare.options import Options as Compare
    from polyp.commands.data.options import Options as Data
    from polyp.commands.evaluate.options import Options as Evaluate
    from polyp.commands.export.options import Options as Export
    from polyp.commands.options import option
    from polyp.commands.predict.options import Options as Predict
    from polyp.commands.tune.options import Options as Tune
    from polyp.errors import InputError, nearest, pick
    from polyp.files import catch_disk_errors
except KeyboardInterrupt:  # Ctrl-C
    raise SystemExit(130) from None


@dataclass(frozen=True)
class Train:
    """Train, sweep and resume: the command line of train.py."""

    overrides: Annotated[Positional[tuple[str, ...]], option("KEY=VALUE...")] = ()
    """Hydra's overrides and flags, see polyp train --help."""

    def run(self) -> NoReturn:
        """Become `python train.py`."""
        from polyp.runs.configuration import train_script  # imports Hydra

        os.execv(sys.executable, [sys.executable, str(train_script()), *self.overrides])


COMMANDS: dict[str, Any] = {
    "train": Train,
    "tune": Tune,
    "data": Data,
    "evaluate": Evaluate,
    "compare": Compare,
    "predict": Predict,
    "export": Export,
    "app": App,
}

SHELLS = ("bash", "zsh", "fish")

EXAMPLES = {
    "": (
        "polyp train experiment=quickstart",
        "polyp train -m model.encoder=mobilenet_v2,resnet34",
        "polyp compare outputs",
        "polyp predict outputs/runs/default/DATE_TIME FOLDER_OR_VIDEO",
        "polyp evaluate --help",
    ),
    "tune": ("polyp tune lr model.arch=unet", "polyp tune batch_size data.image_size=512"),
    "data": ("polyp data my_polyps", "polyp data kvasir_seg"),
    "evaluate": ("polyp evaluate RUN", "polyp evaluate RUN --data CVC-ClinicDB --tta"),
    "compare": ("polyp compare outputs", "polyp compare SWEEP RUN --out comparison"),
    "predict": ("polyp predict RUN image.jpg", "polyp predict RUN video.mp4 images --out predictions"),
    "export": ("polyp export RUN", "polyp export RUN --int8"),
    "app": ("polyp app RUN", "polyp app RUN --port 8000"),
}
"""The examples in the help: of polyp itself, and of each command."""

DESCRIPTION = """Train polyp segmentation networks, score and compare runs, use the best.

polyp --version prints the version; polyp --print-completion SHELL a script for bash, zsh or fish."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command with its options, by default those of the process.

    Raises:
        SystemExit: with one line and 2 for a wrong command or option, 1 for input that cannot work; 130 for
            Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments else ""
    try:
        with catch_disk_errors("free some space and give the command again"):
            if name == "--version":
                print(f"polyp {__version__}")
            elif name in ("", "-h", "--help"):
                _print_overview("--help")
            elif name == "--print-completion":
                shell = arguments[0] if arguments else ""
                pick(name, shell, dict.fromkeys(SHELLS))
                script = io.StringIO()
                with redirect_stdout(script), suppress(SystemExit):
                    _print_overview("--tyro-print-completion", shell)
                # In bash, file names complete what no option matches.
                print(script.getvalue().replace("complete -F", "complete -o default -F"), end="")
            elif name == "train":
                Train(tuple(arguments)).run()
            elif name in COMMANDS:
                _parse(name, arguments).run()
            else:
                _refuse(f"polyp: {name} is unknown: {nearest(name, COMMANDS)}")
    except InputError as error:
        sys.exit(f"polyp: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _print_overview(*arguments: str) -> None:
    """Print the help of all commands, or a shell's script that completes them."""
    commands: Any = Union[
        *(
            Annotated[kind, subcommand(name, description=kind.__doc__.partition("\n")[0])]
            for name, kind in COMMANDS.items()
        )
    ]
    tyro.cli(commands, prog="polyp", description=_describe("", DESCRIPTION), args=arguments, config=STYLE)


def _describe(name: str, text: str) -> str:
    """A text in lines that fit the terminal, and the examples of a command.

    The lines of a paragraph are indented except for the first: tyro joins lines that begin with a letter.
    """
    width = shutil.get_terminal_size().columns
    paragraphs = [textwrap.fill(part, width, subsequent_indent="  ") for part in text.split("\n\n")]
    paragraphs.append("\n  ".join(["Examples:", *EXAMPLES[name]]))
    return "\n\n".join(paragraphs)


STYLE = (DisallowNone, FlagCreatePairsOff)
"""No option needs a value for its default: neither None nor False can be given."""


def _parse(name: str, arguments: Sequence[str]) -> Any:
    """The options of a command."""
    kind = COMMANDS[name]
    flags = _list_flags(kind)
    for word in takewhile(lambda word: word != "--", arguments):
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in flags:
            _refuse(f"polyp {name}: {flag} is unknown: {nearest(flag, flags, n=1)}")
    text = _describe(name, inspect.getdoc(kind) or "")
    errors = io.StringIO()
    try:
        with redirect_stderr(errors):
            return tyro.cli(kind, prog=f"polyp {name}", description=text, args=arguments, config=STYLE)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        output = re.sub(r"\x1b\[[\d;]*m", "", errors.getvalue())  # without colours
        lines = [line.strip("│ ") for line in output.splitlines()[1:]]  # tyro prints a box
        reason = " ".join(takewhile(lambda line: not line.startswith(("─", "╰")), lines))
        _refuse(f"polyp {name}: {reason} See polyp {name} --help")


def _list_flags(kind: Any) -> list[str]:
    """The options of a command, as they are typed."""
    hints = get_type_hints(kind, include_extras=True)
    flags = ["--help"]
    for field in fields(kind):
        if Positional not in getattr(hints[field.name], "__metadata__", ()):
            prefix = "--no-" if field.default is True else "--"
            flags.append(prefix + field.name.strip("_").replace("_", "-"))
    return flags


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
