"""Encoder weights from files and from the hub: all of them, of the right encoder, without running anybody's
code.
"""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from polyp.errors import InputError
from polyp.model.network import PolypNetwork

TINY = "tu-test_resnet"  # 0.5 M parameters


def network(
    weights: Path | str | None, encoder: str = TINY, depth: int | None = None, **changes: Any
) -> PolypNetwork:
    settings: dict[str, Any] = {
        "decoder_channels": None,
        "decoder_attention": None,
        "stages": 1,
        "image_size": (64, 64),
    }
    weights = None if weights is None else str(weights)
    return PolypNetwork("unet", encoder, weights, depth, **settings | changes)


def encoder_state(encoder: str = TINY) -> dict[str, Tensor]:
    """Weights such as somebody has trained them: none has its initial value."""
    torch.manual_seed(1)
    state = smp.encoders.get_encoder(encoder, weights=None).state_dict()
    return {
        name: torch.rand_like(value) if value.is_floating_point() else value + 7
        for name, value in state.items()
    }


def save(path: Path, state: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def refusal(weights: Path | str, *parts: str, encoder: str = TINY, key: str = "encoder_weights") -> str:
    """What is said, in one line, of weights that cannot be."""
    with pytest.raises(InputError) as caught:
        if key == "init_from":
            network(None, encoder, init_from=str(weights))
        else:
            network(weights, encoder)
    text = str(caught.value)
    assert "\n" not in text and "\x1b" not in text and len(text) < 600, text
    assert all(part in text for part in (f"model.{key}={weights}", *parts)), text
    assert not text.rstrip().endswith((":", ",", ";")), f"something is left out: {text}"
    return text


def loaded(net: PolypNetwork) -> list[dict[str, Tensor]]:
    return [stage.get_submodule("encoder").state_dict() for stage in net.stages]


# Files


@pytest.mark.parametrize("depth", [3, 5])
@pytest.mark.parametrize(
    ("encoder", "name"), [("mobilenet_v2", "a.safetensors"), (TINY, "a.pt"), (TINY, "a.pth"), (TINY, "a.bin")]
)
def test_a_file_fills_the_encoder(tmp_path: Path, encoder: str, name: str, depth: int) -> None:
    state = encoder_state(encoder)
    (weights,) = loaded(network(save(tmp_path / name, state), encoder, depth))
    assert weights and all(torch.equal(value, state[name]) for name, value in weights.items())


def test_both_stages_are_filled(tmp_path: Path) -> None:
    state = encoder_state()
    for weights in loaded(network(save(tmp_path / "weights.pt", state), stages=2)):
        assert all(torch.equal(value, state[name]) for name, value in weights.items())


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    state = encoder_state()
    save(tmp_path / "weights.safetensors", state)
    (weights,) = loaded(network("~/weights.safetensors"))
    assert all(torch.equal(value, state[name]) for name, value in weights.items())


@pytest.mark.parametrize("other", ["mobilenet_v2", "tu-test_efficientnet"])
def test_weights_of_another_encoder_are_refused(tmp_path: Path, other: str) -> None:
    path = save(tmp_path / "weights.safetensors", encoder_state(other))
    refusal(path, f"model.encoder={TINY}", "missing", "null")


def test_weights_of_other_shapes_are_refused(tmp_path: Path) -> None:
    state = encoder_state()
    name = next(name for name, value in state.items() if value.ndim == 4)
    path = save(tmp_path / "weights.pt", state | {name: state[name][:1]})
    refusal(path, f"model.encoder={TINY}", "1 have another shape", name)


def test_a_file_that_is_not_there_is_answered_with_its_neighbours(tmp_path: Path) -> None:
    for name in ("resnet34.safetensors", "notes.txt", "vgg.pt"):
        (tmp_path / name).write_bytes(b"")
    text = refusal(tmp_path / "resnet_34.safetensors", "not there", "did you mean", "resnet34.safetensors")
    assert "notes.txt" not in text
    refusal(tmp_path / "nowhere" / "resnet34.safetensors", "not there", "null")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    text = refusal(tmp_path, "file")
    assert "is not there" not in text  # it is


class Code:
    """What a stranger may put into a pickle."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare", "module"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, kind: str) -> None:
    trace, path = tmp_path / "was_here", tmp_path / "weights.pt"
    harmful: Any = encoder_state() | {"code": Code(trace)}
    if kind == "bare":
        path.write_bytes(pickle.dumps(harmful, protocol=2))
    elif kind == "module":  # what torch.save(model) writes: not harmful, but only running it could tell
        torch.save(smp.encoders.get_encoder(TINY, weights=None), path)
    else:
        torch.save(harmful, path, _use_new_zipfile_serialization=kind == "zip")
    refusal(path, "state dict")
    assert not trace.exists()
    if kind != "module":
        pickle.loads(pickle.dumps(Code(trace)))
        assert trace.exists()  # it would have been


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = save(tmp_path / f"weights{suffix}", encoder_state())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refusal(path, "cannot be read")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    state = encoder_state()
    save(tmp_path / "real.safetensors", state).rename(tmp_path / "weights.pt")
    refusal(tmp_path / "weights.pt")
    save(tmp_path / "real.pt", state).rename(tmp_path / "weights.safetensors")
    refusal(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"epoch": 3}}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    refusal(save(tmp_path / "weights.pt", content), "no state dict")


# Networks


def whole_state(net: PolypNetwork, stage: int = 0) -> dict[str, Tensor]:
    """Weights of a stage, with the names of smp, none of which has its initial value."""
    state = net.stages[stage].state_dict()
    return {
        name: torch.rand_like(value) if value.is_floating_point() else value + 7
        for name, value in state.items()
    }


def assert_filled(net: PolypNetwork, state: dict[str, Tensor], count: int, stage: int = 0) -> None:
    """So many tensors of a stage are those of `state`."""
    weights = net.stages[stage].state_dict()
    equal = [name for name, value in state.items() if name in weights and torch.equal(weights[name], value)]
    assert len(equal) == count > 0


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("a.safetensors", ""), ("a.pt", "module."), ("a.pt", "module.model."), ("a.ckpt", "net.")],
)
def test_init_from_a_network_of_smp_fills_all(tmp_path: Path, name: str, prefix: str) -> None:
    state = whole_state(network(None))
    content: Any = {prefix + key: value for key, value in state.items()}
    if name == "a.ckpt":  # as Lightning has it
        content = {"state_dict": content, "epoch": 3, "hyper_parameters": {"lr": 0.1}}
    net = network(None, init_from=str(save(tmp_path / name, content)))
    assert_filled(net, state, len(net.stages[0].state_dict()))
    assert net.init_summary is not None and " of the decoder" in net.init_summary


@pytest.mark.parametrize("prefix", ["", "encoder.", "module.", "backbone.", "model.encoder."])
def test_init_from_an_encoder_fills_the_encoder(tmp_path: Path, prefix: str) -> None:
    state = encoder_state()
    content = {prefix + key: value for key, value in state.items()} | {"fc.weight": torch.ones(2, 2)}
    net = network(None, init_from=str(save(tmp_path / "a.pt", content)))
    assert all(torch.equal(value, state[name]) for name, value in loaded(net)[0].items())
    assert f"{len(state)} of {len(state)} tensors of the encoder, 0 of" in (net.init_summary or "")


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_init_from_a_network_of_timm_fills_the_encoder(tmp_path: Path, name: str) -> None:
    state = {key: value + 1 for key, value in timm.create_model(name).state_dict().items()}
    path = save(tmp_path / "a.pt", {"model": state})
    arch, depth = ("dpt", 4) if name == "test_vit" else ("unet", None)
    options: dict[str, Any] = {"decoder_channels": None, "decoder_attention": None, "stages": 1}
    net = PolypNetwork(arch, f"tu-{name}", None, depth, **options, image_size=(160, 160), init_from=str(path))
    plain = {key.replace(".", "_"): value for key, value in state.items()}
    weights = {key.removeprefix("model.").replace(".", "_"): value for key, value in loaded(net)[0].items()}
    assert weights.keys() <= plain.keys()
    assert all(torch.equal(value, plain[key]) for key, value in weights.items())


def test_init_from_a_network_of_torchvision_fills_the_encoder(tmp_path: Path) -> None:
    state = {key: value + 1 for key, value in torchvision.models.mobilenet_v2().state_dict().items()}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)  # as the oldest of them are
    (weights,) = loaded(network(None, "mobilenet_v2", init_from=str(tmp_path / "a.pth")))
    assert all(torch.equal(value, state[name]) for name, value in weights.items())


def test_init_from_another_architecture_fills_what_fits(tmp_path: Path) -> None:
    state = whole_state(network(None))
    other = network(
        None, decoder_channels=[256, 128, 64, 32, 8], init_from=str(save(tmp_path / "a.pt", state))
    )
    weights = other.stages[0].state_dict()
    fitting = [name for name in weights if weights[name].shape == state[name].shape]
    assert_filled(other, state, len(fitting))
    encoder = sum(name.startswith("encoder.") for name in weights)
    summary = other.init_summary or ""
    assert f"{encoder} of {encoder} tensors of the encoder" in summary
    assert f"{len(fitting) - encoder} of {len(weights) - encoder} of the decoder" in summary
    assert len(fitting) < len(weights) and "decoder.blocks.4.conv1.0.weight" in summary


def test_init_from_takes_the_stage_of_the_same_number_and_its_normalisation(tmp_path: Path) -> None:
    source = network(None, stages=2)
    states = [whole_state(source, stage) for stage in (0, 1)]
    content = {f"network.stages.{stage}.{k}": v for stage in (0, 1) for k, v in states[stage].items()}
    content |= {"network.mean": torch.full((1, 3, 1, 1), 0.25), "network.std": torch.full((1, 3, 1, 1), 0.75)}
    path = str(save(tmp_path / "a.pt", {"state_dict": content}))
    two = network(None, stages=2, init_from=path)
    for stage in (0, 1):
        assert_filled(two, states[stage], len(states[stage]), stage)
    assert two.mean.unique().tolist() == [0.25] and two.std.unique().tolist() == [0.75]
    assert_filled(network(None, init_from=path), states[0], len(states[0]))
    single = {key: value for key, value in content.items() if ".1." not in key[:17]}
    both = network(None, stages=2, init_from=str(save(tmp_path / "b.pt", single)))
    for stage in (0, 1):
        assert_filled(both, states[0], len(states[0]), stage)


def test_init_from_goes_before_encoder_weights(tmp_path: Path) -> None:
    pretrained = encoder_state()
    part = {name: value + 1 for name, value in list(pretrained.items())[:5]}
    path = str(save(tmp_path / "part.pt", part))
    (weights,) = loaded(network(save(tmp_path / "whole.pt", pretrained), init_from=path))
    assert all(torch.equal(value, (pretrained | part)[name]) for name, value in weights.items())
    whole = str(save(tmp_path / "b.pt", pretrained))
    network("imagenet", init_from=whole)  # nothing is downloaded, which would be refused here


def test_init_from_is_refused_if_nothing_fits(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", encoder_state("mobilenet_v2"))
    refusal(path, "features.0.0.weight", key="init_from")
    refusal(save(tmp_path / "b.pt", {}), key="init_from")
    refusal(save(tmp_path / "c.pt", [1]), "no state dict", key="init_from")


def test_init_from_is_refused_if_two_networks_fit(tmp_path: Path) -> None:
    state = encoder_state()
    content = {f"{prefix}.{name}": value for prefix in ("model", "net") for name, value in state.items()}
    refusal(save(tmp_path / "a.pt", content), "'model.'", "'net.'", key="init_from")


def test_init_from_runs_no_code_and_notices_damage(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", {"state_dict": encoder_state() | {"code": Code(tmp_path / "was_here")}})
    refusal(path, "code", key="init_from")
    assert not (tmp_path / "was_here").exists()
    path = save(tmp_path / "b.ckpt", encoder_state())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    refusal(path, "cannot be read", key="init_from")


# Names


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "efficientnet-b0", TINY])
def test_a_misspelled_name_is_answered_with_the_nearest(encoder: str) -> None:
    refusal("imagnet", f"model.encoder={encoder}", "imagenet", encoder=encoder)


def test_an_empty_name_is_no_file() -> None:
    assert "not there" not in refusal("", "null")


def test_timm_has_no_weights_for_every_encoder() -> None:
    assert not timm.is_model_pretrained("efficientnet_b6")
    refusal(
        "imagenet", "model.encoder=tu-efficientnet_b6", "no weights", "null", encoder="tu-efficientnet_b6"
    )


HUB = """
import sys, time
from polyp.errors import InputError
from polyp.model.network import PolypNetwork
for encoder in sys.argv[1:]:
    started = time.monotonic()
    try:
        PolypNetwork("unet", encoder, "imagenet", None, None, None, 1, (64, 64))
    except InputError as error:
        print(f"{time.monotonic() - started:.1f}|{error}")
"""


@pytest.mark.slow
def test_without_a_network_it_says_so_in_seconds(tmp_path: Path) -> None:
    with socket.socket() as silent:  # takes calls and never answers: worse than nobody there
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            closed = nobody.getsockname()[1]
        calls = {closed: ["mobilenet_v2", "tu-resnet18"], silent.getsockname()[1]: ["mobilenet_v2"]}
        processes = []
        for port, encoders in calls.items():
            hub = {
                "HF_ENDPOINT": f"http://127.0.0.1:{port}",
                "HF_HOME": str(tmp_path),
                "OMP_NUM_THREADS": "1",
            }
            variables = {
                key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))
            }
            command = [sys.executable, "-c", HUB, *encoders]
            processes.append(
                subprocess.Popen(
                    command, env=variables | hub, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
        try:
            answers = [process.communicate(timeout=60) for process in processes]
        finally:
            for process in processes:
                process.kill()
    for encoders, (out, err) in zip(calls.values(), answers, strict=True):
        lines = out.splitlines()
        assert len(lines) == len(encoders), err
        for encoder, line in zip(encoders, lines, strict=True):
            seconds, text = line.split("|")
            assert float(seconds) < 40  # on a busy machine
            assert "model.encoder_weights=PATH" in text and "null" in text and encoder in text
            assert "127.0.0.1" in text  # who did not answer


# Real weights


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("encoder", "mean", "std"),
    [
        ("mobilenet_v2", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("tu-tf_efficientnet_lite0", [0.5] * 3, [0.5] * 3),
    ],
)
def test_real_weights_load_at_any_depth(
    encoder: str, mean: list[float], std: list[float], data_folder: Path
) -> None:
    path = data_folder / "weights" / f"{encoder}.safetensors"
    outputs = []
    for depth in (3, 4, 5):
        net = network(path, encoder, depth)
        assert net.mean.flatten().tolist() == pytest.approx(mean)
        assert net.std.flatten().tolist() == pytest.approx(std)
        assert sum(value.numel() for value in loaded(net)[0].values()) > 1e4
        features = (
            net.stages[0]
            .get_submodule("encoder")
            .eval()(torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64))
        )
        outputs.append(features[3])
    # A depth less does not change the layers before it.
    assert all(torch.allclose(outputs[0], other, atol=1e-5) for other in outputs[1:])
