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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from planted import on_drawn_images, plant_model

from polyp.runs.folder import RunFolder

pytest.importorskip("gradio", reason="the extra app is not installed")
import httpx
from fastapi import FastAPI

from polyp.cli import main
from polyp.commands.app import answer, drawing, guard, serve
from polyp.commands.app import desk as desks
from polyp.commands.app.connection import Limits, make_server
from polyp.commands.app.desk import Busy, Desk, Photo, Seen
from polyp.commands.app.gallery import Gallery, gallery_of
from polyp.commands.app.server import application
from polyp.commands.app.upload import MOST_PIXELS
from polyp.errors import InputError
from polyp.images import decode
from polyp.inference import polyps
from polyp.inference.predictor import Predictor, load_predictor
from polyp.runs.data import load_run_data
from polyp.runs.model import Source

# Gradio 6.31 counts failed events in ways that pandas 3 deprecates: https://github.com/gradio-app/gradio/pull/11834
pytestmark = [
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

MOST = 300_000  # bytes of an upload

LIMITS = Limits()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield on_drawn_images(plant_model(tmp_path_factory.mktemp("app") / "run"))


@pytest.fixture(scope="module")
def visitors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where what visitors send lies."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("visitors")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def gallery(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        return gallery_of([Source.of(str(run))])


@pytest.fixture(scope="module")
def desk(run: Path) -> Iterator[Desk]:
    made = Desk({"it": str(run)}, device="cpu")
    yield made
    made.close()


@contextmanager
def served(app: FastAPI, limits: Limits = LIMITS) -> Iterator[httpx.Client]:
    """The app behind a real socket."""
    listening = serve.listen("127.0.0.1", 0)
    server = make_server(app, limits)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        port = listening.getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="module")
def client(desk: Desk, gallery: Gallery, visitors: Path) -> Iterator[httpx.Client]:
    with served(application(desk, gallery, most=MOST)) as asked:
        yield asked


@pytest.fixture(scope="module")
def locked(desk: Desk, gallery: Gallery, visitors: Path) -> Iterator[httpx.Client]:
    with served(application(desk, gallery, ("clinic", "secrét"), MOST)) as asked:
        yield asked


def picture(width: int = 60, height: int = 40, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def mask_of(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def seen(probability: np.ndarray, truth: np.ndarray | None = None, name: str = "frame") -> Seen:
    image = np.full((*probability.shape, 3), 100, np.uint8)
    return Seen("it", Photo("key", name, image, truth), probability.astype(np.float32), 12.3)


def test_answers_are_the_models(client: httpx.Client, run: Path, gallery: Gallery) -> None:
    assert gallery.test_set is not None
    content = gallery.test_set.pairs[0].image.read_bytes()
    predictor = load_predictor([str(run)], device_name="cpu")
    probability = predictor.predict(decode(content, ""))
    threshold = float(np.median(probability))  # half of the image
    found = client.post("/api/predict", params={"threshold": threshold}, content=content).json()
    expected = polyps.find(probability, threshold)
    assert [one["pixels"] for one in found["polyps"]] == [one.pixels for one in expected]
    assert found["polyps"][0]["box"]["width"] == expected[0].width
    assert found["size"] == {"width": probability.shape[1], "height": probability.shape[0]}
    assert found["model"] == "it" and found["milliseconds"] > 0
    reply = client.post("/api/mask", params={"threshold": threshold}, content=content)
    assert reply.headers["content-type"] == "image/png"
    assert np.array_equal(mask_of(reply.content), polyps.mask(probability, threshold))
    assert client.post("/api/predict", content=content).json()["threshold"] == predictor.threshold
    assert client.get("/api/models").json() == [{"model": "it", "threshold": predictor.threshold}]


def test_masks_are_the_commands(client: httpx.Client, run: Path, tmp_path: Path) -> None:
    """Of what is wide, upright by its EXIF tag alone, grey, and CMYK."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    pixels = np.random.default_rng(1).integers(0, 255, (40, 70, 3), np.uint8)
    for name, mode, more in (("wide", "RGB", {}), ("up", "RGB", {"exif": exif}), ("grey", "L", {}), ("c", "CMYK", {})):
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{name}.jpg", **more)
    sent = sorted(tmp_path.glob("*.jpg"))
    main(["predict", str(run), *map(str, sent), "--out", str(tmp_path / "out"), "--device", "cpu"])
    for path in sent:
        written = tmp_path / "out" / "masks" / f"{path.stem}.png"
        mask = mask_of(client.post("/api/mask", content=path.read_bytes()).content)
        assert np.array_equal(mask, mask_of(written.read_bytes())), path
        assert mask.shape == ((70, 40) if path.stem == "up" else (40, 70))
        uploaded = client.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes())}).json()[0]
        of_client = re.search(r'"path": "([^"]+\.png)"', ask(client, file(uploaded)))
        assert of_client is not None
        assert np.array_equal(mask_of(client.get(f"/gradio_api/file={of_client[1]}").content), mask)


BAD = {
    "empty": (b"", {}, 400, "no image"),
    "text": (b"hello", {}, 415, "not an image"),
    "page": (b"<svg onload='alert(1)'/>", {}, 415, "not an image"),
    "cut off": (picture()[:2000], {}, 415, "damaged"),
    "threshold": (picture(), {"threshold": 7}, 400, "between 0 and 1"),
    "no number": (picture(), {"threshold": "high"}, 400, "threshold: "),
    "nan": (picture(), {"threshold": "nan"}, 400, "between 0 and 1"),
    "model": (picture(), {"model": "../it"}, 400, "did you mean it"),
    "bytes": (b"x" * (MOST + 100_000), {}, 413, "--max-upload"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_one_line(case: str, client: httpx.Client) -> None:
    content, params, code, words = BAD[case]
    reply = client.post("/api/predict", params=params, content=content)
    assert reply.status_code == code, reply.text
    assert words in reply.json()["error"] and "\n" not in reply.json()["error"]


def test_a_bomb_is_not_decoded(client: httpx.Client) -> None:
    file = io.BytesIO()
    Image.new("1", (MOST_PIXELS // 1000 + 1, 1000)).save(file, "PNG")
    reply = client.post("/api/predict", content=file.getvalue())
    assert reply.status_code == 413 and "million" in reply.json()["error"]


def test_a_body_without_a_length_is_limited_as_it_comes(client: httpx.Client) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100 * MOST:
            sent += 10_000
            yield b"x" * 10_000

    assert client.post("/api/predict", content=endless()).status_code == 413
    reply = client.post("/gradio_api/upload", files={"files": ("big.png", b"x" * (MOST + 100_000))})
    assert reply.status_code == 413


def test_visitors_together_fill_neither_memory_nor_disk(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = {"files": ("one.png", b"x" * 1000)}
    with monkeypatch.context() as patch:
        patch.setattr(guard, "MOST_ARRIVING", 50_000)
        reply = client.post("/api/predict", content=b"x" * 100_000)
        assert reply.status_code == 503 and "try again" in reply.json()["error"]
        assert client.post("/api/predict", content=b"x" * 10_000).status_code == 415  # what has come is not counted on
    assert client.post("/gradio_api/upload", files=upload).status_code == 200
    monkeypatch.setattr(guard, "MOST_HELD", 999)
    reply = client.post("/gradio_api/upload", files=upload)
    assert reply.status_code == 503 and "try again in an hour" in reply.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x", "/nothing"),
        *("/api/models", "/gallery/0.jpg", "/answers/mask.png", "/gradio_api/file=/etc/passwd", "/assets/x.js"),
    ],
)
def test_auth_guards_everything(path: str, locked: httpx.Client) -> None:
    for given in (None, ("clinic", "wrong"), ("clinic", "")):
        reply = locked.get(path, auth=given)
        assert reply.status_code == 401 and "Basic" in reply.headers["www-authenticate"]
    assert locked.get(path, headers={"Authorization": "Basic ü".encode()}).status_code == 401
    if "queue" not in path:
        assert locked.get(path, auth=("clinic", "secrét".encode())).status_code != 401


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd", "/gradio_api/file=C:/x"),
        *(
            "/gradio_api/file=http://127.0.0.1:1/x",
            "/gradio_api/proxy=http://127.0.0.1:1/x",
            "/gradio_api/file/etc/passwd",
        ),
        *("/static/../../../etc/passwd", "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/gallery/..%2f..%2fetc%2fpasswd"),
        *("/gallery/99999.jpg", "/gallery/-1.jpg", "/monitoring", "/docs", "/openapi.json", "/gradio_api/vibe-code"),
        *("/gradio_api/deep_link?session_hash=x", "/custom_component/x", "/gradio_api/stream/a/b/1/playlist-file"),
    ],
)
def test_nothing_else_is_served(path: str, client: httpx.Client) -> None:
    reply = client.get(path)
    assert reply.status_code in (400, 403, 404), (path, reply.status_code)
    assert "root:" not in reply.text


def test_other_sites_cannot_ask(client: httpx.Client) -> None:
    assert client.get("/api/models", headers={"Host": "evil.example"}).status_code == 403  # its name leads here
    asked = client.post("/api/predict", content=picture(), headers={"Origin": "http://evil.example"})
    assert asked.status_code == 403
    assert (
        client.post("/api/predict", content=picture(), headers={"Origin": str(client.base_url).rstrip("/")}).status_code
        == 200
    )
    for header in ({"Host": "["}, {"Origin": "http://["}):
        assert client.post("/api/predict", content=picture(), headers=header).status_code == 403, header
    page = client.get("/")
    assert page.status_code == 200 and "For research use, not for diagnosis" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "og:image" not in page.text and "manifest" not in page.text.split("</head>")[0].rsplit("</script>", 1)[1]


def ask(client: httpx.Client, image: Any, threshold: float | None = None) -> str:
    """What Gradio's `predict` says, by plain HTTP."""
    joined = client.post("/gradio_api/call/predict", json={"data": [image, threshold, None]})
    assert joined.status_code == 200, joined.text
    return client.get(f"/gradio_api/call/predict/{joined.json()['event_id']}").text


def file(path: object, **more: Any) -> dict[str, Any]:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}} | more


def test_gradios_predict_takes_uploads_alone(client: httpx.Client, tmp_path: Path, visitors: Path) -> None:
    uploaded = client.post("/gradio_api/upload", files={"files": ("a.png", picture())}).json()[0]
    assert Path(uploaded).is_relative_to(visitors)
    said = ask(client, file(uploaded), 0.01)
    assert "event: complete" in said and '"width": 60, "height": 40' in said
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    inside = file(secret)
    for given in (
        *(file(secret), {"path": str(secret)}, file(f"{visitors}/../{secret.relative_to(tmp_path.parent)}")),
        *(file("http://127.0.0.1:1/x"), file("", url="http://127.0.0.1:1/x"), {"url": "data:image/png;base64,AAAA"}),
        *([inside], {"a": inside}, str(secret)),
    ):
        said = ask(client, given)
        assert "event: error" in said and "width" not in said, (given, said)
    nested = {"path": uploaded, "inner": inside, "meta": {"_type": "gradio.FileData", "inner": inside}}
    ask(client, nested)
    digests = {path.name for path in visitors.glob("**/secret*")}
    assert not digests  # nothing of it was copied to where it could be fetched


@pytest.mark.parametrize(
    "given", [[], [None, None], ["x", None, None], [None, "x", None], [None, [], None], [[{}] * 3]]
)
def test_what_no_page_sends_gets_one_line(
    given: list[Any], client: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    joined = client.post("/gradio_api/call/predict", json={"data": given})
    said = client.get(f"/gradio_api/call/predict/{joined.json()['event_id']}").text
    assert said.startswith("event: error") and "object at" not in said and len(said.splitlines()) < 4, said
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("path", "content"),
    [
        *(("/gradio_api/call/predict", content) for content in (b"{", b"[]", b'{"data": 3}', b'{"data": null}')),
        *(("/gradio_api/queue/join", content) for content in (b"\xff", b'{"data": [], "fn_index": 999}', b"[" * 50000)),
        *(("/gradio_api/call/nothing", b'{"data": []}'), ("/gradio_api/upload", b"x"), ("/gradio_api/cancel", b"{}")),
    ],
)
def test_malformed_requests_stop_nothing(path: str, content: bytes, client: httpx.Client) -> None:
    reply = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code >= 400 and "Traceback" not in reply.text
    assert client.post("/api/predict", content=picture()).status_code == 200


def test_mutated_images_are_answered(client: httpx.Client) -> None:
    """Each with a mask of the image's own size, or with one line."""
    random = np.random.default_rng(0)
    masks = 0
    for number in range(48):
        content = bytearray(picture(kind=("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")[number % 6]))
        for place in random.integers(0, len(content), random.integers(1, 8)):
            content[place] = random.integers(256)
        reply = client.post("/api/mask", content=bytes(content[: random.integers(20, len(content) * 2)]))
        if reply.status_code == 200:
            masks += 1
            assert mask_of(reply.content).shape == decode(bytes(content), "").shape[:2]
        else:
            assert reply.status_code in (413, 415) and "\n" not in reply.json()["error"], reply.text
    assert masks > 5


def test_uploads_are_never_pages(client: httpx.Client, visitors: Path) -> None:
    for name in ("a.html", "a.svg", "../../../a.html", "<b>.svg"):
        sent = client.post("/gradio_api/upload", files={"files": (name, b"<svg onload='alert(1)'/>")}).json()[0]
        assert Path(sent).resolve().is_relative_to(visitors)
        reply = client.get(f"/gradio_api/file={sent}")
        assert reply.headers["content-disposition"].startswith("attachment"), name
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_scripts_see_one_function(client: httpx.Client) -> None:
    assert list(client.get("/gradio_api/info").json()["named_endpoints"]) == ["/predict"]


def test_gallery_is_reached_by_name(gallery: Gallery, run: Path, client: httpx.Client) -> None:
    tested = [pair.stem for pair in load_run_data(run, Source.of(str(run)).config or {}).get_pairs("test")]
    assert list(gallery.names) == tested and len(tested) == 2
    photo = gallery.photo(tested[0])
    assert photo.truth is not None and photo.truth.shape == photo.image.shape[:2]
    thumbnail = client.get("/gallery/0.jpg")
    assert thumbnail.headers["content-type"] == "image/jpeg" and mask_of(thumbnail.content).shape[:2] == (160, 160)
    for name in ("../../etc/passwd", str(gallery.test_set.pairs[0].image) if gallery.test_set else "", ""):
        with pytest.raises(InputError):
            gallery.photo(name)


def test_data_that_are_gone_leave_an_app_without_gallery(run: Path, tmp_path: Path) -> None:
    config = Source.of(str(run)).config
    assert config is not None
    gone = {"dataset": "folder", "root": str(tmp_path / "gone"), "images": "images", "masks": "masks"}
    common = ("split", "split_seed", "image_size", "batch_size", "num_workers", "cache", "allow_empty")
    config = config | {"data": gone | {key: config["data"][key] for key in common}}
    gallery = gallery_of([Source(run, run, config)])
    assert not gallery.names and "gone" in gallery.html()
    with pytest.raises(InputError):
        gallery_of([Source(run, run, config)], str(tmp_path / "gone, too"))


def test_answer_in_words() -> None:
    probability = np.zeros((10, 10))
    assert "No polyp found" in answer.show(seen(probability), 0.5, 0.3, drawing.OVERLAY)
    probability[2:4, 2:6] = 0.75
    truth = np.zeros((10, 10), np.uint8)
    truth[2:5, 2:6] = 1
    shown = answer.show(seen(probability, truth), 0.5, 0.3, drawing.ERRORS)
    assert "1 polyp: 8.0 % of the image, mean probability 0.75" in shown
    assert "Dice 0.800" in shown and "IoU 0.667" in shown  # 2 * 8 / (8 + 12), 8 / 12
    assert "right 8.0 %" in shown and "missed 4.0 %" in shown and "false alarm 0.0 %" in shown
    assert "No polyp found" in answer.show(seen(probability, truth), 0.76, 0.3, drawing.ERRORS)


def test_hostile_names_are_text() -> None:
    shown = answer.show(seen(np.ones((9, 9)), name='"><script>alert(1)</script>'), 0.5, 0.3, drawing.OVERLAY)
    assert "<script" not in shown and "&lt;script&gt;" in shown
    assert "<script" not in answer.problem("<script>")
    assert "<img src=x" not in Gallery(None, {"<img src=x onerror=alert(1)>": 0}).html()


def test_names_of_runs_and_files_are_text_on_the_page(run: Path, visitors: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>${alert(1)}{{alert}}"
    small = Desk({hostile: str(run)}, device="cpu")
    gallery = Gallery(None, {hostile: 0}, hostile)
    with served(application(small, gallery)) as client:
        page = client.get("/").text
        assert client.get("/api/models").json()[0]["model"] == hostile
    assert "onerror" in page and "<img src=x" not in page
    small.close()


def test_errors_are_drawn_where_they_are() -> None:
    probability, truth = np.zeros((200, 200)), np.zeros((200, 200), np.uint8)
    probability[:, 50:150], truth[:, 100:] = 1, 1
    drawn = drawing.draw(seen(probability, truth), 0.5, 1, drawing.ERRORS)
    assert [tuple(drawn[100, x]) for x in (75, 125, 175)] == [drawing.FALSE, drawing.RIGHT, drawing.MISSED]
    assert tuple(drawn[100, 25]) == (100, 100, 100)


def test_what_is_kept_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def photo(key: str) -> Photo:
        asked.append(key)
        return Photo(key, key, np.zeros((64, 64, 3), np.uint8))

    monkeypatch.setattr(desks, "KEPT", 3 * 64 * 64 * (3 + 4))
    for key in ("a", "b", "a", "c", "d", "a", "b"):
        desk.turn(lambda key=key: desk.see(key, lambda: photo(key)))
    assert asked == ["a", "b", "c", "d", "b"]  # the sliders of "a" move without its being asked again
    with pytest.raises(InputError, match="choose the image again"):
        desk.turn(lambda: desk.kept("c", "it"))
    first, again = (desk.turn(lambda: desk.see("a", lambda: photo("a"), spread=True)) for _ in range(2))
    assert first is again and first.spread is not None and 0 <= first.spread.min() <= first.spread.max() <= 0.5


def test_too_many_waiting_are_told_so(run: Path, visitors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "MOST_WAITING", 1)
    small = Desk({"it": str(run)}, device="cpu")
    go, begun = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        go.wait(20)

    first = threading.Thread(target=small.turn, args=(block,))
    first.start()
    begun.wait(20)
    with pytest.raises(Busy):
        small.turn(lambda: None)
    with served(application(small, Gallery())) as client:
        reply = client.post("/api/predict", content=picture())
    assert reply.status_code == 503 and "busy" in reply.json()["error"] and reply.headers["retry-after"]
    go.set()
    first.join()
    assert small.turn(lambda: 3) == 3
    small.close()


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["app", *map(str, arguments)])
    assert isinstance(stopped.value.code, str) and "\n" not in stopped.value.code
    return stopped.value.code


def test_what_cannot_work_is_said_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # it is set by the command, and is again what it was hereafter
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in refusal(capsys, run, "--port", port)
    assert "user:password" in refusal(capsys, run, "--auth", "clinic")
    assert "such as 20MB" in refusal(capsys, run, "--max-upload", "much")
    assert "--port 99999" in refusal(capsys, run, "--port", "99999")
    assert "RUN" in refusal(capsys)
    assert "RUN" in refusal(capsys, run, "--demo")
    assert "twice" in refusal(capsys, run, run, "--port", 0)
    assert "is not there" in refusal(capsys, tmp_path / "nothing", "--port", 0)
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").config_file.write_bytes((RunFolder(run).config_file).read_bytes())
    assert "best.ckpt" in refusal(capsys, tmp_path / "empty", "--port", 0)
    monkeypatch.chdir(tmp_path)
    assert "train.py" in refusal(capsys, "--demo", "--port", 0)
    monkeypatch.setattr("polyp.errors.find_spec", lambda name: None)
    assert "pip install -e '.[app]'" in refusal(capsys, run)


def test_demo_takes_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("newest", "older")):
        folder = tmp_path / "outputs" / "runs" / name / "date"
        RunFolder(folder).best_checkpoint.parent.mkdir(parents=True)
        for made in (RunFolder(folder).best_checkpoint, RunFolder(folder).config_file, RunFolder(folder).metrics_file):
            made.touch()
        os.utime(RunFolder(folder).metrics_file, (1000 - age, 1000 - age))
    (tmp_path / "outputs" / "unfinished").mkdir()
    assert serve.demo_run() == Path("outputs/runs/newest/date")


def test_replies_do_not_wait_for_more() -> None:
    """asyncio sends at once (TCP_NODELAY) where it knows that a socket is TCP; else each reply takes 40 ms more."""
    with serve.listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_sizes_and_names() -> None:
    assert [serve.size(text) for text in ("20MB", "1.5gb", "300kb")] == [20_000_000, 1_500_000_000, 300_000]
    for text in ("", "MB", "-1MB", "20", "nanMB", "infGB"):
        with pytest.raises(InputError):
            serve.size(text)
    assert list(serve.named(["/x/a/one", "/x/b/one"])) == ["a/one", "b/one"]
    assert list(serve.named(["/x/a/one/1", "/x/b/one/1"])) == ["a/one/1", "b/one/1"]


def test_a_playlist_in_a_videos_clothes_opens_nothing(tmp_path: Path) -> None:
    """What FFmpeg would follow to other files; in a process of its own, where the app's settings hold."""
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 32))
    for _ in range(3):
        writer.write(np.zeros((32, 32, 3), np.uint8))
    writer.release()
    playlist = tmp_path / "list.avi"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{clip}\n#EXT-X-ENDLIST\n")
    code = "import cv2, sys; print([cv2.VideoCapture(path, cv2.CAP_FFMPEG).isOpened() for path in sys.argv[1:]])"
    environment = os.environ | {"OPENCV_FFMPEG_CAPTURE_OPTIONS": serve.VIDEOS}
    said = subprocess.run(
        [sys.executable, "-c", code, clip, playlist], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(said.stdout.lower()) == [True, False]


def test_a_mistake_of_ours_is_a_line_for_the_visitor(
    client: httpx.Client, desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Desk, "ask", lambda *_: 1 / 0)
        reply = client.post("/api/predict", content=picture())
    assert reply.status_code == 500 and "made a mistake" in reply.json()["error"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert client.get("/api/models").status_code == 200


QUICK = Limits(headers=0.5, body=0.6, rate=1000, answer=0.6, connections=20)


@pytest.fixture(scope="module")
def quick(desk: Desk, gallery: Gallery, visitors: Path) -> Iterator[httpx.Client]:
    """An app whose limits a test reaches at once."""
    with served(application(desk, gallery, most=MOST), QUICK) as asked:
        yield asked


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test sees all lines for the operator."""
    monkeypatch.setattr("polyp.commands.app.report.QUIET", 0.0)


def connect(client: httpx.Client, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", client.base_url.port), timeout=10)
    connection.sendall(sent)
    return connection


def rest(connection: socket.socket) -> bytes:
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
    said = json.loads(body)
    assert list(said) == ["error"] and said["error"] and "\n" not in said["error"], reply
    return int(head.split()[1]), said["error"]


HOST = b"Host: 127.0.0.1\r\nConnection: close\r\n"
JSON = b"Content-Type: application/json\r\n"
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
        (b"GET /assets/" + b"a" * 5000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"OPTIONS /api/predict HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"FOO /gallery/0.jpg HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"DELETE / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"GET /gallery/x.jpg HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /gradio_api/queue/data HTTP/1.1\r\n" + HOST + b"\r\n", 422),
        (b"POST /gradio_api/upload HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello", 400),
        (
            b"POST /gradio_api/call/v2/predict HTTP/1.1\r\n" + HOST + JSON + b'Content-Length: 11\r\n\r\n{"data":[]}',
            400,
        ),
        (b"GET /assets/nothing.js HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        *(
            (POST.replace(b"predict", b"predict?" + query) + b"Content-Length: 1\r\n\r\nx", 400)
            for query in (b"threshold=inf", b"threshold=1e400", b"threshold=-1", b"threshold=", b"model=%00")
        ),
    ],
)
def test_every_error_is_json_of_one_form(
    sent: bytes, status: int, client: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    assert error_of(rest(connect(client, sent)))[0] == status
    assert "Traceback" not in "".join(capfd.readouterr())


def test_head_and_pipelined_requests(client: httpx.Client) -> None:
    assert client.head("/api/models").status_code == 200
    reply = client.head("/api/predict")
    assert reply.status_code == 405 and reply.headers["allow"] == "POST"
    get = b"GET /api/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    replies = rest(connect(client, 3 * get + b"hello\r\n\r\n")).split(b"HTTP/1.1 ")[1:]
    assert [int(reply[:3]) for reply in replies] == [200, 200, 200, 400]


def test_wrong_passwords_are_slowed_down(
    desk: Desk, visitors: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "FAILED_LOGINS", (5, 1.0))
    monkeypatch.setattr(guard, "FAILED_LOGINS_OF_ALL", (12, 0.5))
    monkeypatch.setattr(guard, "MAX_ADDRESSES", 3)
    right, wrong = ("clinic", "right"), ("clinic", "wrong")
    with served(application(desk, Gallery(), right)) as client:

        def ask(auth: tuple[str, str], address: str) -> httpx.Response:
            return client.get("/api/models", auth=auth, headers={"X-Forwarded-For": address})

        browser = ask(right, "192.0.2.1").cookies
        client.cookies.clear()
        tried = [ask(wrong, "192.0.2.1").status_code for _ in range(50)]
        assert tried[:5] == [401] * 5 and tried.count(401) < 8 and set(tried) == {401, 429}
        refused = ask(right, "192.0.2.1")
        assert refused.status_code == 429 and 0 < int(refused.headers["retry-after"]) <= 2 and refused.json()["error"]
        assert ask(right, "192.0.2.2").status_code == 200
        client.cookies.clear()
        assert client.get("/api/models").status_code == 401  # a browser that has not asked for the password yet
        tried = [ask(wrong, f"192.0.2.{number}").status_code for number in range(3, 53)]
        assert tried.count(401) < 12 and tried[-1] == 429  # of all together
        assert ask(right, "192.0.2.200").status_code == 429
        client.cookies.clear()
        client.cookies = browser  # whoever has logged in does not wait
        assert ask(right, "192.0.2.1").status_code == 200
        client.cookies.clear()
        time.sleep(2)
        assert ask(right, "192.0.2.1").status_code == 200
    lines = capsys.readouterr().err.splitlines()
    assert any("192.0.2.1" in line for line in lines) and not any("wrong" in line and "right" in line for line in lines)


def test_slow_clients_are_closed(quick: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    head = connect(quick, b"GET /api/models HTTP/1.1\r\nHost: ")
    idle = connect(quick)
    kept = connect(quick, b"GET /api/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    stalled = connect(quick, POST + b"Content-Length: 5000\r\n\r\nhello")
    assert error_of(rest(head))[0] == 408 and rest(idle) == b"" and b"200 OK" in rest(kept)
    assert error_of(rest(stalled))[0] == 408
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
    assert error_of(rest(steady))[0] == 415
    lines = capsys.readouterr().err.splitlines()
    assert sum("127.0.0.1" in line for line in lines) >= 3 and "Traceback" not in "".join(lines)


def test_a_client_that_does_not_read_is_closed(quick: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    lazy.connect(("127.0.0.1", quick.base_url.port))
    lazy.settimeout(10)
    with suppress(OSError):
        for _ in range(200):  # the page's largest file, many times
            lazy.sendall(b"GET /config HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            time.sleep(0.02)
    time.sleep(1)
    assert "did not read" in capsys.readouterr().err
    lazy.close()


def test_half_open_connections_block_nobody(quick: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert QUICK.connections == 20
    opened = [connect(quick, b"GET / HTTP/1.1\r\nX: ") for _ in range(100)]
    started = time.monotonic()
    assert httpx.get(quick.base_url.join("/api/models"), trust_env=False).status_code == 200
    assert time.monotonic() - started < 1
    for connection in opened:
        connection.close()
    assert "over 20 connections" in capsys.readouterr().err


def test_an_address_has_so_many_requests_at_once(desk: Desk, visitors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_ACTIVE_OF_ONE", 3)
    monkeypatch.setattr(guard, "MAX_ACTIVE", 4)
    with served(application(desk, Gallery())) as client:
        other = {"X-Forwarded-For": "192.0.2.1"}
        opened = [connect(client, POST + b"Content-Length: 10\r\n\r\n") for _ in range(3)]
        reply = until(lambda: client.get("/api/models"), 429)  # once the server has read these
        assert reply.headers["retry-after"] and reply.json()["error"]
        until(lambda: client.get("/api/models", headers=other), 200)
        time.sleep(0.1)  # until that is over
        opened.append(connect(client, POST + b"X-Forwarded-For: 192.0.2.2\r\nContent-Length: 10\r\n\r\n"))
        time.sleep(0.1)  # until the server has read this
        assert until(lambda: client.get("/api/models", headers=other), 503).json()["error"]
        for connection in opened:
            connection.close()
        until(lambda: client.get("/api/models"), 200)


def until(ask: Callable[[], httpx.Response], status: int) -> httpx.Response:
    """The first reply of this status."""
    for _ in range(500):
        if (reply := ask()).status_code == status:
            return reply
        time.sleep(0.01)
    raise AssertionError(f"{reply.status_code} for 5 s, not {status}")


@pytest.mark.parametrize("path", ["/api/predict", "/gradio_api/upload"])
def test_an_upload_that_breaks_off_is_a_line(
    path: str, client: httpx.Client, visitors: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "ABANDONED", 0)
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"x" * 50_000
    form = b"Content-Type: multipart/form-data; boundary=x\r\n" if "upload" in path else b""
    head = f"POST {path} HTTP/1.1\r\n".encode() + HOST + form + b"Content-Length: 100000\r\n\r\n"
    connect(client, head + body).close()
    said, started = "", time.monotonic()
    while not said and time.monotonic() - started < 5:
        time.sleep(0.01)
        said = "".join(capfd.readouterr())
    assert len(said.splitlines()) == 1 and "127.0.0.1" in said
    client.post("/gradio_api/upload", files={"files": ("a.png", b"x")})
    assert not [file for file in visitors.iterdir() if file.is_file()]  # no part of it is kept


def test_a_full_disk_is_a_line(
    client: httpx.Client, visitors: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gradio.route_utils.NamedTemporaryFile", full)
        reply = client.post("/gradio_api/upload", files={"files": ("a.png", picture())})
    assert reply.status_code == 503 and "No space left" in reply.json()["error"]
    uploaded = client.post("/gradio_api/upload", files={"files": ("a.png", picture())}).json()[0]
    with monkeypatch.context() as patch:
        patch.setattr("gradio.processing_utils.save_img_array_to_cache", full)
        said = ask(client, file(uploaded))
    assert "event: error" in said and "No space left" in said
    assert "event: complete" in ask(client, file(uploaded))
    lines = "".join(capfd.readouterr()).splitlines()
    assert len(lines) == 2 and all("No space left" in line for line in lines), lines


def test_nobody_waits_for_who_has_left(client: httpx.Client, desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    go, asked = threading.Event(), desk.ask
    computed = []

    def count(*given: Any) -> Seen:
        computed.append(1)
        return asked(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desk, "ask", count)
        blocked = desk.submit(go.wait)
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
    """While a page is open, an upload is on its way and images are computed; nothing of what was sent is left."""
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "polyp.cli", "app", str(run), "--port", "0", "--device", "cpu"]
    with (tmp_path.parent / "app.log").open("w+") as log:
        app = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert app.stdout is not None
        try:
            url = next(found[0] for line in app.stdout if (found := re.search(r"http://\S+", line)))
            with httpx.Client(base_url=url, trust_env=False) as client:
                client.post("/gradio_api/upload", files={"files": ("a.png", picture())})
                assert any(tmp_path.iterdir())
                content = picture(3000, 2000)
                post = POST + f"Content-Length: {len(content)}\r\n\r\n".encode()
                opened = [
                    connect(client, b"GET /gradio_api/heartbeat/x HTTP/1.1\r\n" + HOST + b"\r\n"),
                    connect(client, b"GET / HTTP/1.1\r\n"),
                    connect(client, post + content[:1000]),
                    *(connect(client, post + content) for _ in range(5)),
                ]
                time.sleep(0.5)
                started = time.monotonic()
                app.send_signal(number)
                assert app.wait(30) == code
                assert time.monotonic() - started < 8
                for connection in opened:
                    connection.close()
        finally:
            app.kill()
            said = app.stdout.read()
            app.stdout.close()
        log.seek(0)
        assert "Traceback" not in said + log.read()
    assert list(tmp_path.iterdir()) == []


def test_a_video_ends_with_its_visitor(
    client: httpx.Client, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 32))
    for _ in range(400):
        writer.write(np.zeros((32, 32, 3), np.uint8))
    writer.release()
    frames, predictor = 0, type(desk.predictor(None)[1])
    predict_all = predictor.predict_all

    def slow(self: Predictor, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        nonlocal frames
        frames += len(images)
        time.sleep(0.05)
        return predict_all(self, images)

    monkeypatch.setattr(predictor, "predict_all", slow)
    config = client.get("/config").json()
    number = next(one["id"] for one in config["dependencies"] if len(one["inputs"]) == 3 and len(one["outputs"]) == 3)
    sent = client.post("/gradio_api/upload", files={"files": ("clip.avi", clip.read_bytes())}).json()[0]
    data = {"data": [file(sent), 0.5, "it"], "fn_index": number, "session_hash": "leaves"}
    assert client.post("/gradio_api/queue/join", json=data).status_code == 200
    stream = connect(client, b"GET /gradio_api/queue/data?session_hash=leaves HTTP/1.1\r\n" + HOST + b"\r\n")
    started = time.monotonic()
    while not frames and time.monotonic() - started < 10:
        time.sleep(0.01)
    stream.close()
    time.sleep(0.5)
    before = frames
    time.sleep(0.3)
    assert 0 < frames == before < 400
    assert "Traceback" not in "".join(capfd.readouterr())
