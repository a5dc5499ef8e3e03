"""The command line of polyp: what it offers, what it refuses, and that asking costs nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from run_writers import write_model_run

import polyp
from polyp import cli
from polyp.cli import COMMANDS, main

OPTIONS = {
    "data": "--images --masks --image-name --mask-name --missing-mask --polyp-values --polyp-labels "
    "--ignore-value --root --archive --split --group --allow-empty --seed --out",
    "tune": "--steps --out",
    "evaluate": "--data --images --masks --normal --subset --root --archive --tta --scales --threshold "
    "--missed --confidence --device --compute --name --overwrite",
    "compare": "--out --overwrite --card --root --no-pictures",
    "predict": "--with --out --threshold --probabilities --no-overlays --overwrite --tta --compute --device",
    "export": "--onnx --fp16 --int8 --out --root --archive --overwrite",
    "app": "--demo --root --host --port --auth --max-upload --compute --device",
}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line on stderr with which a wrong command line is refused."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    output = capsys.readouterr()
    assert end.value.code == 2 and not output.out
    (line,) = output.err.splitlines()
    return line


def run_alone(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "polyp.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_command_has_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    words = capsys.readouterr().out.split()
    assert end.value.code == 0 and set(OPTIONS[name].split()) <= set(words)


def test_every_command_is_listed_without_heavy_imports() -> None:
    code = (
        "import sys; from polyp.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('HEAVY', {'torch', 'cv2', 'pandas', 'gradio', 'scipy'} & set(sys.modules))"
    )
    for arguments in (["--help"], ["predict", "--help"]):
        process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert process.returncode == 0 and process.stdout.splitlines()[-1] == "HEAVY set()", process.stderr
        assert arguments[0] != "--help" or all(f"• {name} " in process.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", ["", *(name for name in COMMANDS if name != "train")])
def test_help_fits_the_terminal_and_its_examples_are_commands(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main([name, "--help"] if name else [])
    lines = capsys.readouterr().out.splitlines()
    examples = [line.split() for line in lines if line.startswith("  polyp ")]
    assert end.value.code == 0 and max(map(len, lines)) <= 80
    assert examples and all(words[1] == name or (not name and words[1] in COMMANDS) for words in examples)
    for _, command, *arguments in examples:
        if command != "train" and arguments != ["--help"]:
            cli._parse(command, arguments)


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (["train.py", "data=synthetic", "--cfg", "job"], "omegaconf"),
        (["-m", "polyp.cli", "data", "nowhere"], "tyro"),
    ],
)
def test_ctrl_c_during_imports_is_quiet(command: list[str], module: str) -> None:
    arguments = [sys.executable, "-X", "importtime", *command]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    try:
        process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, handler)
    with process:
        assert process.stderr is not None
        assert any(module in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
    # A shell says 130 in both cases. Python kills itself in the end if the signal came within exec of a text.
    assert process.returncode in (130, -signal.SIGINT)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"polyp {polyp.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["predcit", "run"], "predict"),
        (["predict", "run", "image.png", "--treshold", "0.3"], "--threshold"),
        (["predict", "--treshold", "0.3", "run", "image.png"], "--threshold"),
        (["predict", "run", "image.png", "--overlay"], "--no-overlays"),
        (["data", "--allow_emty"], "--allow-empty"),
    ],
)
def test_a_typing_error_gets_the_nearest_name(
    arguments: list[str], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nearest in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict"], ["polyp predict", "RUN"]),
        (["predict", "run", "a.png", "--threshold", "high"], ["--threshold", "'high'"]),
        (["predict", "run", "a.png", "--threshold"], ["--threshold"]),
        (["evaluate", "run", "--scales", "1,large"], ["--scales", "'large'"]),
        (["evaluate", "run", "--subset", "tset"], ["--subset", "tset", "test"]),
        (["app", "--port", "http"], ["--port", "'http'"]),
    ],
)
def test_a_wrong_value_gets_one_line(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    line = refusal(capsys, *arguments)
    assert all(word in line for word in words) and line.isprintable() and "│" not in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate"],
        ["compare"],
        ["predict", "run"],
        ["export", "run"],
        [
            "predict",
            "nowhere",
            "--no-overlays",
            "--tta",
            "--with",
            "a",
            "--with=b",
            "--out",
            "o",
            "--",
            "-x.png",
        ],
        ["evaluate", "nowhere", "--scales", "0.75,1", "--subset", "val"],
        ["--print-completion", "csh"],
    ],
)
def test_input_that_cannot_work_gets_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    line = str(end.value.code)  # which Python prints on stderr, with exit code 1
    assert line.startswith("polyp: ") and "\n" not in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS) and "no-overlays" in script


def test_a_model_that_is_not_there_is_refused_without_heavy_imports() -> None:
    code = (
        "import sys; from polyp.cli import main\n"
        "for command in ('predict', 'evaluate', 'export', 'app'):\n"
        "    try: main([command, 'nowhere', *(['x'] if command == 'predict' else [])])\n"
        "    except SystemExit as end: print(end)\n"
        "print('HEAVY', {'torch', 'cv2', 'pandas', 'scipy'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *refusals, heavy = process.stdout.splitlines()
    assert len(refusals) == 4 and all("nowhere is not there" in line for line in refusals), process.stderr
    assert heavy == "HEAVY set()"


def test_predict_needs_no_training_packages(tmp_path: Path) -> None:
    """Which take seconds to import."""
    run = write_model_run(tmp_path / "run")
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((50, 60, 3), np.uint8))
    arguments = ["predict", str(run), str(tmp_path / "image.png"), "--out", str(tmp_path / "out")]
    packages = {"pytorch_lightning", "torchmetrics", "albumentations", "pandas", "scipy", "matplotlib"}
    code = f"import sys; from polyp.cli import main; main({arguments}); print({packages} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.endswith("set()\n"), process.stdout + process.stderr
    assert (tmp_path / "out" / "image_mask.png").is_file()


def test_train_is_train_py_from_anywhere(tmp_path: Path) -> None:
    process = run_alone("train", "--cfg", "job", "experiment=quickstart", "seed=7", cwd=tmp_path)
    script = [sys.executable, str(ROOT / "train.py"), "--cfg", "job", "experiment=quickstart", "seed=7"]
    expected = subprocess.run(script, capture_output=True, text=True, check=True)
    assert process.returncode == 0 and process.stdout == expected.stdout and "seed: 7" in process.stdout
    wrong = run_alone("train", "model.encodr=resnet18", cwd=tmp_path)
    assert wrong.returncode == 1 and "encodr" in wrong.stderr


@pytest.mark.parametrize(
    ("environment", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(environment: dict[str, str], count: str) -> None:
    code = "import os, sys, polyp; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    variables = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    clean = {key: value for key, value in os.environ.items() if key not in variables} | environment
    process = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == [count, "False"]  # torch reads it when it is imported


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_PERTURB_": "0"}, False)])
def test_freed_memory_is_kept_unless_the_user_sets_glibc(environment: dict[str, str], kept: bool) -> None:
    code = (
        "import polyp\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "block = b'1' * 10**8; before = resident(); del block\n"
        "print(before - resident() < 10**7)"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | environment
    process = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == [str(kept)]


def test_imports_leave_garbage_collection_as_it_was() -> None:
    code = (
        "import gc; from polyp import terminal\n"
        "try:\n"
        "    with terminal.loading(): print(gc.isenabled()); import timm; raise ImportError\n"
        "except ImportError: print(gc.isenabled(), gc.get_freeze_count() > 10**5)\n"
        "before = gc.get_freeze_count()\n"
        "with terminal.loading(): print(gc.isenabled()); garbage = [[] for _ in range(1000)]\n"
        "print(gc.isenabled(), gc.get_freeze_count() <= before)"  # garbage that is there is not frozen
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False", "True", "True", "True", "True", "True"]
