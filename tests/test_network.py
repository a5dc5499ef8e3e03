"""Every architecture from pixels to logits of the same size, and one line where a combination cannot work."""

import re
import time
from typing import Any

import pytest
import torch
from conftest import SMALL, Train
from torch import Tensor

from polyp.errors import InputError
from polyp.images import square
from polyp.model.fitting import ARCHITECTURES
from polyp.model.network import PolypNetwork

VIT = "tu-vit_tiny_patch16_224"
TINY = "tu-test_resnet"  # 0.5 M parameters
ODD = (70, 93)


@pytest.fixture(autouse=True)
def same_weights_each_time() -> None:
    torch.manual_seed(0)


def network(**changes: Any) -> PolypNetwork:
    settings: dict[str, Any] = {
        "arch": "unet",
        "encoder": TINY,
        "encoder_weights": None,
        "encoder_depth": None,
        "decoder_channels": None,
        "decoder_attention": None,
        "stages": 1,
        "image_size": (64, 64),
    }
    return PolypNetwork(**settings | changes)


def logits(net: PolypNetwork, height: int = ODD[0], width: int = ODD[1]) -> list[Tensor]:
    with torch.no_grad():
        return net.eval()(torch.rand(2, 3, height, width))


def refusal(*parts: str, **changes: Any) -> str:
    """What is said, in one line, of a network that cannot be."""
    with pytest.raises(InputError) as caught:
        network(**changes)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600, text
    assert all(part in text for part in parts), text
    assert not re.search(r": ?;|choose *$|, $", text), f"something is left out: {text}"
    return text


def follow(text: str, **settings: Any) -> None:
    """Whoever changes only the one key that the message says gets a network."""
    advice = re.findall(r"model\.(\w+)=([\w./-]+)", text.rpartition("; choose ")[2])
    assert advice, text
    for key, value in advice:
        network(**settings | {key: None if value == "null" else int(value) if value.isdigit() else value})


# What works


@pytest.mark.parametrize("depth", [3, 4, 5])
@pytest.mark.parametrize("arch", sorted(ARCHITECTURES.keys() - {"dpt"}))
def test_any_depth_gives_logits_of_the_images_size(arch: str, depth: int) -> None:
    size = (135, 158) if arch == "pan" else ODD  # pan halves what the encoder leaves three times more
    out = logits(network(arch=arch, encoder_depth=depth, image_size=size), *size)[0]
    assert out.shape == (2, 1, *size)
    assert out.isfinite().all() and out.std() > 1e-4
    assert (out[0] - out[1]).abs().max() > 1e-4  # it looks at the image


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_architecture_with_an_encoder_that_people_use(arch: str) -> None:
    size = (128, 128) if arch == "pan" else (64, 64)
    out = logits(
        network(arch=arch, encoder=VIT if arch == "dpt" else "mobilenet_v2", image_size=size), *size
    )[0]
    assert out.shape == (2, 1, *size) and out.isfinite().all()


def test_a_vision_transformer_takes_any_size() -> None:
    net = network(arch="dpt", encoder="tu-test_vit", encoder_depth=4)
    for height, width in (ODD, (32, 160)):
        assert logits(net, height, width)[0].shape == (2, 1, height, width)


def test_these_are_the_twelve_architectures_of_smp() -> None:
    assert len(ARCHITECTURES) == 12


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "resnet18"},
        {"encoder": "mit_b0", "encoder_depth": 4},
        {"encoder_depth": 4, "decoder_channels": [32, 16, 8, 4]},
        {"arch": "unetplusplus", "encoder_depth": 3, "decoder_channels": (16, 8, 8)},
        {"arch": "deeplabv3", "decoder_channels": 32},
        {"arch": "unet", "decoder_attention": "scse", "encoder_depth": 3},
        {"image_size": (64, 96), "arch": "linknet"},
        {"image_size": (70, 93), "arch": "fpn"},
    ],
)
def test_settings_that_work(settings: dict[str, Any]) -> None:
    (out,) = logits(network(**settings))
    assert out.shape == (2, 1, *ODD)


def test_settings_reach_the_decoder() -> None:
    def count(**settings: Any) -> int:
        return sum(parameter.numel() for parameter in network(**settings).decoder_parameters())

    assert count(decoder_channels=[64, 48, 32, 24, 16]) < count() < count(decoder_attention="scse")
    assert count(arch="upernet", decoder_channels=32) < count(arch="upernet")
    assert count(encoder_depth=3) < count()


# What it does with the pixels


def test_bytes_and_floats_are_the_same_image() -> None:
    net = network().eval()
    image = torch.randint(0, 256, (1, 3, *ODD), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(net(image)[0], net(image.float() / 255)[0])


def test_an_image_is_normalised_and_the_checkpoint_says_how() -> None:
    net = network(encoder="resnet18")
    state = net.state_dict()
    assert state["mean"].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert state["std"].flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    inputs: list[Tensor] = []
    net.stages[0].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    net.eval()(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 64, 64) + 0.229)
    assert inputs[0].mean((0, 2, 3)).tolist() == pytest.approx([1, 0.229 / 0.224, 0.229 / 0.225], rel=1e-4)


def test_padding_is_not_part_of_the_answer() -> None:
    """A whole multiple of the stride needs none; the same pixels, cut there, give nearly the same answer."""
    net = network().eval()
    torch.manual_seed(0)
    image = torch.rand(1, 3, 16, 16).repeat_interleave(8, 2).repeat_interleave(8, 3)  # 128 x 128, smooth
    with torch.no_grad():
        whole, cut = net(image)[0], net(image[..., :100, :120])[0]
    assert cut.shape == (1, 1, 100, 120)
    assert torch.allclose(whole[..., :16, :16], cut[..., :16, :16], atol=0.3 * float(whole.std()))


# Two stages


def test_two_stages_are_both_answers_and_both_learn() -> None:
    net = network(stages=2)
    outputs = net(torch.rand(2, 3, *ODD))
    assert [out.shape for out in outputs] == [(2, 1, *ODD)] * 2
    sum(out.square().mean() for out in outputs).backward()
    for stage in net.stages:
        assert all(parameter.grad is not None for parameter in stage.parameters())
        assert sum(float(parameter.grad.abs().sum()) for parameter in stage.parameters()) > 0  # type: ignore[union-attr]


def test_the_second_stage_sees_what_the_first_lets_through() -> None:
    net = network(stages=2)
    net(torch.rand(2, 3, 64, 64))[1].square().mean().backward()
    assert any(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in net.stages[0].parameters()
    )
    inputs: list[Tensor] = []
    net.stages[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0] * net.std + net.mean))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        first = net.eval()(image)[0]
    assert torch.allclose(inputs[0], image * torch.sigmoid(first), atol=1e-5)


# Parameter groups


@pytest.mark.parametrize("stages", [1, 2])
def test_encoder_and_decoder_share_the_parameters_between_them(stages: int) -> None:
    net = network(stages=stages)
    encoder, decoder = list(net.encoder_parameters()), list(net.decoder_parameters())
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert sorted(names[id(p)] for p in encoder + decoder) == sorted(names.values())  # complete, none twice
    assert all(".encoder." in names[id(p)] for p in encoder)
    assert not any(".encoder." in names[id(p)] for p in decoder)
    assert encoder and decoder


# What is refused


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("arch", "unett", "unet"),
        ("arch", "deeplab", "deeplabv3"),
        ("encoder", "mobilenetv2", "mobilenet_v2"),
        ("encoder", "tu-convnxt_atto", "tu-convnext_atto"),
    ],
)
def test_misspelled_names_are_answered_with_the_nearest(key: str, value: str, meant: str) -> None:
    text = refusal(f"model.{key}={value}", "did you mean", meant, **{key: value})
    for name in re.findall(r"[\w-]+", text.rpartition("did you mean ")[2]):
        network(**{key: name})


@pytest.mark.parametrize("value", ["zzqqww", "tu-zzqqww"])
def test_a_name_like_no_other_is_not_answered_with_a_thousand(value: str) -> None:
    refusal(f"model.encoder={value}", encoder=value)


def test_a_timm_name_without_its_prefix() -> None:
    refusal("model.encoder=convnext_atto", "tu-convnext_atto", encoder="convnext_atto")


@pytest.mark.parametrize("depth", [0, 2, 6, 7])
def test_depth(depth: int) -> None:
    text = refusal(f"model.encoder_depth={depth}", "choose 3, 4 or 5", encoder_depth=depth)
    for number in re.findall(r"\d", text.rpartition("choose")[2]):
        network(encoder_depth=int(number))


def test_stages() -> None:
    refusal("model.stages=3", "1", "2", stages=3)


@pytest.mark.parametrize(
    ("arch", "depth", "channels"),
    [("unet", None, [64, 32, 16]), ("manet", 4, [64, 32, 16, 8, 8]), ("unet", 3, 64)],
)
def test_channels_of_the_wrong_length(arch: str, depth: int | None, channels: Any) -> None:
    text = refusal(
        f"model.decoder_channels={channels}",
        f"list of {depth or 5} numbers",
        arch=arch,
        encoder_depth=depth,
        decoder_channels=channels,
    )
    suggested = [int(number) for number in re.findall(r"\d+", re.findall(r"such as \[(.*?)\]", text)[0])]
    network(arch=arch, encoder_depth=depth, decoder_channels=suggested)
    network(arch=arch, encoder_depth=depth)  # "null derives it"


@pytest.mark.parametrize("channels", [[64, 32, 16, 8, -8], [64, 32, 16, 8, 0], [64, 32, 16, 8, "x"]])
def test_channels_that_are_no_numbers_of_channels(channels: list[Any]) -> None:
    refusal("model.decoder_channels=", str(channels[-1]), decoder_channels=channels)


@pytest.mark.parametrize("arch", ["linknet", "fpn", "pspnet", "segformer"])
def test_channels_where_there_are_none(arch: str) -> None:
    refusal(
        "model.decoder_channels=64", f"model.arch={arch}", "leave it null", arch=arch, decoder_channels=64
    )


@pytest.mark.parametrize("arch", ["deeplabv3", "upernet"])
def test_one_number_of_channels(arch: str) -> None:
    channels = [64, 32, 16, 8, 8]
    refusal(
        f"model.decoder_channels={channels}",
        "single number",
        f"={arch}",
        arch=arch,
        decoder_channels=channels,
    )


@pytest.mark.parametrize("arch", ["linknet", "deeplabv3"])
def test_attention_where_there_is_none(arch: str) -> None:
    text = refusal(
        "model.decoder_attention=scse", f"model.arch={arch}", "null", arch=arch, decoder_attention="scse"
    )
    for able in re.findall(r"\w+", text.rpartition("choose model.arch=")[2].replace(" or ", " ")):
        network(arch=able, decoder_attention="scse")


def test_attention_misspelled() -> None:
    refusal("model.decoder_attention=sces", "scse", decoder_attention="sces")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"arch": "unetplusplus", "encoder": "mit_b0"}, "mit_b0"),
        (
            {
                "arch": "unetplusplus",
                "encoder": "mit_b0",
                "encoder_depth": 3,
                "decoder_channels": [32, 16, 8],
            },
            "model.encoder=mit_b0",
        ),
        ({"arch": "dpt", "encoder": "mobilenet_v2"}, "tu-"),
        ({"arch": "dpt", "encoder": VIT, "encoder_depth": 3}, "model.encoder_depth=3"),
        ({"arch": "deeplabv3", "encoder": "tu-dla34"}, "model.encoder=tu-dla34"),
        ({"arch": "pan", "encoder": TINY}, "at 64x64"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_pairs_that_do_not_work_are_answered_with_pairs_that_do(
    settings: dict[str, Any], reason: str
) -> None:
    text = refusal(
        f"model.arch={settings['arch']}", f"model.encoder={settings['encoder']}", reason, **settings
    )
    follow(text, **settings)


@pytest.mark.parametrize("key", ["arch", "encoder"])
def test_nothing_is_no_name(key: str) -> None:
    refusal(f"model.{key}=", **{key: None})


# Freezing


@pytest.mark.parametrize("stages", [1, 2])
def test_a_frozen_encoder_stays_as_it_is_in_either_mode(stages: int) -> None:
    net = network(encoder="mobilenet_v2", stages=stages)
    net.freeze_encoder()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for _ in range(2):
        net.eval()
        net.train()  # as Lightning does around validation
        sum(out.square().mean() for out in net(torch.rand(2, 3, 64, 64))).backward()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) or ".encoder." not in name, name
    assert all(parameter.grad is None for parameter in net.encoder_parameters())
    assert all(parameter.grad is not None for parameter in net.decoder_parameters())
    decoder = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert any("running_mean" in name for name in decoder)


@pytest.mark.parametrize(
    ("arch", "encoder", "stem", "deepest", "count"),
    [
        ("unet", "mobilenet_v2", "features.0.0.weight", "features.18.0.weight", 5),
        # its head belongs to no feature
        ("unet", "efficientnet-b0", "_conv_stem.weight", "_conv_head.weight", 5),
        ("unet", "mit_b0", "patch_embed1.proj.weight", "block4.0.attn.q.weight", 4),  # no feature at stride 2
        ("dpt", VIT, "model.pos_embed", "model.blocks.11.mlp.fc1.weight", 4),
    ],
)
def test_stages_of_an_encoder_go_from_its_stem_to_its_deepest_feature(
    arch: str, encoder: str, stem: str, deepest: str, count: int
) -> None:
    net = network(arch=arch, encoder=encoder, stages=2)
    levels = net.encoder_stages((64, 64))
    assert len(levels) == count
    together = [id(parameter) for level in levels for parameter in level]
    assert sorted(together) == sorted(id(parameter) for parameter in net.encoder_parameters())
    for stage in net.stages:
        for name, level in ((stem, levels[0]), (deepest, levels[-1])):
            parameter = stage.get_submodule("encoder").get_parameter(name)
            assert any(parameter is other for other in level)


def test_no_graph_of_a_frozen_encoder_is_kept() -> None:
    net = network()
    net.freeze_encoder()
    features: list[Tensor] = []
    encoder = net.stages[0].get_submodule("encoder")
    encoder.register_forward_hook(lambda module, args, output: features.extend(output))
    assert net.train()(torch.rand(2, 3, 64, 64))[0].requires_grad
    assert features and not any(feature.requires_grad for feature in features)


# What would take all memory


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("decoder_channels", [10**6] * 5),
        ("decoder_channels", [2**14] * 5),  # each is possible, all together are 130 GiB
        ("decoder_channels", {1: 2}),
        ("encoder_depth", 4.0),
        ("stages", True),
        ("encoder", 3),
        ("arch", ["unet"]),
    ],
)
def test_settings_of_a_damaged_or_hostile_checkpoint(key: str, value: Any) -> None:
    refusal(f"model.{key}=", **{key: value})


@pytest.mark.slow
def test_a_refusal_is_quick() -> None:
    refusal("tu-swin_tiny", arch="pan", encoder="tu-swin_tiny_patch4_window7_224")  # imports
    start = time.process_time()
    refusal(
        "tu-swin_tiny", arch="deeplabv3", encoder="tu-swin_tiny_patch4_window7_224", image_size=(352, 352)
    )
    assert time.process_time() - start < 20  # on a busy machine


def test_one_image_at_a_time() -> None:
    assert not network(arch="deeplabv3plus").trains_on_single_images((64, 64))
    assert not network(arch="unet").trains_on_single_images((32, 32))  # 1 x 1 at the bottom
    assert network(arch="unet").trains_on_single_images((64, 64))


@pytest.mark.parametrize("size", [10**6, [64, 4097], 31])
def test_image_sizes_out_of_range(size: Any) -> None:
    with pytest.raises(InputError, match=r"data\.image_size"):
        square(size)


def test_a_batch_of_one_image_is_refused_before_data_are_read(train: Train) -> None:
    keys = ["model.arch=deeplabv3plus", "model.decoder_channels=32", "data.batch_size=1"]
    with pytest.raises(SystemExit, match=r"data\.batch_size=1"):
        train(*SMALL, *keys)
