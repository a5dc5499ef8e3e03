"""The commands of the README and of docs/ run, each in small; links resolve, and the site builds."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, SMALL, Train, run_script, train_once
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from polyp.cli import main
from polyp.data.sources import Synthetic
from polyp.runs.configuration import resolve_config
from polyp.runs.data import build_data

README = (ROOT / "README.md").read_text()
PAGES = [README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))]


def read_commands(page: str) -> list[str]:
    """The command lines of a page's bash blocks, without comments, with $RUN replaced by its value."""
    lines: list[str] = []
    variables: dict[str, str] = {}
    for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.partition("#")[0].split(" && "):
                if assignment := re.fullmatch(r"(\w+)=(\S+)", command.strip()):
                    variables[assignment[1]] = assignment[2]
                lines.append(re.sub(r"\$(\w+)", lambda name: variables[name[1]], command.strip()))
    return lines


def marked_block(name: str) -> str:
    """The code block below the comment of that name."""
    block = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", "\n".join(PAGES), re.DOTALL)
    assert block is not None
    return block[1]


LINES = list(dict.fromkeys(line for page in PAGES for line in read_commands(page)))  # each once
QUICK_START = read_commands(f"```bash\n{marked_block('start')}```")
TRAIN = [line.removeprefix("python train.py").strip() for line in LINES if line.startswith("python train.py")]
INLINE = sorted(set(re.findall(r"`python train\.py ([^`]+=[^`]+)`", "\n".join(PAGES))) - set(TRAIN))
POLYP = [
    line.removeprefix("polyp ") for line in LINES if line.startswith("polyp ") and line not in QUICK_START
]
FOLDERS = [
    command
    for command in TRAIN
    if command.startswith("data=folder") and not re.search("outputs/|split=pranet", command)
]  # the second needs the real names
WITHOUT_KVASIR = [
    command
    for command in TRAIN
    if command.startswith(("data=folder", "experiment=quickstart", "resume="))
    and command not in FOLDERS[2:]
    and "split=pranet" not in command
]  # the other layouts are read without training on them
WITH_KVASIR = [
    command
    for command in TRAIN
    if not re.search("launcher=|trainer=ddp|experiment=quickstart|^data=folder|^resume=", command)
]  # launchers and several devices have tests of their own
SMALLER = [
    "data.image_size=96",
    "data.batch_size=2",
    "model.encoder_weights=null",
    "trainer.max_epochs=1",
    "+trainer.limit_train_batches=1",
    "+trainer.limit_test_batches=4",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outputs/ folder with the runs that the pages mention."""
    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    for seed, hour in enumerate((10, 12)):
        run = outputs / f"runs/default/2026-11-23_{hour}-00-00"
        shutil.copytree(train_once(tmp_path_factory, f"seed={seed}"), run)
    shutil.copytree(outputs / "runs" / "default", outputs / "sweeps" / "hyperparameters")
    sweep = outputs / "sweeps" / "default" / "2026-11-23_10-00-00"
    for job in ("0_seed-0", "1_seed-1"):
        shutil.copytree(outputs / "runs" / "default" / "2026-11-23_10-00-00", sweep / job)
    (sweep / "multirun.yaml").touch()
    (sweep / "results.csv").write_text("job,seed\n0,0\n1,1\n")
    shutil.copytree(sweep, outputs / "sweeps" / "crossvalidation" / sweep.name)
    return outputs


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the files that the pages mention."""
    monkeypatch.chdir(tmp_path)
    generated = Synthetic(root="generated", count=20, size=48).prepare()
    shutil.copytree(generated, "my_polyps")
    shutil.copytree(generated / "images", "normal_frames")
    shutil.copytree(generated / "images", "new_images")
    video = cv2.VideoWriter("withdrawal.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 25, (48, 48))
    for image in sorted((generated / "images").iterdir())[:5]:
        video.write(cv2.resize(cv2.imread(str(image)), (48, 48)))
    video.release()
    for name in ("CVC-300", "Kvasir"):
        shutil.copytree(generated, f"TestDataset/{name}")
    shutil.copytree(generated / "images", "CVC-ClinicDB/Original")
    shutil.copytree(generated / "masks", "CVC-ClinicDB/Ground Truth")
    _write_layouts(generated)
    subsets = ["train"] * 14 + ["val"] * 3 + ["test"] * 3
    stems = sorted(path.stem for path in Path("my_polyps/images").iterdir())
    Path("encoders.csv").write_text("model.encoder\nmobilenet_v2\nresnet18\n")
    Path("my_losses.py").write_text(marked_block("own-loss"))
    Path("my.csv").write_text("optim.decoder_lr,augment\n1e-3,\n,none\n")
    Path("my_split.csv").write_text(
        "stem,subset,patient\n"
        + "".join(f"{stem},{subset},{subset}\n" for stem, subset in zip(stems, subsets, strict=True))
    )
    Path("patients.csv").write_text(
        "stem,patient\n" + "".join(f"{s},{n % 15}\n" for n, s in enumerate(stems))
    )


def _write_layouts(generated: Path) -> None:
    """The layouts that docs/data.md mentions."""
    for name in ("Kvasir-SEG", "BKAI", "Dữ liệu"):
        shutil.copytree(generated, name)
    shutil.copytree(generated / "images", "outlines/images")
    annotations: dict[str, Any] = {"images": [], "annotations": []}
    for number, image in enumerate(sorted((generated / "images").iterdir())):
        case = number % 4
        for root, images, masks in (
            ("SUN-SEG", f"Frame/case{case}", f"GT/case{case}"),
            ("PolypGen", f"data_C{case}/images_C{case}", f"data_C{case}/masks_C{case}"),
            ("my_masks", "images", "masks"),
            ("nnunet", "images", "labels"),
        ):
            for folder, source in ((images, image), (masks, generated / "masks" / f"{image.stem}.png")):
                suffix = {"my_masksmasks": "_mask", "nnunetimages": "_0000"}.get(root + folder, "")
                Path(root, folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, Path(root, folder, f"{image.stem}{suffix}{source.suffix}"))
        height, width = cv2.imread(str(image)).shape[:2]
        annotations["images"].append(
            {"id": number, "file_name": image.name, "height": height, "width": width}
        )
        outline = [[5, 5, 30, 5, 30, 25, 5, 25]]
        annotations["annotations"].append(
            {"id": number, "image_id": number, "category_id": number % 3, "segmentation": outline}
        )
        Path("outlines/labels").mkdir(exist_ok=True)
        Path(f"outlines/labels/{image.stem}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    for file, names in (
        ("annotations", ["polyp"] * 3),
        ("classes", ["adenoma", "hyperplastic", "instrument"]),
    ):
        categories = [{"id": number, "name": name} for number, name in enumerate(names)]
        Path(f"outlines/{file}.json").write_text(json.dumps({**annotations, "categories": categories}))


def test_pages_have_commands() -> None:
    assert len(TRAIN) > 20 and any("experiment=quickstart" in command for command in WITHOUT_KVASIR)
    assert {command.split()[0] for command in POLYP} == {
        "data",
        "evaluate",
        "compare",
        "predict",
        "export",
        "tune",
        "app",
    }


def test_readme_fits_one_page() -> None:
    assert len(README.splitlines()) <= 150


def test_readme_links_resolve() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target.partition("#")[0]).is_file(), target


def test_site_builds_without_warnings(tmp_path: Path) -> None:
    """Strict mode also checks the links and anchors of all pages."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("site", ".cache"))
    command = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--strict",
        "-f",
        str(tmp_path / "docs" / "zensical.toml"),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / "docs" / "site" / page.stem.replace("index", "") / "index.html").is_file()


def test_installed_extras_and_scripts_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = "\n".join(PAGES)
    assert set(re.findall(r"pip install -e '\.\[(\w+)\]'", text)) <= set(extras)
    scripts = re.findall(r"python (tests/\S+\.py)", text)
    assert scripts and all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("command", [command for command in TRAIN + INLINE if command not in WITHOUT_KVASIR])
def test_train_command_composes(command: str) -> None:
    words = [word for word in shlex.split(command) if word != "-m"]
    overrides = OverridesParser.create().parse_overrides(words)
    jobs = [override.input_line for override in overrides if not override.is_sweep_override()]
    jobs += [
        f"{override.key_or_group}={next(override.sweep_string_iterator())}"
        for override in overrides
        if override.is_sweep_override() and not override.is_interval_sweep()
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("train", overrides=[job for job in jobs if job], return_hydra_config=True).model.arch


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.slow] if "sweeps" in command else [])
        for command in WITHOUT_KVASIR
    ],
)
def test_train_command_runs(command: str, workspace: None, train: Train) -> None:
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


@pytest.mark.parametrize("command", FOLDERS)
def test_data_command_finds_and_divides_images(command: str, workspace: None) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve_config(compose("train", overrides=[*shlex.split(command), "data.allow_empty=true"]))
    data = build_data(config["data"], config["augment"], seed=0)
    data.check()
    data.find()
    assert all(data.subsets[name] for name in ("train", "val", "test"))


@pytest.mark.real_data
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            command, marks=[pytest.mark.nightly] if "crossvalidation" in command and "," in command else []
        )
        for command in WITH_KVASIR
    ],
)
def test_train_command_runs_on_kvasir(
    command: str, workspace: None, trained: Path, train: Train, data_folder: Path
) -> None:
    Path("kvasir-seg.zip").symlink_to(data_folder / "kvasir-seg.zip")
    if "model.init_from=" in command:
        shutil.copytree(trained, "outputs")
        shutil.copy(data_folder / "weights" / "tu-tf_efficientnet_lite0.safetensors", "weights.safetensors")
        torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")
    fewer = ["hydra.sweeper.n_trials=2"] if "experiment=optuna" in command else []
    fewer += ["seed=0"] if "seed=0,1,2" in command else []
    fewer += ["model.encoder=mobilenet_v2,resnet18"] if "experiment=encoders" in command else []
    fewer += ["data.folds=2"] if "experiment=crossvalidation" in command else []
    fewer += (
        ["data.num_workers=0"] if "data.num_workers=" in command else []
    )  # torch warns of more than cores
    if re.search(r"hyperparameters(?!.*path=)", command):  # 18 jobs
        fewer += ["hydra.sweeper.path=encoders.csv"]
    if "model.init_from=outputs/" in command:
        fewer += [override for override in SMALL if override.startswith("model.encoder=")]
    fewer += ["trainer.max_epochs=6"] if "unfreeze_epoch=5" in command else []
    archive = [] if "data.archive=" in command else ["data.archive=kvasir-seg.zip"]
    outputs = train(*shlex.split(command), *archive, *SMALLER, *fewer)
    assert list(outputs.rglob("metrics.json"))


@pytest.mark.parametrize(
    "command", [command for command in POLYP if not re.search("kvasir|^app|^export|^tune|/export/", command)]
)
def test_polyp_command_writes_results(command: str, workspace: None, trained: Path) -> None:
    shutil.copytree(trained, "outputs")
    before = set(Path().rglob("*"))
    main(shlex.split(command))
    assert {path.suffix for path in set(Path().rglob("*")) - before} & {".html", ".md", ".json"}


@pytest.mark.slow
def test_quick_start_runs(workspace: None) -> None:
    train, *others = QUICK_START
    run_script(*shlex.split(train)[2:], "data.count=20", "data.size=48", "trainer.max_epochs=1")
    for command in others:
        words = [
            sorted(map(str, Path().glob(word))) if "*" in word else [word]
            for word in shlex.split(command)[1:]
        ]
        main([word for expanded in words for word in expanded])
    assert list(Path("outputs").glob("comparisons/*/compare.html"))
    assert len(list(Path("outputs").glob("sweeps/quickstart/*/1_*/predictions/images/masks/*.png"))) == 20


@pytest.mark.slow
def test_exported_file_runs_without_polyp(workspace: None, trained: Path) -> None:
    shutil.copytree(trained, "outputs")
    for command in POLYP:
        if command.startswith("export") or "/export/" in command:
            main(shlex.split(command))
    [exported] = Path("outputs/runs").rglob("model.onnx")
    shutil.copy(exported, "model.onnx")
    image = next(Path("new_images").iterdir())
    shutil.copy(image, "frame.jpg")
    names: dict[str, Any] = {}
    exec(marked_block("onnx"), names)
    assert names["mask"].shape == names["image"].shape[1:3]
    assert 0 < names["probability"].min() < names["probability"].max()


@pytest.mark.slow
def test_http_api_commands_work(workspace: None, trained: Path) -> None:
    shutil.copytree(trained, "outputs")
    image = next(Path("new_images").iterdir())
    shutil.copy(image, "image.jpg")
    [command] = [command for command in POLYP if command.startswith("app outputs")]
    with subprocess.Popen(
        [sys.executable, "-m", "polyp.cli", *shlex.split(command), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            address = next(filter(None, (re.search(r"http://\S+", line) for line in process.stdout)))[
                0
            ].rstrip("/")
            block = marked_block("api").replace("http://127.0.0.1:7860", address)
            answer = subprocess.run(["bash", "-ec", block], check=True, capture_output=True, text=True)
        finally:
            process.terminate()
    assert '"polyps"' in answer.stdout
    mask = cv2.imread("mask.png", cv2.IMREAD_UNCHANGED)
    assert mask.shape == cv2.imread("image.jpg").shape[:2] and set(np.unique(mask)) <= {0, 255}


@pytest.mark.real_data
@pytest.mark.parametrize("command", [command for command in POLYP if "kvasir" in command])
def test_polyp_command_runs_on_kvasir(command: str, workspace: None, data_folder: Path) -> None:
    Path("kvasir-seg.zip").symlink_to(data_folder / "kvasir-seg.zip")
    main(shlex.split(command))
    assert Path("outputs/data/kvasir_seg.html").is_file()
