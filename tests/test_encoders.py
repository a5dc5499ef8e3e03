"""Encoders of all families: which architectures they build with, and that they train, load, predict and
export.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn

from polyp.commands.export import file
from polyp.errors import InputError
from polyp.model.fitting import without_memory
from polyp.model.network import PolypNetwork
from polyp.model.segmenter import PolypSegmenter
from polyp.training.module import TrainingModule

ARCHS = (
    *("unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet"),
    *("deeplabv3", "deeplabv3plus", "pan", "upernet", "segformer", "dpt"),
)

# Y: smp runs the encoder with the architecture of that column at 352x352, as it is or with the image size.
TABLE = """
resnet34                           YYYYYYYYYYY-
tu-pvt_v2_b2                       YYYYYY---YYY
tu-convnextv2_nano                 YYYYYYYYYYYY
tu-convnext_tiny.dinov3_lvd1689m   YYYYYYYYYYYY
tu-hiera_small_224                 YYYYYY---YYY
tu-hiera_small_abswin_256          YYYYYY---YYY
tu-sam2_hiera_tiny                 YYYYYY---YYY
tu-vit_small_patch14_dinov2        ------------
tu-vit_small_patch14_reg4_dinov2   ------------
tu-vit_small_patch16_dinov3        -----------Y
tu-vit_tiny_patch16_224            -----------Y
tu-swin_tiny_patch4_window7_224    YYYYYY---YYY
tu-swinv2_tiny_window8_256         YYYYYY---YYY
tu-maxvit_tiny_tf_224              YYYYYY---YYY
tu-maxxvitv2_nano_rw_256           YYYYYY---YYY
tu-coatnet_nano_rw_224             YYYYYY---YYY
tu-efficientvit_b1                 YYYYYY---YYY
tu-efficientvit_m0                 ------------
tu-mobilenetv4_conv_small          YYYYYYYYYYYY
tu-mobilenetv4_hybrid_medium       YYYYYYYYYYYY
tu-fastvit_t8                      YYYYYY---YYY
tu-repvit_m0_9                     YYYYYY---YYY
tu-caformer_s18                    YYYYYY---YYY
tu-hgnetv2_b0                      YYYYYY---YYY
tu-mambaout_femto                  YYYYYY---YYY
tu-tiny_vit_5m_224                 YYYYYY---YYY
tu-tf_efficientnetv2_s             YYYYYYYYYYYY
tu-efficientnet_b0                 YYYYYYYYYYYY
tu-davit_tiny                      YYYYYY---YYY
tu-mvitv2_tiny                     YYYYYY---YYY
tu-nextvit_small                   YYYYYY---YYY
tu-edgenext_small                  YYYYYY---YYY
tu-mobileone_s0                    YYYYYYYYYYYY
tu-starnet_s1                      YYYYYY---YYY
tu-swiftformer_xs                  YYYYYY---YYY
tu-eva02_tiny_patch14_224          ------------
tu-beitv2_base_patch16_224         -----------Y
tu-resnest14d                      YYYYYYYYYYYY
tu-rdnet_tiny                      YYYYYY---YYY
"""
RUNS = dict(line.split() for line in TABLE.split("\n") if line)

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Makes a CPU with AVX-512 compute as one without."""


def settings(arch: str, encoder: str, **changes: Any) -> dict[str, Any]:
    return {
        "arch": arch,
        "encoder": encoder,
        "encoder_weights": None,
        "encoder_depth": None,
        "decoder_channels": None,
        "decoder_attention": None,
        "stages": 1,
        "image_size": (352, 352),
    } | changes


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("encoder", RUNS)
def test_what_smp_runs_is_built_and_nothing_else(encoder: str) -> None:
    def builds(arch: str) -> bool:
        try:
            with without_memory():
                PolypNetwork(**settings(arch, encoder))
        except InputError:
            return False
        return True

    assert dict(zip(ARCHS, RUNS[encoder], strict=True)) == {arch: "-Y"[builds(arch)] for arch in ARCHS}


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [
        ("unet", "tu-hiera_tiny_224"),  # takes the image size
        ("dpt", "tu-tiny_vit_5m_224"),  # has vit in its name, and takes none
        ("dpt", "tu-vit_tiny_patch16_224"),  # adapts to each image
    ],
)
def test_encoders_with_an_image_size_of_their_own(arch: str, encoder: str) -> None:
    with without_memory():
        PolypNetwork(**settings(arch, encoder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "encoder"),
    [
        ("unet", "mit_b0"),
        pytest.param("unet", "tu-swin_tiny_patch4_window7_224", marks=pytest.mark.nightly),
        pytest.param("unet", "tu-swinv2_tiny_window8_256", marks=pytest.mark.nightly),
        pytest.param("unet", "tu-hiera_tiny_224", marks=pytest.mark.nightly),
        pytest.param("unet", "tu-sam2_hiera_tiny", marks=pytest.mark.nightly),
        pytest.param("unet", "tu-maxvit_pico_rw_256", marks=pytest.mark.nightly),
        pytest.param("unet", "tu-coatnet_nano_rw_224", marks=pytest.mark.nightly),
        pytest.param("dpt", "tu-beit_base_patch16_224", marks=pytest.mark.nightly),
        ("dpt", "tu-test_vit"),
        pytest.param("dpt", "tu-vit_small_patch16_dinov3_qkvb", marks=pytest.mark.nightly),
        pytest.param("unet", "tu-pvt_v2_b0", marks=pytest.mark.nightly),
        ("unet", "tu-convnextv2_atto"),
        ("unet", "tu-efficientvit_b0"),
        ("unet", "tu-mobilenetv4_conv_small"),
        pytest.param("unet", "tu-fastvit_t8", marks=pytest.mark.nightly),
        pytest.param("unet", "tu-mobileone_s0", marks=pytest.mark.nightly),
        ("unet", "tu-repvgg_a0"),
        pytest.param("unet", "tu-mvitv2_tiny", marks=pytest.mark.nightly),
    ],
)
def test_an_encoder_of_each_family_trains_loads_predicts_and_exports(
    arch: str, encoder: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    size = 64
    channels = [16, 16, 8, 8, 8] if arch == "unet" else None
    shared = settings(arch, encoder, image_size=size, decoder_channels=channels)
    model = TrainingModule(**shared, loss="dice_bce", threshold=0.5)
    mask = torch.randint(0, 2, (2, 1, size, size), dtype=torch.uint8)
    model.loss(model.network(torch.rand(2, 3, size, size))[-1], mask).backward()
    torch.optim.SGD(model.parameters(), 1e-3).step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())

    stream = io.BytesIO()
    torch.save({"settings": dict(model.hparams), "state": model.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    loaded = TrainingModule(**saved["settings"]).eval()
    loaded.load_state_dict(saved["state"])

    images = [
        torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        for height, width in ((50, 70), (130, 90))
    ]
    probabilities = model.eval().predict(images)
    assert all(map(torch.equal, probabilities, loaded.predict(images)))
    file.write_onnx([loaded], tmp_path / "model.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    exported = [session.run(None, {"image": image.permute(1, 2, 0)[None].numpy()})[0][0] for image in images]
    for probability, other in zip(probabilities, exported, strict=True):
        torch.testing.assert_close(probability, torch.from_numpy(other), atol=1e-3, rtol=0)
    for scale in (0.5, 1.5, 2):  # possible, or refused beforehand
        try:
            loaded.check_scale(scale)
        except InputError as error:
            assert encoder in str(error)
        else:
            assert loaded.predict(images, scale)[1].shape == (130, 90)


def test_a_scale_that_a_fixed_encoder_cannot_take_is_refused() -> None:
    model = PolypSegmenter(**settings("unet", "tu-hiera_tiny_224", image_size=64), threshold=0.5)
    model.check_scale(1)
    with pytest.raises(InputError, match="tu-hiera_tiny_224"):
        model.check_scale(2)


# Convolutions on CPUs without AVX-512

STEP = """
import sys, torch
from polyp.model.network import PolypNetwork
for encoder in sys.argv[1:]:
    network = PolypNetwork("unet", encoder, None, None, None, None, 1, (64, 64))
    for _ in range(3):
        network(torch.rand(4, 3, 64, 64))[-1].square().mean().backward()
    print(encoder, flush=True)
"""

GRADIENTS = """
import json, sys, torch
from torch import nn
from polyp.model.network import _keep_contiguous

def gradients(case, memory_format):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(**case)).to(memory_format=memory_format)
    if memory_format is torch.channels_last:
        _keep_contiguous(layer)
    side = max(16, *case["kernel_size"])
    image = torch.randn(2, case["in_channels"], side, side)
    image = image.contiguous(memory_format=memory_format).requires_grad_()
    layer(image).square().sum().backward()
    return image.grad, layer[0].weight.grad

for case in json.load(sys.stdin):
    print(case, flush=True)
    for _ in range(3):  # memory that is written past need not be noticed at once
        for one, other in zip(gradients(case, torch.channels_last), gradients(case, torch.contiguous_format)):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
"""


def run(script: str, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    return subprocess.run(
        command, input=text, env=os.environ | AVX2, capture_output=True, text=True, timeout=500
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["tu-fastvit_t8", "tu-mobileone_s0", "mobileone_s0", "tu-repvgg_a0"])
def test_networks_with_strided_1x1_convolutions_of_pixels_train_without_avx512(encoder: str) -> None:
    ended = run(STEP, encoder)
    assert (ended.returncode, ended.stdout) == (0, f"{encoder}\n"), ended.stderr[-1000:]


@pytest.mark.slow
@pytest.mark.nightly
def test_gradients_do_not_depend_on_the_memory_format() -> None:
    shapes = set()
    for encoder, marks in [
        *RUNS.items(),
        ("mobileone_s0", "Y"),
        ("tu-repvgg_a0", "Y"),
        ("mobilenet_v2", "Y"),
    ]:
        if marks[0] == "Y":
            with without_memory():
                network = PolypNetwork(**settings("unet", encoder))
            keys = "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"
            shapes |= {
                json.dumps({key: getattr(module, key) for key in keys})
                for module in network.modules()
                if type(module) is nn.Conv2d
            }
    assert len(shapes) > 100
    ended = run(GRADIENTS, text=f"[{','.join(sorted(shapes))}]")
    last = ended.stdout.splitlines()[-1:]
    assert ended.returncode == 0, f"{last}: {ended.stderr[-1000:]}"
