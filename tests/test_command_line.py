"""Values that Hydra or the shell reads as something else: what is printed can be pasted into a shell."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, Train, run_script
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from polyp.cli import main
from polyp.errors import override_word, shell_word
from polyp.runs.configuration import check_composition
from polyp.runs.overrides import check_overrides

NAMES = [
    "Dữ liệu",
    "a=b",
    "it's",
    "(new) data",
    "Kvasir(1)",
    'a "b" $c',
    "a#b,c",
    "a,b",
    "[old",
    "{stem}_mask",
    "~a~b!",
    "<a> & b;",
    "a\\",
    'a\\"b',
    "2024",
    "null",
]


def split_words(text: str) -> list[str]:
    """The words that bash makes of a text."""
    script = f"printf '%s\\0' {text}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.split("\0")[:-1]


def suggestions(*words: str) -> list[str]:
    """The overrides that check_overrides says to write instead, as bash hands them on; [] if all is well."""
    try:
        check_overrides(["train.py", *words])
    except SystemExit as error:
        message = str(error)
        assert "\n" not in message
        written = [word for word in split_words(message.partition("write ")[2]) if "=" in word]
        flags = [word for word in words if word.startswith("-")]
        assert written and not any(suggestions(*flags, word) for word in written)
        return written
    return []


def value(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize("name", NAMES)
def test_a_word_that_is_printed_can_be_pasted(name: str) -> None:
    assert split_words(f"polyp evaluate {shell_word(name)}")[2:] == [name]
    (override,) = split_words(override_word("resume", name))
    assert value(override) == name
    (override,) = split_words(override_word("data.root", [name, 1]))
    assert value(override) == [name, 1]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        *((f"data.root={name}", name) for name in NAMES if name not in ("a,b", "a\\", "2024", "null")),
        ("hydra.run.dir=./Dữ liệu (1)", "./Dữ liệu (1)"),
        ("data.root=[./Dữ liệu,./b]", ["./Dữ liệu", "./b"]),
        ("data.root=['a,b',it's,c#]", ["a,b", "it's", "c#"]),
        ("data.root={kvasir: ./a=b,cvc: [./c,./d#]}", {"kvasir": "./a=b", "cvc": ["./c", "./d#"]}),
        ("data.polyp_values=!= 0", "!= 0"),
        ("data.polyp_values=[1,#00ff00]", [1, "#00ff00"]),
    ],
)
def test_a_value_that_needs_quotes_is_given_ready_to_paste(words: str, meant: object) -> None:
    (written,) = suggestions(words)
    assert value(written) == meant
    assert suggestions(*words.split(" ")) == [written]  # as a shell hands it on without any quotes


def test_quotes_that_the_shell_has_eaten() -> None:
    assert suggestions("data.images=Ground", "Truth", "seed=1") == ["data.images=Ground Truth"]
    assert suggestions("data.root=./a", "data.root=./b#") == ["data.root=[./a,'./b#']"]
    (mapping,) = suggestions("data.root=a:./a", "data.root=b:./b")
    assert value(mapping) == {"a": "./a", "b": "./b"}


def test_a_comma_without_a_sweep_is_a_list_or_a_text() -> None:
    assert [value(each) for each in suggestions("data.root=./a,./b")] == [["./a", "./b"], "./a,./b"]


def test_a_sweep_keeps_its_values_apart() -> None:
    assert suggestions("-m", "data.root=./Dữ liệu,./b") == ["data.root='./Dữ liệu',./b"]


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "seed=0,1"],
        ["seed=0,1", "--multirun"],
        ["experiment=encoders", "seed=0,1"],
        ["hydra.mode=MULTIRUN", "seed=0,1"],
        ["--cfg", "job", "seed=1"],
        ["~optim", "+model.depth=3", "data.root=[a,b]", "data.images={x: a}", "name=a b"],
        ["data.root='a=b'", "seed=1", "seed=2", "hydra.run.dir=a", "hydra.run.dir=b", "data.root="],
    ],
)
def test_what_hydra_understands_is_left_alone(words: list[str]) -> None:
    check_overrides(["train.py", *words])


@pytest.mark.parametrize("word", ["ключ=1", "data.root={Dữ: ./a}", "a b=1"])
def test_a_key_that_cannot_be_is_refused(word: str) -> None:
    with pytest.raises(SystemExit, match="cannot be understood"):
        check_overrides(["train.py", word])


@pytest.mark.parametrize("key", ["data.root", "data.images"])
def test_a_folder_whose_name_is_a_number(key: str, train: Train) -> None:
    with pytest.raises(SystemExit) as error:
        train("data=folder", f"{key}=2024")
    (pasted,) = split_words(str(error.value).rpartition("such as ")[2])
    assert value(pasted) == "2024"


def test_options_that_polyp_data_suggests_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, colours in {
        "images": ["gray"] * 4,
        "masks": ["#ff0000", "#00ff00", "black", "black"],
    }.items():
        Path("a=b", folder).mkdir(parents=True)
        for number, colour in enumerate(colours):
            image = Image.new("RGB", (32, 32))
            image.paste(colour, (4, 4, 14, 14))
            image.save(Path("a=b", folder, f"{number}.png"))
    with pytest.raises(SystemExit) as error:
        main(["data", "a=b"])
    pasted = split_words(str(error.value).partition("Add ")[2])[:2]
    assert pasted == ["--polyp-values", "#00ff00,#ff0000"]
    main(["data", "a=b", *pasted])


@pytest.mark.slow
def test_what_a_run_prints_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In folders with such names: train, then the printed command that evaluates, then a sweep."""
    folder = tmp_path / "Dữ liệu [1] (it's)"
    folder.mkdir()
    monkeypatch.chdir(folder)
    command = [sys.executable, str(ROOT / "train.py"), *SMALL]
    where = override_word("hydra.run.dir", "outputs/x=[red] (1)/run")
    output = subprocess.run(
        ["bash", "-c", f"{' '.join(map(shell_word, command))} {where}"], capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr
    lines = {line.split()[0]: line for line in output.stdout.splitlines() if line.startswith("  ")}
    evaluate = split_words(lines["evaluate"].strip())
    assert evaluate[1:3] == ["polyp", "evaluate"] and Path(evaluate[3], "metrics.json").is_file()
    curves = split_words(lines["curves"].strip())
    assert Path(curves[-1]).is_dir()


@pytest.mark.slow
def test_a_sweep_in_a_folder_with_signs_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (sweep,) = split_words(override_word("hydra.sweep.dir", "Dữ liệu (1)/it's"))
    # the second seed cannot work, so that the sweep says how to try it again
    with pytest.raises(SystemExit):
        run_script("-m", *SMALL, "seed=0,-1", sweep)
    (again,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  try again")]
    words = split_words(again.partition("try again")[2].strip())
    assert words[:2] in (["polyp", "train"],)
    with pytest.raises(SystemExit):
        run_script(*words[2:])
    assert "  try again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.encodr=resnet18"], "model.encodr is no setting of polyp: did you mean model.encoder"),
        (["optm=sgd"], "optm is no setting of polyp: did you mean optim"),
        (["~model.arc"], "did you mean model.arch"),
        (["epochs=3"], "trainer.max_epochs=NUMBER"),
        (["trainer.limit_train_batches=2"], "+trainer.limit_train_batches=VALUE"),
        (["data=kvasirseg"], "data=kvasirseg is unknown: did you mean kvasir_seg?"),
        (["experiment=quikstart"], "did you mean quickstart?"),
        (["data.count=5"], "data.count is a setting of data=synthetic: add that"),
        (["data=synthetic", "data.countt=5"], "did you mean data.count"),
        (["-m", "seed=0,1", "data=kvasirseg,folder"], "did you mean kvasir_seg?"),
        (["-m", "model.encodr=a,b"], "did you mean model.encoder"),
        (["-m", "model.encoder=resnet18", "optim.lr=range(1,3)"], "optim.encoder_lr"),
    ],
)
def test_an_unknown_key_or_choice_is_one_line_with_the_nearest(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as end:
        check_composition(["train.py", *words], ROOT / "conf")
    assert message in str(end.value) and "\n" not in str(end.value)


@pytest.mark.parametrize(
    "words",
    [
        ["data=synthetic", "data.count=5", "+trainer.limit_train_batches=2"],
        ["-m", "experiment=encoders", "seed=choice(0,1)", "optim.decoder_lr=1e-3,1e-4"],
        ["-m", "experiment=optuna", "optim.decoder_lr=tag(log, interval(1e-4, 1e-2))"],
        ["--cfg", "job", "model.encodr=1"],  # left to Hydra
        ["model.loss={dice: 1}", "callbacks=[{_target_: my.Callback, patience: 3}]", "~optim.momentum"],
        ["hydra.run.dir=somewhere", "hydra/sweeper=csv", "launcher=joblib"],
    ],
)
def test_what_hydra_composes_is_accepted(words: list[str]) -> None:
    check_composition(["train.py", *words], ROOT / "conf")
