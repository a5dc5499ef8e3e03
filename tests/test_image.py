"""Any image that people have becomes upright RGB of 8 bits, or one line says why not."""

import os
import re
import struct
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from polyp.data.masks import read_mask
from polyp.data.sources import Synthetic
from polyp.errors import InputError
from polyp.images import FORMATS, decode, read_image

SCENE = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8), (41, 29))
"""(29, 41, 3) RGB, smooth."""

ORIENTED = {  # what an orientation tag says is to be done to the pixels, from the EXIF standard
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image.swapaxes(0, 1), 2),
    8: np.rot90,
}


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def refused(content: bytes, pattern: str) -> None:
    with pytest.raises(InputError, match=pattern) as error:
        decode(content, "polyp.jpg")
    assert str(error.value).startswith("polyp.jpg: ") and "\n" not in str(error.value)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, content: bytes = b"", *before: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


# ---- what is read


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "GIF", "WEBP"])
def test_decode_gives_the_pixels_that_were_saved(kind: str) -> None:
    few = Image.fromarray(SCENE).quantize(64).convert("RGB")  # as many colours as a GIF can have
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(encoded(few, kind, **options), "image"), np.asarray(few))
    assert kind in FORMATS


def test_jpegs_and_their_masks_decode_as_in_opencv(tmp_path: Path) -> None:
    folder = Synthetic(root=str(tmp_path), count=10, size=64).prepare()
    for path in sorted((folder / "images").iterdir()):
        assert np.array_equal(read_image(path), cv2.imread(str(path))[..., ::-1])
    for path in sorted((folder / "masks").iterdir()):
        assert np.array_equal(read_mask(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127)


@pytest.mark.parametrize("tag", ORIENTED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_decode_follows_the_orientation(tag: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    plain = decode(encoded(SCENE, kind), "image")
    assert np.array_equal(decode(encoded(SCENE, kind, exif=exif.tobytes()), "image"), ORIENTED[tag](plain))


def test_decode_makes_grey_rgb() -> None:
    grey = SCENE[..., 0]
    for image in (grey, Image.fromarray(grey).convert("LA")):
        assert np.array_equal(decode(encoded(image), "image"), np.dstack([grey] * 3))
    bilevel = Image.fromarray(grey).convert("1")
    assert np.array_equal(decode(encoded(bilevel), "image")[..., 1], np.where(np.asarray(bilevel), 255, 0))


def test_decode_makes_transparent_pixels_black() -> None:
    image = np.dstack([SCENE, np.full(SCENE.shape[:2], 255, np.uint8)])
    image[:10, :, 3], image[10:20, :, 3] = 0, 51
    pixels = decode(encoded(image), "image")
    assert not pixels[:10].any()
    assert np.abs(pixels[10:20] - SCENE[10:20] * 0.2).max() <= 1
    assert np.array_equal(pixels[20:], SCENE[20:])
    palette = Image.fromarray(SCENE).quantize(8)
    assert not decode(encoded(palette, "PNG", transparency=bytes(8)), "image").any()


@pytest.mark.parametrize("kind", [".png", ".tif"])
def test_decode_makes_16_bits_8(kind: str) -> None:
    for values in (SCENE[..., 0], SCENE):
        wide = cv2.imencode(kind, values.astype(np.uint16) * 257)[1].tobytes()
        expected = np.dstack([values] * 3) if values.ndim == 2 else values[..., ::-1]  # OpenCV writes BGR
        assert np.array_equal(decode(wide, "image"), expected)


def test_decode_makes_cmyk_rgb() -> None:
    inks = Image.fromarray(SCENE).convert("CMYK")
    assert np.abs(decode(encoded(inks, "TIFF"), "image").astype(int) - SCENE).max() <= 1
    assert (
        np.abs(decode(encoded(inks, "JPEG", quality=100, subsampling=0), "image").astype(int) - SCENE).mean()
        < 2
    )


def test_one_pixel() -> None:
    assert decode(encoded(np.full((1, 1, 3), 7, np.uint8)), "image").tolist() == [[[7, 7, 7]]]


def test_a_photograph_with_a_preview_is_a_photograph() -> None:
    photograph = Image.fromarray(SCENE)
    file = encoded(photograph, "MPO", save_all=True, append_images=[photograph.resize((20, 14))])
    assert decode(file, "image").shape == SCENE.shape


# ---- what is refused


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 1000, b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_no_image(content: bytes) -> None:
    refused(content, "not a readable image")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"])
def test_cut_off(kind: str) -> None:
    whole = encoded(cv2.resize(SCENE, (200, 150)), kind)
    for share in (0.5, 0.9):
        refused(whole[: int(share * len(whole))], "not a readable image")


@pytest.mark.filterwarnings(
    "ignore::PIL.Image.DecompressionBombWarning"
)  # the module silences it; tests do not
def test_decode_refuses_large_images_by_their_header() -> None:
    refused(png(10_000, 10_000), "is 10000x10000, more than 67 million pixels: make it smaller")
    refused(png(60_000, 60_000), "more than 67 million pixels")
    refused(png(2**31 - 1, 2**31 - 1), "more than 67 million pixels")
    huge = bytearray(encoded(SCENE, "TIFF"))
    at = huge.index(struct.pack("<HHII", 256, 4, 1, SCENE.shape[1])) + 8
    huge[at : at + 4] = struct.pack("<I", 2**30)
    refused(bytes(huge), "67 million")
    with pytest.raises(InputError, match="is 41x29, more than 0 million"):
        decode(encoded(SCENE), "image", max_pixels=1000)


def test_decode_refuses_compression_bombs() -> None:
    packed = zlib.compress(bytes(2**25), 9)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in SCENE))
    assert np.array_equal(decode(png(41, 29, rows), "image"), SCENE)
    refused(png(41, 29, rows, chunk(b"zTXt", b"note\0\0" + packed)), "not a readable")
    more = zlib.compress(zlib.decompress(rows) + bytes(2**25), 9)  # pixels beyond the size are never unpacked
    assert np.array_equal(decode(png(41, 29, more), "image"), SCENE)


def test_decode_refuses_animations() -> None:
    frames = [Image.fromarray(SCENE), Image.fromarray(255 - SCENE)]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        refused(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), "holds 2 images")


def test_decode_refuses_floats_and_32_bits() -> None:
    refused(encoded(Image.fromarray(SCENE[..., 0].astype(np.float32)), "TIFF"), "floating-point")
    refused(encoded(Image.fromarray(SCENE[..., 0].astype(np.int32) * 2**20), "TIFF"), "32 bits")


# ---- files


def test_read_image_does_not_wait_for_pipes_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    for name in ("pipe.jpg", "folder.jpg", "endless.jpg", "broken.jpg", "none.jpg"):
        with pytest.raises(InputError, match=f"{name}: not a "):
            read_image(tmp_path / name)


def test_huge_file_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"sparse\.jpg"):
        read_image(tmp_path / "sparse.jpg")


def test_read_image_names_the_file_in_one_line(tmp_path: Path) -> None:
    for name in (b"two\nlines.jpg", b"red\x1b[31m.jpg", b"\xff\xfe.jpg", "Größe ☃.jpg".encode()):
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(b"no image")
        with pytest.raises(InputError) as error:
            read_image(path)
        assert str(error.value).isprintable()
    assert "Größe ☃.jpg" in str(error.value)


def mutated(count: int = 500) -> list[bytes]:
    """Images with flipped bits, cut off, with other numbers in the header, or with another kind's header."""
    random = np.random.default_rng(5)
    kinds = [
        ("JPEG", {}),
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("GIF", {}),
    ]
    whole = [encoded(SCENE, kind, **options) for kind, options in [*kinds, ("WEBP", {})]]
    files = []
    for number in range(count):
        file = bytearray(whole[number % len(whole)])
        match number // len(whole) % 4:
            case 0:
                for _ in range(random.integers(1, 8)):
                    file[random.integers(len(file))] ^= 1 << random.integers(8)
            case 1:
                del file[random.integers(len(file)) :]
            case 2:
                for _ in range(random.integers(1, 6)):
                    file[random.integers(64)] = random.integers(256)
            case _:
                end = random.integers(4, 40)
                file[:end] = whole[random.integers(len(whole))][:end]
        files.append(bytes(file))
    return files


@pytest.mark.filterwarnings(
    "ignore:::PIL"
)  # of damaged metadata; the module silences them where no test runs
def test_decode_reads_or_refuses_mutated_images() -> None:
    whole = 0
    for number, file in enumerate(mutated()):
        try:
            image = decode(file, "image")
        except InputError as error:
            assert re.fullmatch("image: .+", str(error)), number
        else:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
            whole += 1
    assert whole > 50
