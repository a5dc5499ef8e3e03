"""`polyp export`: the ONNX files compute what the module does, and are measured before they are in place."""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import THREE_EPOCHS, train_once
from torch import nn

from polyp.cli import main
from polyp.commands.export import export as exporting
from polyp.commands.export.file import set_metadata, write_onnx
from polyp.commands.export.graph import resize as resize_in_graph
from polyp.commands.export.integers import enlarge_by_products
from polyp.data.pairs import read_image
from polyp.errors import InputError
from polyp.images import resize
from polyp.inference.predictor import load_predictor
from polyp.model import device
from polyp.model.exported import BACKENDS, OnnxModel, open_exported
from polyp.model.fitting import ARCHITECTURES
from polyp.model.segmenter import PolypSegmenter
from polyp.runs.data import load_run_data
from polyp.runs.folder import RunFolder
from polyp.runs.model import EXPORT_SUFFIXES, ModelSource, load_checkpoint

pytest.importorskip("onnxruntime", reason="needs pip install -e '.[onnx]'")

METADATA = {"threshold": "0.4", "image_size": "[64, 64]", "precision": "float32", "fingerprint": "none"}


def network(arch: str = "unet", encoder: str = "resnet18", **settings: Any) -> PolypSegmenter:
    """A model with random weights, whose normalisation makes its outputs differ from pixel to pixel."""
    torch.manual_seed(0)
    options: dict[str, Any] = dict.fromkeys(
        ("encoder_weights", "encoder_depth", "decoder_channels", "decoder_attention"), None
    )
    options |= {"stages": 1, "image_size": 64, "threshold": 0.4}
    model = PolypSegmenter(arch, encoder, **options | settings)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.eval()


def pictures(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    """Something smooth with noise on it, (3, H, W) uint8."""
    random = np.random.default_rng(0)
    return [
        torch.from_numpy(
            cv2.resize(random.integers(0, 256, (h // 6 + 1, w // 6 + 1, 3), np.uint8), (w, h))
            .transpose(2, 0, 1)
            .copy()
        )
        for h, w in sizes
    ]


def largest_difference(model: PolypSegmenter, file: Path, images: list[torch.Tensor]) -> float:
    """The largest difference between the module's probabilities and the file's."""
    probabilities = OnnxModel(file).predict([image.permute(1, 2, 0).numpy() for image in images])
    pairs = zip(model.predict(images), probabilities, strict=True)
    return max(np.abs(one.numpy() - other).max() for one, other in pairs)


# ---- the resize


@pytest.mark.parametrize("size", [(64, 64), (50, 97), (97, 50), (256, 320), (33, 160)])
def test_exported_resize_equals_torchs(size: tuple[int, int]) -> None:
    for image in pictures((64, 64), (131, 97), (40, 333), (64, 50)):
        resized = resize_in_graph(image.permute(1, 2, 0)[None], size)[0]
        assert torch.equal(resized, resize(image, size).float())


def test_exported_resize_has_the_weights_computed_by_hand() -> None:
    # Four pixels to two: each is the mean of four with weights 1, 3, 3, 1, less what is over the edge.
    line = torch.tensor([10, 20, 30, 90], dtype=torch.uint8)
    resized = resize_in_graph(line.reshape(1, 1, 4, 1).repeat(1, 1, 1, 3), (1, 2))
    first, second = (3 * 10 + 3 * 20 + 30) / 7, (20 + 3 * 30 + 3 * 90) / 7
    assert resized[0, 0, 0].tolist() == [round(first), round(second)]


# ---- the file


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[PolypSegmenter, Path]:
    """A network for oblong images, whose sides are no multiples of 32, and its file."""
    model = network(encoder_depth=3, decoder_channels=[8, 8, 8], image_size=[40, 72])
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx([model], file, METADATA)
    return model, file


def test_file_computes_what_the_module_does_at_any_size_and_batch(small: tuple[PolypSegmenter, Path]) -> None:
    model, file = small
    images = pictures((64, 64), (131, 97), (20, 333), (131, 97), (131, 97))
    expected = model.predict(images)
    assert all(one.std() > 0.01 for one in expected), "a constant answer proves nothing"
    assert largest_difference(model, file, images) < 1e-4  # three of a size together
    assert largest_difference(model, file, images[:1]) < 1e-4


def test_file_has_its_metadata_and_types(small: tuple[PolypSegmenter, Path]) -> None:
    model = OnnxModel(small[1])
    assert model.threshold == 0.4 and model.precision == "float32"
    assert model.metadata == METADATA
    inputs, outputs = model.session.get_inputs(), model.session.get_outputs()
    assert [(node.name, node.type, node.shape) for node in inputs] == [
        ("image", "tensor(uint8)", ["batch", "height", "width", 3])
    ]
    assert [(node.name, node.type, node.shape) for node in outputs] == [
        ("probability", "tensor(float)", ["batch", "height", "width"])
    ]


def test_file_refuses_another_scale(small: tuple[PolypSegmenter, Path]) -> None:
    with pytest.raises(InputError, match="another scale"):
        OnnxModel(small[1]).predict([np.zeros((64, 64, 3), np.uint8)], 0.5)


def test_predicting_with_a_file_imports_no_torch(small: tuple[PolypSegmenter, Path], tmp_path: Path) -> None:
    """Which takes seconds."""
    cv2.imwrite(str(tmp_path / "image.png"), pictures((50, 60))[0].permute(1, 2, 0).numpy())
    arguments = ["predict", str(small[1]), str(tmp_path / "image.png"), "--out", str(tmp_path / "out")]
    heavy = "{'torch', 'pytorch_lightning', 'pandas'}"
    program = (
        f"import sys; from polyp.cli import main; main({arguments}); print(sys.modules.keys() & {heavy})"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.endswith("set()\n") and (tmp_path / "out" / "image_mask.png").is_file()


def test_file_is_loaded_as_checkpoints_are(small: tuple[PolypSegmenter, Path]) -> None:
    image = pictures((50, 60))[0]
    predictor = load_predictor([str(small[1])])
    assert predictor.backend == "onnx float32" and predictor.threshold == 0.4
    np.testing.assert_allclose(
        predictor.predict(image.permute(1, 2, 0).numpy()), small[0].predict([image])[0], atol=1e-4
    )


def test_other_onnx_files_are_refused(small: tuple[PolypSegmenter, Path], tmp_path: Path) -> None:
    import onnx

    value = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [1])
    node = onnx.helper.make_node("Identity", ["image"], ["probability"])
    out = onnx.helper.make_tensor_value_info("probability", onnx.TensorProto.UINT8, [1])
    graph = onnx.helper.make_graph([node], "other", [value], [out])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10),
        tmp_path / "other.onnx",
    )
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match=r"other.onnx is no model of polyp's"):
        load_predictor([str(tmp_path / "other.onnx")])
    model = onnx.load(small[1])
    for threshold in ("half", "nan", "inf", "-0.5", "1"):
        set_metadata(model, METADATA | {"threshold": threshold})
        onnx.save(model, tmp_path / "edited.onnx")
        with pytest.raises(InputError, match=rf"edited.onnx has the threshold {threshold},"):
            load_predictor([str(tmp_path / "edited.onnx")])
    set_metadata(model, METADATA)
    for name, kind, options in (
        ("twice", "Add", {}),
        ("turned", "Transpose", {"perm": [0, 2, 1]}),
        ("flat", "Flatten", {}),
    ):
        edited = copy.deepcopy(model)
        inputs = ["probability"] * (1 + (kind == "Add"))
        edited.graph.node.append(onnx.helper.make_node(kind, inputs, [name], **options))
        del edited.graph.output[:]
        sides = [None, None] if name == "flat" else [None, None, None]
        edited.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sides))
        onnx.save(edited, tmp_path / f"{name}.onnx")
        with pytest.raises(InputError, match=rf"{name}.onnx"):
            load_predictor([str(tmp_path / f"{name}.onnx")]).predict(np.full((64, 32, 3), 200, np.uint8))


# ---- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run."""
    return train_once(tmp_path_factory, *THREE_EPOCHS)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of the test's own."""
    return shutil.copytree(trained, tmp_path / "run")


def refusal(*arguments: str) -> str:
    """The line that the command leaves with."""
    with pytest.raises(SystemExit) as error:
        main(["export", *arguments, "--onnx"])
    text = str(error.value.code)
    assert text.startswith("polyp: ") and "\n" not in text
    return text


@pytest.mark.slow
def test_export_writes_and_measures_all_variants(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["export", str(run), "--onnx", "--fp16", "--int8", "--openvino"])
    output = capfd.readouterr()
    assert (
        "ONNX int8" in output.out
        and "OpenVINO int8" in output.out
        and "Warning" not in output.out + output.err
        and "torch.onnx" not in output.out + output.err
    )
    folder = run / "export"
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx",
        "model_fp16.onnx",
        "model_int8.onnx",
        "model_openvino.xml",
        "model_openvino.bin",
        "export.json",
    }
    assert not [path for path in run.iterdir() if path.name.startswith(".export")]
    record = json.loads((folder / "export.json").read_text())
    assert record["module"]["float32"]["dice"] == pytest.approx(
        RunFolder(run).read_metrics()["test"]["dice"], abs=0.01
    )
    for backend, name, tolerated in (
        ("onnx", "float32", 1e-3),
        ("onnx", "float16", 0.05),
        ("onnx", "int8", 0.5),
        ("openvino", "int8", 0.5),
    ):
        measured = record[backend][name]
        assert set(measured["difference"]) == {"1", "0.5", "1.5"}
        assert max(measured["difference"].values()) < tolerated
        assert (
            abs(measured["dice_loss"]) < 0.1
            and 0 < measured["latency_ms"]["median"] <= measured["latency_ms"]["p95"]
        )
        model = open_exported(folder / measured["file"])
        assert (model.backend, model.precision) == (backend, name) and model.metadata["classes"] == "polyp"
        assert json.loads(model.metadata["metrics"])["n"] == RunFolder(run).read_metrics()["test"]["n"]
        assert json.loads(model.metadata["config"])["model"]["encoder"] == "mobilenet_v2"
        assert model.metadata["fingerprint"] == record["fingerprint"]

    assert record["onnx"]["int8"]["bytes"] == (folder / "model_int8.onnx").stat().st_size
    losses = [note for note in record["notes"] if "of Dice on the validation images" in note]
    assert [note.split()[0] for note in losses] == ["int8", "OpenVINO"]

    image = read_image(load_run_data(run, RunFolder(run).read_config()).get_pairs("test")[0].image)
    module = load_checkpoint(ModelSource.of(str(run)))
    module.precision = "32-true"
    exact = module.predict([torch.from_numpy(image).permute(2, 0, 1)])[0]
    np.testing.assert_allclose(load_predictor([str(folder / "model.onnx")]).predict(image), exact, atol=1e-3)
    main(["evaluate", str(folder / "model.onnx")])
    evaluated = json.loads((run / "evaluations" / "model_test" / "metrics.json").read_text())
    assert evaluated["computed"] == "onnx float32" and evaluated["deviation"] > 0
    assert evaluated["numbers"]["dice"]["value"] == pytest.approx(record["onnx"]["float32"]["dice"], abs=1e-6)
    main(["evaluate", str(folder / "model_openvino.xml")])
    evaluated = json.loads((run / "evaluations" / "model_openvino_test" / "metrics.json").read_text())
    assert evaluated["computed"] == "openvino int8"
    assert evaluated["numbers"]["dice"]["value"] == pytest.approx(
        record["openvino"]["int8"]["dice"], abs=1e-6
    )
    weights = folder / "model_openvino.bin"
    weights.rename(tmp_path / weights.name)
    with pytest.raises(InputError, match=r"model_openvino\.xml cannot be opened"):
        load_predictor([str(folder / "model_openvino.xml")])
    before = (folder / "model.onnx").stat().st_mtime_ns
    assert "is there already: replace it with --overwrite" in refusal(str(run))
    assert (folder / "model.onnx").stat().st_mtime_ns == before
    copied = shutil.copy(folder / "model.onnx", tmp_path)
    monkeypatch.setattr(exporting, "write_onnx", lambda model, file, metadata: shutil.copy(copied, file))
    main(["export", str(run), "--onnx", "--overwrite"])
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "export.json"}


def test_weights_of_openvino_are_not_those_of_the_onnx_file_beside_them(tmp_path: Path) -> None:
    for name, size in (("model_int8.onnx", 5), ("model_openvino.xml", 2), ("model_openvino.bin", 4)):
        (tmp_path / name).write_bytes(bytes(size))
    assert exporting.count_bytes(tmp_path / "model_int8.onnx") == 5
    assert exporting.count_bytes(tmp_path / "model_openvino.xml") == 6


@pytest.mark.parametrize("size", [(53, 90), (20, 24), (7, 300)])
def test_openvino_enlarges_by_products_as_torch_does(size: tuple[int, int]) -> None:
    import openvino
    from openvino import opset13 as ops

    logits = ops.parameter([-1, 1, 20, 24], np.float32)
    shape = ops.parameter([4], np.int64)
    enlarged = ops.interpolate(logits, shape, "linear_onnx", "sizes", axes=np.arange(4))
    model = openvino.Model([ops.sigmoid(enlarged)], [logits, shape])
    assert len(enlarge_by_products(model)) == 2
    assert "Interpolate" not in {operation.get_type_name() for operation in model.get_ops()}
    values = torch.linspace(-3, 3, 2 * 20 * 24).sin().reshape(2, 1, 20, 24)
    expected = torch.sigmoid(torch.nn.functional.interpolate(values, size, mode="bilinear"))
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    result = openvino.compile_model(model, "CPU", options)([values.numpy(), np.array([2, 1, *size])])[0]
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-5)


def test_failed_export_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(model: PolypSegmenter, file: Path, metadata: dict[str, str]) -> None:
        file.write_bytes(b"a model")

    class Other(OnnxModel):
        def __init__(self, file: Path) -> None:
            pass

        def predict(self, images: Sequence[np.ndarray], *_: Any) -> list[np.ndarray]:
            return [np.zeros(image.shape[:2], np.float32) for image in images]

    monkeypatch.setattr(exporting, "write_onnx", write)
    monkeypatch.setattr(exporting, "open_exported", Other)
    before = set(run.iterdir())
    killed = run / ".part-export" / "new" / "model.onnx"  # what one leaves that was killed
    killed.parent.mkdir(parents=True)
    killed.touch()
    assert "differ from the module's by up to" in refusal(str(run))
    assert set(run.iterdir()) == before

    def full(model: PolypSegmenter, file: Path, metadata: dict[str, str]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_onnx", full)
    assert "export (No space left on device)" in refusal(str(run))
    assert set(run.iterdir()) == before


def test_export_refuses_what_cannot_be_exported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is not there" in refusal(str(tmp_path / "nothing"))
    elsewhere = shutil.copy(RunFolder(run).best_checkpoint, tmp_path / "mine.ckpt")
    assert "is not in a run's folder" in refusal(str(elsewhere))
    (run / "export").mkdir()
    (run / "export" / "notes.txt").write_text("mine")
    assert "holds something else than an export" in refusal(str(run), "--overwrite")
    assert (run / "export" / "notes.txt").read_text() == "mine"
    assert "cannot write to" in refusal(str(run), "--out", str(run / "config.yaml"))
    (run / "export" / "notes.txt").unlink()
    best = RunFolder(run).best_checkpoint
    best.rename(tmp_path / best.name)
    assert "has no checkpoints/best.ckpt" in refusal(str(run))
    (tmp_path / best.name).rename(best)
    monkeypatch.setattr("polyp.errors.find_spec", lambda name: None)
    assert refusal(str(run)) == "polyp: onnx is not installed: pip install -e '.[onnx]'"
    monkeypatch.setattr("polyp.errors.find_spec", lambda name: name not in ("openvino", "nncf") or None)
    assert "pip install -e '.[openvino]'" in refusal(str(run), "--openvino")


def test_each_suffix_has_a_backend() -> None:
    assert tuple(BACKENDS) == EXPORT_SUFFIXES


def test_export_refuses_an_exported_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "export").mkdir()
    (run / "export" / "model.onnx").touch()
    with pytest.raises(SystemExit, match="is an exported model"):
        main(["export", str(run / "export" / "model.onnx"), "--onnx", "--out", str(run / "again")])


def test_checkpoints_load_without_the_extra(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    monkeypatch.setattr("polyp.errors.find_spec", lambda name: None)
    assert load_predictor([str(run)]).is_exact
    (run / "export").mkdir()
    (run / "export" / "model.onnx").touch()
    with pytest.raises(InputError, match=r"onnxruntime is not installed: pip install -e '\.\[onnx\]'"):
        load_predictor([str(run / "export" / "model.onnx")])


# ---- every network


WITH = {"dpt": "tu-vit_tiny_patch16_224"}  # which works with transformers of timm alone


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch",
    [
        *("dpt", "segformer", "unetplusplus"),
        *(
            pytest.param(arch, marks=pytest.mark.nightly)
            for arch in sorted(ARCHITECTURES.keys() - {"dpt", "segformer", "unetplusplus"})
        ),
    ],
)
def test_every_architecture_is_exported(arch: str, tmp_path: Path) -> None:
    size = 128 if arch == "pan" else 64  # whose pyramid has no pixels left of less
    model = network(arch, WITH.get(arch, "resnet18"), image_size=size)
    write_onnx([model], tmp_path / "model.onnx", METADATA)
    images = pictures((64, 64), (131, 97), (20, 333), (131, 97), (131, 97))
    assert min(one.std() for one in model.predict(images)) > 1e-3
    assert largest_difference(model, tmp_path / "model.onnx", images) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"stages": 2, "image_size": [72, 104]},
        {"arch": "segformer", "encoder": "mit_b0"},
        {"encoder": "tu-tf_efficientnet_lite0", "encoder_depth": 4, "decoder_attention": "scse"},
    ],
)
def test_other_networks_are_exported(settings: dict[str, Any], tmp_path: Path) -> None:
    model = network(**settings)
    write_onnx([model], tmp_path / "model.onnx", METADATA)
    images = pictures((64, 64), (131, 97), (20, 333))
    assert largest_difference(model, tmp_path / "model.onnx", images) < 1e-3


def test_device_of_measurements_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    assert device.description() == "a GPU" and device.description("cpu").endswith("threads")
