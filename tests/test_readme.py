"""The README's commands run, each in small."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
from conftest import ROOT, SMALL, Train, run_script

from polyp.cli import main
from polyp.data.synthetic import Synthetic

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
LINES = [part.strip() for block in BLOCKS for line in block.splitlines() for part in line.partition("#")[0].split("&&")]
ALL = [line.removeprefix("python train.py").strip() for line in LINES if line.startswith("python train.py")]
COMMANDS = [
    command for command in ALL if not re.search(r"launcher=|trainer=ddp", command)
]  # they have tests of their own
ASKED = [line.removeprefix("polyp ") for line in LINES if line.startswith("polyp ")]
OWN = ("data=folder", "experiment=quickstart", "resume=")
SMALLER = [
    "data.image_size=64",
    "data.batch_size=2",
    "model.encoder_weights=null",
    "trainer.max_epochs=1",
    "+trainer.limit_train_batches=1",
    "+trainer.limit_test_batches=4",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outputs/ with the runs that the README speaks of."""
    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        for hour in (10, 12):
            run_script(
                *SMALL, f"optim.decoder_lr={hour}e-4", f"hydra.run.dir={outputs}/runs/default/2026-11-23_{hour}-00-00"
            )
    shutil.copytree(outputs / "runs" / "default", outputs / "sweeps" / "hyperparameters")
    return outputs


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with what the README speaks of."""
    monkeypatch.chdir(tmp_path)
    drawn = Synthetic(root="drawn", count=20, size=48).prepare()
    shutil.copytree(drawn, "my_polyps")
    shutil.copytree(drawn / "images", "normal_frames")
    shutil.copytree(drawn / "images", "new_images")
    video = cv2.VideoWriter("withdrawal.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 25, (48, 48))
    for image in sorted((drawn / "images").iterdir())[:5]:
        video.write(cv2.resize(cv2.imread(str(image)), (48, 48)))
    video.release()
    for name in ("CVC-300", "Kvasir"):
        shutil.copytree(drawn, f"TestDataset/{name}")
    shutil.copytree(drawn / "images", "CVC-ClinicDB/Original")
    shutil.copytree(drawn / "masks", "CVC-ClinicDB/Ground Truth")
    subsets = ["train"] * 14 + ["val"] * 3 + ["test"] * 3
    stems = sorted(path.stem for path in Path("my_polyps/images").iterdir())
    Path("encoders.csv").write_text("model.encoder\nmobilenet_v2\nresnet18\n")
    Path("my.csv").write_text("optim.decoder_lr,augment\n1e-3,\n,none\n")
    Path("my_split.csv").write_text(
        "stem,subset\n" + "\n".join(f"{stem},{subset}" for stem, subset in zip(stems, subsets, strict=True))
    )


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 10
    assert any("experiment=quickstart" in command for command in COMMANDS)
    assert {question.split()[0] for question in ASKED} == {"data", "evaluate", "compare", "predict", "export", "app"}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith(OWN)])
def test_a_command_runs(command: str, desk: None, train: Train) -> None:
    words = shlex.split(command)
    if "outputs/data/" in command:
        main(["data", "my_polyps"])
    if command.startswith("resume="):
        folder = Path(command.removeprefix("resume="))
        if "sweeps" in folder.parts:
            run_script("-m", *SMALL, "seed=0,1", f"hydra.sweep.dir={folder}")
        else:
            train(*SMALL, f"hydra.run.dir={folder}")
        finished = sorted(folder.rglob("metrics.json"))
        finished[-1].unlink()
        run_script(*words)
        assert sorted(folder.rglob("metrics.json")) == finished
    else:
        assert list(train(*words, *SMALLER).rglob("metrics.json"))


@pytest.mark.real_data
@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith(OWN)])
def test_a_command_on_kvasir_runs(command: str, desk: None, train: Train, data_folder: Path) -> None:
    Path("kvasir-seg.zip").symlink_to(data_folder / "kvasir-seg.zip")
    fewer = ["hydra.sweeper.n_trials=2"] if "experiment=optuna" in command else []
    fewer += ["seed=0"] if "seed=0,1,2" in command else []
    fewer += ["hydra.sweeper.path=my.csv"] if re.search(r"hyperparameters(?!.*path=)", command) else []  # of 18 jobs
    outputs = train(*shlex.split(command), "data.archive=kvasir-seg.zip", *SMALLER, *fewer)
    assert list(outputs.rglob("metrics.json"))


@pytest.mark.parametrize("question", [one for one in ASKED if not re.search("kvasir|^app|^export", one)])
def test_a_question_is_answered(question: str, desk: None, trained: Path) -> None:
    shutil.copytree(trained, "outputs")
    before = set(Path().rglob("*"))
    main(shlex.split(question))
    assert {path.suffix for path in set(Path().rglob("*")) - before} & {".html", ".md", ".json"}


@pytest.mark.slow
def test_an_exported_model_is_used(desk: None, trained: Path) -> None:
    shutil.copytree(trained, "outputs")
    for question in ASKED:
        if question.startswith("export"):
            main(shlex.split(question))
    [exported] = Path("outputs").rglob("model.onnx")
    shutil.copy(exported, "model.onnx")
    image = next(Path("new_images").iterdir())
    shutil.copy(image, "frame.jpg")
    said: dict[str, Any] = {}
    exec(marked("onnx"), said)
    assert said["mask"].shape == said["image"].shape[1:3] and 0 < said["probability"].min() < said["probability"].max()


@pytest.mark.slow
def test_scripts_ask_the_app(desk: None, trained: Path) -> None:
    shutil.copytree(trained, "outputs")
    shutil.copy(next(Path("new_images").iterdir()), "image.jpg")
    [command] = [question for question in ASKED if question.startswith("app outputs")]
    with subprocess.Popen(
        [sys.executable, "-m", "polyp.cli", *shlex.split(command), "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = next(filter(None, (re.search(r"http://\S+", line) for line in process.stdout)))[0]
            subprocess.run(["bash", "-ec", marked("api").replace("http://127.0.0.1:7860", address)], check=True)
            said: dict[str, Any] = {}
            exec(marked("client").replace("http://127.0.0.1:7860", address), said)
        finally:
            process.terminate()
    assert said["found"]["polyps"] and said["mask"] == Path("mask.png").read_bytes()


def marked(name: str) -> str:
    """The README's block of that mark."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.real_data
@pytest.mark.parametrize("question", [question for question in ASKED if "kvasir" in question])
def test_a_question_about_kvasir_is_answered(question: str, desk: None, data_folder: Path) -> None:
    Path("kvasir-seg.zip").symlink_to(data_folder / "kvasir-seg.zip")
    main(shlex.split(question))
    assert Path("outputs/data/kvasir_seg.html").is_file()
