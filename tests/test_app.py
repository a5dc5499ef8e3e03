"""`polyp app`: its answers are `polyp predict`'s, and nobody gets at anything but these."""

import errno
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from run_writers import on_drawn_images, write_model_run

from polyp.runs.folder import RunFolder

pytest.importorskip("uvicorn", reason="the extra app is not installed")
import httpx
from app_server import serve

from polyp.cli import main
from polyp.commands.app import inference_queue, launch, media, security
from polyp.commands.app.connections import Connection
from polyp.commands.app.gallery import Gallery, load_gallery
from polyp.commands.app.inference_queue import Busy, InferenceQueue, InputImage, Prediction
from polyp.commands.app.server import make_app
from polyp.commands.predict.video import predict_video
from polyp.data.pairs import Pair
from polyp.errors import InputError
from polyp.images import IGNORED, decode
from polyp.inference import polyps
from polyp.inference.predictor import Predictor, load_predictor
from polyp.runs.data import load_run_data
from polyp.runs.model import ModelSource

MAX_UPLOAD = 300_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield on_drawn_images(write_model_run(tmp_path_factory.mktemp("app") / "run"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where videos are while they are annotated."""
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def gallery(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        return load_gallery([ModelSource.of(str(run))])


@pytest.fixture(scope="module")
def queue(run: Path) -> Iterator[InferenceQueue]:
    started = InferenceQueue({"it": str(run)}, device="cpu")
    yield started
    started.close()


@pytest.fixture(scope="module")
def client(queue: InferenceQueue, gallery: Gallery, folder: Path) -> Iterator[httpx.Client]:
    with serve(make_app(queue, gallery, max_upload=MAX_UPLOAD, folder=folder)) as connected:
        yield connected


@pytest.fixture(scope="module")
def locked(queue: InferenceQueue, gallery: Gallery) -> Iterator[httpx.Client]:
    with serve(make_app(queue, gallery, ("clinic", "secrét"), MAX_UPLOAD)) as connected:
        yield connected


def picture(width: int = 60, height: int = 40, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def mask_of(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def predicted(probability: np.ndarray, truth: np.ndarray | None = None) -> Prediction:
    pixels = np.full((*probability.shape, 3), 100, np.uint8)
    return Prediction("it", InputImage("key", pixels, truth), probability.astype(np.float32), 12.3)


def test_api_gives_the_predictors_polyps_and_mask(client: httpx.Client, run: Path, gallery: Gallery) -> None:
    content = next(iter(gallery.images.values())).image.read_bytes()
    predictor = load_predictor([str(run)], device_name="cpu")
    probability = predictor.predict(decode(content, ""))
    threshold = float(np.median(probability))  # half of the image
    result = client.post("/api/predict", params={"threshold": threshold}, content=content).json()
    expected = polyps.find_polyps(probability, threshold)
    assert [polyp["pixels"] for polyp in result["polyps"]] == [polyp.pixels for polyp in expected]
    assert result["polyps"][0]["box"]["width"] == expected[0].width
    assert result["size"] == {"width": probability.shape[1], "height": probability.shape[0]}
    assert result["model"] == "it" and result["milliseconds"] > 0
    reply = client.post("/api/mask", params={"threshold": threshold}, content=content)
    assert reply.headers["content-type"] == "image/png"
    assert np.array_equal(mask_of(reply.content), polyps.compute_mask(probability, threshold))
    assert client.post("/api/predict", content=content).json()["threshold"] == predictor.threshold
    assert client.get("/api/models").json() == [{"model": "it", "threshold": predictor.threshold}]


def test_masks_equal_those_of_the_command(client: httpx.Client, run: Path, tmp_path: Path) -> None:
    """Of what is wide, upright by its EXIF tag alone, grey, and CMYK."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    pixels = np.random.default_rng(1).integers(0, 255, (40, 70, 3), np.uint8)
    for name, mode, options in (
        ("wide", "RGB", {}),
        ("up", "RGB", {"exif": exif}),
        ("grey", "L", {}),
        ("c", "CMYK", {}),
    ):
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{name}.jpg", **options)
    paths = sorted(tmp_path.glob("*.jpg"))
    main(["predict", str(run), *map(str, paths), "--out", str(tmp_path / "out"), "--device", "cpu"])
    for path in paths:
        written = tmp_path / "out" / "masks" / f"{path.stem}.png"
        mask = mask_of(client.post("/api/mask", content=path.read_bytes()).content)
        assert np.array_equal(mask, mask_of(written.read_bytes())), path
        assert mask.shape == ((70, 40) if path.stem == "up" else (40, 70))
        key = client.post("/api/result", params={"name": path.name}, content=path.read_bytes()).json()[
            "image"
        ]
        saved = client.get("/api/picture", params={"image": key, "view": "mask", "name": path.name})
        assert np.array_equal(mask_of(saved.content), mask)
        assert f"{path.stem}_mask.png" in saved.headers["content-disposition"]


BAD = {
    "empty": (b"", {}, 400, "no image"),
    "text": (b"hello", {}, 415, "not a readable image"),
    "page": (b"<svg onload='alert(1)'/>", {}, 415, "not a readable image"),
    "cut off": (picture()[:2000], {}, 415, "not a readable image"),
    "threshold": (picture(), {"threshold": 7}, 400, "between 0 and 1"),
    "no number": (picture(), {"threshold": "high"}, 400, "threshold=high"),
    "nan": (picture(), {"threshold": "nan"}, 400, "between 0 and 1"),
    "model": (picture(), {"model": "../it"}, 400, "did you mean it"),
    "bytes": (b"x" * (MAX_UPLOAD + 100_000), {}, 413, "--max-upload"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_one_line(case: str, client: httpx.Client) -> None:
    content, params, code, words = BAD[case]
    reply = client.post("/api/predict", params=params, content=content)
    assert reply.status_code == code, reply.text
    assert words in reply.json()["error"] and "\n" not in reply.json()["error"]


def test_a_bomb_is_not_decoded(client: httpx.Client) -> None:
    file = io.BytesIO()
    Image.new("1", (media.MAX_PIXELS // 1000 + 1, 1000)).save(file, "PNG")
    reply = client.post("/api/predict", content=file.getvalue())
    assert reply.status_code == 413 and "million" in reply.json()["error"]


def test_a_body_without_a_length_is_limited_as_it_comes(client: httpx.Client) -> None:
    size = 0

    def endless() -> Iterator[bytes]:
        nonlocal size
        while size < 100 * MAX_UPLOAD:
            size += 10_000
            yield b"x" * 10_000

    assert client.post("/api/predict", content=endless()).status_code == 413
    assert client.post("/api/video", content=b"x" * (MAX_UPLOAD + 100_000)).status_code == 413


def test_clients_together_fill_neither_memory_nor_disk(
    client: httpx.Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(security, "MAX_ARRIVING", 50_000)
        reply = client.post("/api/predict", content=b"x" * 100_000)
        assert reply.status_code == 503 and "try again" in reply.json()["error"]
        assert (
            client.post("/api/predict", content=b"x" * 10_000).status_code == 415
        )  # the first no longer counts
    monkeypatch.setattr("polyp.commands.app.server.MAX_VIDEOS", 1)
    half = connect(client, POST.replace(b"predict", b"video") + b"Content-Length: 10\r\n\r\nhello")
    while not any(folder.iterdir()):
        time.sleep(0.01)
    reply = client.post("/api/video", content=b"x")
    assert reply.status_code == 503 and "try again" in reply.json()["error"]
    half.close()
    until(lambda: client.post("/api/video", content=b"x"), 400)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/app.js", "/app.css", "/nothing", "/api/models", "/api/settings", "/api/thumbnails/0"),
        *("/api/result", "/api/picture?image=gallery:0", "/api/video"),
    ],
)
def test_auth_guards_everything(path: str, locked: httpx.Client) -> None:
    for auth in (None, ("clinic", "wrong"), ("clinic", "")):
        reply = locked.get(path, auth=auth)
        assert reply.status_code == 401 and "Basic" in reply.headers["www-authenticate"]
    assert locked.get(path, headers={"Authorization": "Basic ü".encode()}).status_code == 401
    assert locked.get(path, auth=("clinic", "secrét".encode())).status_code != 401


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/static/../../../etc/passwd",
            "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
        ),
        *("/server.py", "/static/app.js", "/index.html", "/api/thumbnails/..%2f..%2fetc%2fpasswd"),
        *("/api/thumbnails/99999", "/api/thumbnails/-1", "/docs", "/openapi.json", "/file=/etc/passwd"),
        *(
            "/api/result?image=/etc/passwd",
            "/api/result?image=gallery:../../etc/passwd",
            "/api/picture?image=http://x",
        ),
        *("/api/result", "/api/picture?image=%00", "/api/thumbnails/9" + "9" * 30),
    ],
)
def test_nothing_else_is_served(path: str, client: httpx.Client) -> None:
    reply = client.get(path)
    assert reply.status_code in (400, 403, 404, 410), (path, reply.status_code)
    assert "root:" not in reply.text


def test_other_sites_cannot_ask(client: httpx.Client) -> None:
    assert (
        client.get("/api/models", headers={"Host": "evil.example"}).status_code == 403
    )  # its name leads here
    reply = client.post("/api/predict", content=picture(), headers={"Origin": "http://evil.example"})
    assert reply.status_code == 403
    assert (
        client.post(
            "/api/predict", content=picture(), headers={"Origin": str(client.base_url).rstrip("/")}
        ).status_code
        == 200
    )
    for header in ({"Host": "["}, {"Origin": "http://["}):
        assert client.post("/api/predict", content=picture(), headers=header).status_code == 403, header
    page = client.get("/")
    assert page.status_code == 200 and "For research use, not for diagnosis" in page.text
    assert "default-src 'none'; script-src 'self';" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    for part in (page.text, client.get("/app.js").text, client.get("/app.css").text):
        assert not re.search(r"[\"'(](https?:)?//[a-z0-9]", part), "nothing is loaded from elsewhere"


def test_malformed_requests_stop_nothing(client: httpx.Client) -> None:
    for method, path in (("GET", "result?view=x"), ("POST", "result?opacity=2"), ("POST", "video?model=x")):
        reply = client.request(
            method, f"/api/{path}", content=b"\xff", headers={"Content-Type": "application/json"}
        )
        assert reply.status_code in (400, 415) and reply.json()["error"]
    assert client.post("/api/predict", content=picture()).status_code == 200


def test_mutated_images_are_answered(client: httpx.Client) -> None:
    """Each with a mask of the image's own size, or with one line."""
    random = np.random.default_rng(0)
    masks = 0
    for number in range(48):
        content = bytearray(picture(kind=("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")[number % 6]))
        for index in random.integers(0, len(content), random.integers(1, 8)):
            content[index] = random.integers(256)
        reply = client.post("/api/mask", content=bytes(content[: random.integers(20, len(content) * 2)]))
        if reply.status_code == 200:
            masks += 1
            assert mask_of(reply.content).shape == decode(bytes(content), "").shape[:2]
        else:
            assert reply.status_code in (413, 415) and "\n" not in reply.json()["error"], reply.text
    assert masks > 5


def test_uploads_are_never_pages(client: httpx.Client, folder: Path) -> None:
    for name in ("a.html", "../../../a.html", "<b>.svg", "a\r\nX: y.svg"):
        reply = client.post("/api/result", params={"name": name}, content=b"<svg onload='alert(1)'/>")
        assert reply.status_code == 415 and reply.headers["content-type"] == "application/json"
        key = client.post("/api/result", params={"name": name}, content=picture()).json()["image"]
        reply = client.get("/api/picture", params={"image": key, "name": name})
        assert reply.headers["content-type"] == "image/png"
        assert re.fullmatch(
            r"attachment; filename\*=utf-8''[\w.%-]+_overlay\.png", reply.headers["content-disposition"]
        )
    assert not any(folder.iterdir())


def test_gallery_is_reached_by_name(gallery: Gallery, run: Path, client: httpx.Client) -> None:
    tested = [
        pair.stem for pair in load_run_data(run, ModelSource.of(str(run)).config or {}).get_pairs("test")
    ]
    assert list(gallery.images) == [f"gallery:{stem}" for stem in tested] and len(tested) == 2
    result = client.get("/api/result", params={"image": f"gallery:{tested[0]}"}).json()
    assert 0 <= result["scores"]["dice"] <= 1
    assert result["picture"].startswith("data:image/jpeg;base64,")
    thumbnail = client.get("/api/thumbnails/0")
    assert thumbnail.headers["content-type"] == "image/jpeg" and mask_of(thumbnail.content).shape[:2] == (
        160,
        160,
    )
    settings = client.get("/api/settings").json()
    assert [image["name"] for image in settings["images"]] == tested and list(settings["models"]) == ["it"]


def test_several_models_have_an_average(run: Path, tmp_path: Path) -> None:
    second = write_model_run(tmp_path / "other", seed=1)
    queue = InferenceQueue({"a": str(run), "b": str(second)}, device="cpu")
    image = InputImage("key", decode(picture(), ""))
    expected = load_predictor([str(run), str(second)], device_name="cpu").predict(image.pixels)
    average = queue.submit(lambda: queue.predict(lambda: image, "average of all")).result()
    assert list(queue.predictors) == ["a", "b", "average of all"] and np.array_equal(
        average.probability, expected
    )
    queue.close()


def test_data_that_are_gone_leave_an_app_without_gallery(run: Path, tmp_path: Path) -> None:
    config = ModelSource.of(str(run)).config
    assert config is not None
    data = {"dataset": "folder", "root": str(tmp_path / "gone"), "images": "images", "masks": "masks"}
    common = ("split", "split_seed", "image_size", "batch_size", "num_workers", "cache", "allow_empty")
    config = config | {"data": data | {key: config["data"][key] for key in common}}
    gallery = load_gallery([ModelSource(run, run, config)])
    assert not gallery.images and "gone" in gallery.note
    with pytest.raises(InputError):
        load_gallery([ModelSource(run, run, config)], str(tmp_path / "gone, too"))


def test_result_has_shares_and_scores() -> None:
    probability = np.zeros((10, 10))
    assert media.describe_result(predicted(probability), 0.5, 0.3, "overlay")["polyps"] == []
    probability[2:4, 2:6] = 0.75
    truth = np.zeros((10, 10), np.uint8)
    truth[2:5, 2:6] = 1
    result = media.describe_result(predicted(probability, truth), 0.5, 0.3, "errors")
    (polyp,) = result["polyps"]
    assert polyp["share"] == 0.08 and polyp["probability"] == 0.75
    assert polyp["box"] == {"left": 2, "top": 2, "width": 4, "height": 2}
    assert result["scores"] == {"dice": pytest.approx(16 / 20), "iou": pytest.approx(8 / 12)}
    shares = {item["label"]: item["share"] for item in result["legend"]["items"]}
    assert shares == {"correct": 0.08, "missed": 0.04, "false alarm": 0}
    with pytest.raises(InputError, match="no truth"):
        media.describe_result(predicted(probability), 0.5, 0.3, "errors")


def test_names_of_runs_and_files_are_data(run: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>${alert(1)}{{alert}}"
    small = InferenceQueue({hostile: str(run)}, device="cpu")
    with serve(make_app(small, Gallery({hostile: Pair(hostile, Path(), None)}, hostile))) as client:
        assert client.get("/api/models").json()[0]["model"] == hostile
        assert (
            "onerror" not in client.get("/").text
        )  # the page gets names as JSON alone, and makes text of them
        assert client.get("/api/settings").json()["images"][0]["name"] == hostile
    small.close()


def test_views_are_drawn_where_they_belong() -> None:
    probability, truth = np.zeros((200, 200)), np.zeros((200, 200), np.uint8)
    probability[:, 50:150], truth[:, 100:] = 1, 1
    truth[150:] = IGNORED
    errors = media.draw(predicted(probability, truth), 0.5, 1, "errors")
    colours = [media.OUTCOMES[name] for name in ("false alarm", "correct", "missed")]
    assert [tuple(errors[100, x]) for x in (75, 125, 175)] == colours
    assert tuple(errors[100, 25]) == (100, 100, 100)
    assert (errors[160:] == 100).all()  # ignored: neither right nor wrong
    result = media.describe_result(predicted(probability), 0.5, 1, "probability")
    heat, scale = media.draw(predicted(probability), 0.5, 1, "probability"), result["legend"]["scale"]
    assert [list(heat[100, x]) for x in (25, 100)] == [scale[0], scale[-1]]
    mask = media.draw(predicted(probability), 0.5, 1, "mask")
    assert mask.shape == (200, 200) and [mask[100, x] for x in (25, 100)] == [0, 255]


def test_cache_is_bounded(queue: InferenceQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def predict(key: str, **options: bool) -> Prediction:
        def load() -> InputImage:
            loaded.append(key)
            return InputImage(key, np.zeros((64, 64, 3), np.uint8))

        return queue.submit(lambda: queue.predict_cached(key, load, **options)).result()

    monkeypatch.setattr(inference_queue, "CACHE_BYTES", 3 * 64 * 64 * (3 + 4))
    for key in ("a", "b", "a", "c", "d", "a", "b"):
        predict(key)
    assert loaded == ["a", "b", "c", "d", "b"]  # the sliders of "a" move without another prediction
    first, second = (predict("a", spread=True) for _ in range(2))
    assert (
        first is second and first.spread is not None and 0 <= first.spread.min() <= first.spread.max() <= 0.5
    )


def test_sliders_do_not_predict_again(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    first = client.post("/api/result", content=picture(70, 50)).json()
    monkeypatch.setattr(InferenceQueue, "predict", lambda *_: 1 / 0)
    params = {"image": first["image"], "threshold": 0.9, "opacity": 1, "view": "probability"}
    second = client.get("/api/result", params=params).json()
    assert second["milliseconds"] == first["milliseconds"] and second["threshold"] == 0.9
    monkeypatch.undo()
    reply = client.get("/api/result", params={"image": "0" * 64})
    assert reply.status_code == 410 and "choose it again" in reply.json()["error"]


def test_full_queue_refuses(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_queue, "MAX_QUEUED", 1)
    small = InferenceQueue({"it": str(run)}, device="cpu")
    go = threading.Event()
    first = small.submit(lambda: go.wait(20))
    with pytest.raises(Busy):
        small.submit(lambda: None)
    with serve(make_app(small, Gallery())) as client:
        reply = client.post("/api/predict", content=picture())
    assert reply.status_code == 503 and "busy" in reply.json()["error"] and reply.headers["retry-after"]
    go.set()
    assert first.result() and small.submit(lambda: 3).result() == 3
    small.close()


def test_a_request_that_waits_gets_its_position(client: httpx.Client, queue: InferenceQueue) -> None:
    for content, last in ((picture(), "picture"), (b"no image", "error")):
        go = [threading.Event(), threading.Event()]
        for event in go:
            queue.submit(event.wait)
        with client.stream("POST", "/api/result", content=content) as reply:
            lines = (json.loads(line) for line in reply.iter_lines())
            assert next(lines) == {"ahead": 2}
            go[0].set()
            assert next(lines) == {"ahead": 1}
            go[1].set()
            line = next(line for line in lines if "ahead" not in line)
        assert last in line and line.get("status", 415) == 415


def test_a_video_that_waits_gets_its_position(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_clip(tmp_path / "clip.avi", 3).read_bytes()
    go = threading.Event()

    def wait(*arguments: Any) -> Any:
        arguments[-1](1, 3)
        go.wait(20)
        return predict_video(*arguments)

    monkeypatch.setattr("polyp.commands.app.server.predict_video", wait)
    with client.stream("POST", "/api/video", content=content) as first:
        lines = first.iter_lines()
        assert json.loads(next(lines)) == {"progress": [1, 3]}
        with client.stream("POST", "/api/video", content=content) as second:
            waiting = second.iter_lines()
            assert json.loads(next(waiting)) == {"ahead": 1}
            go.set()
            for rest_of in (lines, waiting):
                (summary,) = (line for line in map(json.loads, rest_of) if "frames" in line)
                assert summary["frames"] == 3 and summary["rate"] == 10


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as error:
        main(["app", *map(str, arguments)])
    assert isinstance(error.value.code, str) and "\n" not in error.value.code
    return error.value.code


def test_what_cannot_work_is_said_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert f"port {port} is in use" in refusal(capsys, run, "--port", port)
    assert "user:password" in refusal(capsys, run, "--auth", "clinic")
    assert "such as 20MB" in refusal(capsys, run, "--max-upload", "much")
    assert "--port 99999" in refusal(capsys, run, "--port", "99999")
    assert "RUN" in refusal(capsys)
    assert "RUN" in refusal(capsys, run, "--demo")
    assert "twice" in refusal(capsys, run, run, "--port", 0)
    assert "is not there" in refusal(capsys, tmp_path / "nothing", "--port", 0)
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").config_file.write_bytes(RunFolder(run).config_file.read_bytes())
    assert "best.ckpt" in refusal(capsys, tmp_path / "empty", "--port", 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polyp.errors.find_spec", lambda name: None)
    assert "pip install -e '.[app]'" in refusal(capsys, run)


def test_demo_takes_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("newest", "older")):
        folder = tmp_path / "outputs" / "runs" / name / "date"
        RunFolder(folder).best_checkpoint.parent.mkdir(parents=True)
        for file in (
            RunFolder(folder).best_checkpoint,
            RunFolder(folder).config_file,
            RunFolder(folder).metrics_file,
        ):
            file.touch()
        os.utime(RunFolder(folder).metrics_file, (1000 - age, 1000 - age))
    (tmp_path / "outputs" / "unfinished").mkdir()
    assert launch.find_demo_run() == Path("outputs/runs/newest/date")


def test_replies_do_not_wait_for_more() -> None:
    """asyncio sends at once (TCP_NODELAY) where it knows that a socket is TCP; else each reply takes 40 ms
    more.
    """
    with launch.listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_sizes_and_names() -> None:
    assert [launch.parse_size(text) for text in ("20MB", "1.5gb", "300kb")] == [
        20_000_000,
        1_500_000_000,
        300_000,
    ]
    for text in ("", "MB", "-1MB", "20", "nanMB", "infGB"):
        with pytest.raises(InputError):
            launch.parse_size(text)
    assert list(launch.name_models(["/x/a/one", "/x/b/one"])) == ["a/one", "b/one"]
    assert list(launch.name_models(["/x/a/one/1", "/x/b/one/1"])) == ["a/one/1", "b/one/1"]


def test_playlists_are_no_videos(client: httpx.Client, tmp_path: Path) -> None:
    """FFmpeg would follow one to the files that it names."""
    clip = write_clip(tmp_path / "clip.avi", 3)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{clip}\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile '{clip}'\n"
    for content in (playlist, concat, "RIFF" + playlist):
        reply = client.post("/api/video", params={"name": "../list.avi"}, content=content.encode())
        assert reply.status_code == 400 and reply.json()["error"].startswith("list.avi: ")


def write_clip(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 32))
    for _ in range(frames):
        writer.write(np.zeros((32, 32, 3), np.uint8))
    writer.release()
    return path


def test_video_comes_back_with_its_table(
    client: httpx.Client, run: Path, folder: Path, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.avi", 20)
    reply = client.post("/api/video", content=clip.read_bytes())
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert lines[0]["progress"][1] == 20
    (summary,) = (line for line in lines if "frames" in line)
    assert summary["frames"] == 20 and summary["damaged"] is False
    table, video = (
        b"".join(b64decode(line[kind]) for line in lines if kind in line) for kind in ("table", "video")
    )
    main(["predict", str(run), str(clip), "--out", str(tmp_path / "out"), "--device", "cpu"])
    (written,) = (tmp_path / "out").glob("**/clip*.csv")
    assert table == written.read_bytes() and video.startswith(b"\x1aE\xdf\xa3")
    assert not any(folder.iterdir())


def test_a_mistake_of_ours_is_a_line_for_the_visitor(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(InferenceQueue, "predict", lambda *_: 1 / 0)
        reply = client.post("/api/predict", content=picture())
    assert reply.status_code == 500 and "internal error" in reply.json()["error"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert client.get("/api/models").status_code == 200


class Quick(Connection):
    """A test reaches its limits at once."""

    WINDOW, RATE, CONNECTIONS = 0.5, 1000, 20


@pytest.fixture(scope="module")
def quick(queue: InferenceQueue, gallery: Gallery) -> Iterator[httpx.Client]:
    with serve(make_app(queue, gallery, max_upload=MAX_UPLOAD), Quick) as connected:
        yield connected


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test sees all lines for the operator."""
    monkeypatch.setattr("polyp.commands.app.security.QUIET", 0.0)


def connect(client: httpx.Client, content: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", client.base_url.port), timeout=10)
    connection.sendall(content)
    return connection


def read_rest(connection: socket.socket) -> bytes:
    """What still comes, until the server closes."""
    received = b""
    with connection, suppress(ConnectionResetError):
        while part := connection.recv(2**16):
            received += part
    return received


def error_of(reply: bytes) -> tuple[int, str]:
    """Status and reason of a reply, which has nothing else."""
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"application/json" in head and b"nosniff" in head, reply
    message = json.loads(body)
    assert list(message) == ["error"] and message["error"] and "\n" not in message["error"], reply
    return int(head.split()[1]), message["error"]


HOST = b"Host: 127.0.0.1\r\nConnection: close\r\n"
POST = b"POST /api/predict HTTP/1.1\r\n" + HOST


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET /api/models HTTP/1.1\r\n\r\n", 400),  # no host
        (POST + b"Content-Length: -5\r\n\r\n", 400),
        (POST + b"Content-Length: 99999999999999999999\r\n\r\n", 413),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 415),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (POST + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 5\r\n\r\nhello", 415),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 2**17, 431),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"OPTIONS /api/predict HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"FOO /api/thumbnails/0 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"DELETE / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"GET /api/thumbnails/x HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"POST /api/video HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello", 400),
        (b"POST /api/video HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /nothing.js HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        *(
            (POST.replace(b"predict", b"predict?" + query) + b"Content-Length: 1\r\n\r\nx", 400)
            for query in (b"threshold=inf", b"threshold=1e400", b"threshold=-1", b"threshold=", b"model=%00")
        ),
    ],
)
def test_every_error_is_json_of_one_form(
    sent: bytes, status: int, client: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    assert error_of(read_rest(connect(client, sent)))[0] == status
    assert "Traceback" not in "".join(capfd.readouterr())


def test_head_and_pipelined_requests(client: httpx.Client) -> None:
    assert client.head("/api/models").status_code == 200
    reply = client.head("/api/predict")
    assert reply.status_code == 405 and reply.headers["allow"] == "POST"
    get = b"GET /api/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    replies = read_rest(connect(client, 3 * get + b"hello\r\n\r\n")).split(b"HTTP/1.1 ")[1:]
    assert [int(reply[:3]) for reply in replies] == [200, 200, 200, 400]


def test_wrong_passwords_are_slowed_down(
    queue: InferenceQueue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(security, "FAILED_LOGINS", (5, 1.0))
    monkeypatch.setattr(security, "FAILED_LOGINS_OF_ALL", (12, 0.5))
    monkeypatch.setattr(security, "MAX_ADDRESSES", 3)
    right, wrong = ("clinic", "right"), ("clinic", "wrong")
    with serve(make_app(queue, Gallery(), right)) as client:

        def ask(auth: tuple[str, str], address: str) -> httpx.Response:
            return client.get("/api/models", auth=auth, headers={"X-Forwarded-For": address})

        browser = ask(right, "192.0.2.1").cookies
        client.cookies.clear()
        statuses = [ask(wrong, "192.0.2.1").status_code for _ in range(50)]
        assert statuses[:5] == [401] * 5 and statuses.count(401) < 8 and set(statuses) == {401, 429}
        refused = ask(right, "192.0.2.1")
        assert (
            refused.status_code == 429
            and 0 < int(refused.headers["retry-after"]) <= 2
            and refused.json()["error"]
        )
        assert ask(right, "192.0.2.2").status_code == 200
        client.cookies.clear()
        assert (
            client.get("/api/models").status_code == 401
        )  # a browser that has not asked for the password yet
        statuses = [ask(wrong, f"192.0.2.{number}").status_code for number in range(3, 53)]
        assert statuses.count(401) < 12 and statuses[-1] == 429  # of all together
        assert ask(right, "192.0.2.200").status_code == 429
        client.cookies.clear()
        client.cookies = browser  # whoever has logged in does not wait
        assert ask(right, "192.0.2.1").status_code == 200
        client.cookies.clear()
        time.sleep(2)
        assert ask(right, "192.0.2.1").status_code == 200
    lines = capsys.readouterr().err.splitlines()
    assert any("192.0.2.1" in line for line in lines) and not any(
        "wrong" in line and "right" in line for line in lines
    )


def test_slow_clients_are_closed(quick: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    head = connect(quick, b"GET /api/models HTTP/1.1\r\nHost: ")
    idle = connect(quick)
    keep_alive = connect(quick, b"GET /api/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    stalled = connect(quick, POST + b"Content-Length: 5000\r\n\r\nhello")
    assert (
        error_of(read_rest(head))[0] == 408 and read_rest(idle) == b"" and b"200 OK" in read_rest(keep_alive)
    )
    assert error_of(read_rest(stalled))[0] == 408
    assert time.monotonic() - started < 3
    slow = connect(quick, POST + b"Content-Length: 5000\r\n\r\n")
    with suppress(OSError):
        for _ in range(30):  # 50 bytes a second
            slow.sendall(b"x" * 5)
            time.sleep(0.1)
    assert time.monotonic() - started < 6 and not slow.close()
    steady = connect(quick, POST + b"Content-Length: 4000\r\n\r\n")
    for _ in range(20):  # 2000 bytes a second, for longer than a window
        steady.sendall(b"x" * 200)
        time.sleep(0.1)
    assert error_of(read_rest(steady))[0] == 415
    lines = capsys.readouterr().err.splitlines()
    assert sum("127.0.0.1" in line for line in lines) >= 3 and "Traceback" not in "".join(lines)


def test_a_client_that_does_not_read_is_closed(
    quick: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    lazy.connect(("127.0.0.1", quick.base_url.port))
    lazy.settimeout(10)
    with suppress(OSError):
        for _ in range(200):  # the page's largest file, many times
            lazy.sendall(b"GET /app.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            time.sleep(0.02)
    time.sleep(1)
    assert "did not read" in capsys.readouterr().err
    lazy.close()


def test_half_open_connections_block_nobody(quick: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert Quick.CONNECTIONS == 20
    connections = [connect(quick, b"GET / HTTP/1.1\r\nX: ") for _ in range(100)]
    started = time.monotonic()
    assert httpx.get(quick.base_url.join("/api/models"), trust_env=False).status_code == 200
    assert time.monotonic() - started < 1
    for connection in connections:
        connection.close()
    assert "over 20 connections" in capsys.readouterr().err


def test_an_address_has_so_many_requests_at_once(
    queue: InferenceQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "MAX_ACTIVE", 3)
    with serve(make_app(queue, Gallery())) as client:
        connections = [connect(client, POST + b"Content-Length: 10\r\n\r\n") for _ in range(3)]
        reply = until(lambda: client.get("/api/models"), 429)  # once the server has read these
        assert reply.headers["retry-after"] and reply.json()["error"]
        until(lambda: client.get("/api/models", headers={"X-Forwarded-For": "192.0.2.1"}), 200)
        for connection in connections:
            connection.close()
        until(lambda: client.get("/api/models"), 200)


def until(ask: Callable[[], httpx.Response], status: int) -> httpx.Response:
    """The first reply of this status."""
    for _ in range(500):
        if (reply := ask()).status_code == status:
            return reply
        time.sleep(0.01)
    raise AssertionError(f"{reply.status_code} for 5 s, not {status}")


@pytest.mark.parametrize("path", ["/api/predict", "/api/result", "/api/video"])
def test_an_upload_that_breaks_off_is_a_line(
    path: str, client: httpx.Client, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    head = f"POST {path} HTTP/1.1\r\n".encode() + HOST + b"Content-Length: 100000\r\n\r\n"
    connect(client, head + b"x" * 50_000).close()
    output, started = "", time.monotonic()
    while not output and time.monotonic() - started < 5:
        time.sleep(0.01)
        output = "".join(capfd.readouterr())
    assert len(output.splitlines()) == 1 and "127.0.0.1" in output
    assert not any(folder.iterdir())  # no part of it is left


def test_a_full_disk_is_a_line(
    client: httpx.Client, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("polyp.commands.app.server.TemporaryDirectory", full)
    reply = client.post("/api/video", content=b"x")
    assert reply.status_code == 503 and "No space left" in reply.json()["error"]
    lines = "".join(capfd.readouterr()).splitlines()
    assert len(lines) == 1 and "No space left" in lines[0], lines


def test_clients_that_left_are_not_computed(
    client: httpx.Client, queue: InferenceQueue, capfd: pytest.CaptureFixture[str]
) -> None:
    go, predict = threading.Event(), queue.predict
    computed = []

    def count(*arguments: Any) -> Prediction:
        computed.append(1)
        return predict(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue, "predict", count)
        blocked = queue.submit(go.wait)
        content = picture()
        for _ in range(5):
            connection = connect(client, POST + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
            time.sleep(0.1)
            connection.close()
        time.sleep(0.3)
        go.set()
        blocked.result()
        assert client.post("/api/predict", content=content).status_code == 200
    assert len(computed) == 1
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_at_once(number: signal.Signals, code: int, run: Path, tmp_path: Path) -> None:
    """While a page is open, an upload is on its way and images are computed; nothing of what was sent is
    left.
    """
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "polyp.cli", "app", str(run), "--port", "0", "--device", "cpu"]
    with (tmp_path.parent / "app.log").open("w+") as log:
        app = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert app.stdout is not None
        try:
            url = next(match[0] for line in app.stdout if (match := re.search(r"http://\S+", line)))
            with httpx.Client(base_url=url, trust_env=False) as client, ExitStack() as stack:
                content = picture(3000, 2000)
                post = POST + f"Content-Length: {len(content)}\r\n\r\n".encode()
                connections = [
                    connect(
                        client, POST.replace(b"predict", b"video") + b"Content-Length: 9000\r\n\r\nhello"
                    ),
                    connect(client, b"GET / HTTP/1.1\r\n"),
                    connect(client, post + content[:1000]),
                    *(connect(client, post + content) for _ in range(5)),
                ]
                time.sleep(0.5)
                assert any(tmp_path.glob("*/*/upload"))
                for connection in connections:
                    stack.callback(connection.close)
                app.send_signal(number)
                assert app.wait(20) == code  # before any client's timeout
        finally:
            app.kill()
            output = app.stdout.read()
            app.stdout.close()
        log.seek(0)
        assert "Traceback" not in output + log.read()
    assert list(tmp_path.iterdir()) == []


def test_a_video_ends_with_its_client(
    client: httpx.Client,
    queue: InferenceQueue,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    content = write_clip(tmp_path / "clip.avi", 400).read_bytes()
    frames, predictor = 0, type(queue.find_predictor(None)[1])
    predict_all = predictor.predict_all

    def slow(self: Predictor, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        nonlocal frames
        frames += len(images)
        time.sleep(0.05)
        return predict_all(self, images)

    monkeypatch.setattr(predictor, "predict_all", slow)
    post = POST.replace(b"predict", b"video")
    stream = connect(client, post + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
    started = time.monotonic()
    while not frames and time.monotonic() - started < 10:
        time.sleep(0.01)
    stream.close()
    time.sleep(0.5)
    count = frames
    time.sleep(0.3)
    assert 0 < frames == count < 400
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not any(folder.iterdir())
