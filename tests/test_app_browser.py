"""`polyp app` as a person meets it: a process of its own, Debian's Chromium, and many visitors at once."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from planted import on_drawn_images, plant_model

from polyp.images import read_image as read
from polyp.inference import polyps
from polyp.inference.predictor import load_predictor
from polyp.runs.folder import RunFolder

CHROMIUM = "/usr/bin/chromium"

playwright = pytest.importorskip("playwright.sync_api", reason="the extra test is not installed")
pytest.importorskip("gradio", reason="the extra app is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        folder = tmp_path_factory.mktemp("app")
        made = [on_drawn_images(plant_model(folder / "runs" / name), 60, 96) for name in ("first", "second")]
        checkpoint = RunFolder(made[1]).best_checkpoint  # the second shall find nothing anywhere
        content = torch.load(checkpoint, weights_only=True)
        next(v for k, v in content["state_dict"].items() if k.endswith("segmentation_head.0.bias")).fill_(-50)
        torch.save(content, checkpoint)
        yield made


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The address and the process id of an app, which then ends by Ctrl-C without a word."""
    log = tmp_path_factory.mktemp("log") / "app.log"
    command = [sys.executable, "-m", "polyp.cli", "app", *map(str, runs), "--port", "0", "--max-upload", "1MB"]
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path_factory.getbasetemp() / "cache"),
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        said = ""
        while (found := re.search(r"http://\S+", said)) is None:
            line = process.stdout.readline()
            assert line, log.read_text()
            said += line
        yield found[0], process.pid
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
    assert "Traceback" not in log.read_text() + process.stdout.read()
    process.stdout.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).is_file():
        pytest.skip(f"no {CHROMIUM}")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, server: tuple[str, int], request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page with its first answer; no other host is asked for anything."""
    context = browser.new_context(**getattr(request, "param", {"viewport": {"width": 1280, "height": 900}}))
    opened = context.new_page()
    asked: list[str] = []
    context.on("request", lambda one: asked.append(one.url))
    opened.on("websocket", lambda one: asked.append(one.url))
    opened.goto(server[0])
    opened.wait_for_selector(".answer img")
    yield opened
    context.close()
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((server[0], "data:", "blob:"))] == []


def fetch(url: str, content: bytes | None = None) -> bytes:
    with urllib.request.urlopen(url, content, timeout=60) as reply:
        return reply.read()


def downloaded(page: Any, what: str) -> np.ndarray:
    with page.expect_download() as coming:
        page.get_by_role("link", name=f"Download {what}").click()
    return cv2.imread(str(coming.value.path()), cv2.IMREAD_UNCHANGED)


def verdict(page: Any) -> str:
    return page.locator(".verdict").first.inner_text()


def picture(page: Any) -> str:
    return page.locator(".answer img").first.get_attribute("src")


def images(run: Path) -> dict[str, Path]:
    """The run's test images by name."""
    from polyp.commands.app.gallery import gallery_of
    from polyp.runs.model import Source

    gallery = gallery_of([Source.of(str(run))])
    assert gallery.test_set is not None
    return {name: gallery.test_set.pairs[number].image for name, number in gallery.names.items()}


def test_pick_drag_and_look(page: Any, runs: list[Path]) -> None:
    name = page.locator("#gallery button").nth(1).get_attribute("data-name")
    page.locator("#gallery button").nth(1).click()
    page.wait_for_selector(f".facts:has-text('{name}')")
    assert page.locator("#gallery button[aria-pressed=true]").get_attribute("data-name") == name
    image = read(images(runs[0])[name])
    predictor = load_predictor([str(runs[0])])
    probability = predictor.predict(image)
    assert np.array_equal(downloaded(page, "mask"), polyps.mask(probability, predictor.threshold))
    assert downloaded(page, "overlay").shape == image.shape
    assert re.search(r"Dice \d\.\d{3} · IoU", page.locator(".scores").inner_text())

    before, slider = picture(page), page.get_by_role("slider", name=re.compile("Threshold"))
    slider.focus()
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector(".scores:has-text('0.65')")
    assert picture(page) != before
    assert np.array_equal(downloaded(page, "mask"), polyps.mask(probability, 0.65))
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 2 / 3, middle)  # 0.65 of 0.05 to 0.95
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, middle, steps=5)
    page.mouse.up()
    page.wait_for_selector(".scores:has-text('threshold 0.2')")
    dragged = float(slider.input_value())
    assert 0.2 <= dragged < 0.3 and np.array_equal(downloaded(page, "mask"), polyps.mask(probability, dragged))

    for view, words in (("Errors", "missed"), ("Uncertainty", "unsure"), ("Image", "alone"), ("Overlay", "truth")):
        before = picture(page)
        page.get_by_label(view, exact=True).click()
        page.wait_for_selector(f".legend:has-text('{words}')")
        assert picture(page) != before
    page.get_by_label("All models side by side").click()
    page.wait_for_selector(".beside .answer:nth-child(2) img")
    assert page.locator(".beside h2").all_inner_texts() == ["runs/first", "runs/second"]


def test_what_is_shown_is_what_was_chosen_last(page: Any) -> None:
    """However fast: while one answer is on its way, other images and views are chosen."""
    beside = page.get_by_label("All models side by side")
    for view, words in (("Image", "alone"), ("Overlay", "truth")) * 2:
        page.get_by_label(view, exact=True).click()
        beside.click()
        count = 1 if beside.is_checked() else 0
        page.wait_for_function(f"document.querySelectorAll('.beside').length == {count}")
        page.wait_for_selector(f".legend:has-text('{words}')")
    for gap in (0, 20):
        page.evaluate(
            """async gap => {
                const buttons = [...document.querySelectorAll('#gallery button')];
                for (const one of [...buttons.slice(1), ...buttons, buttons[gap ? 0 : 1]]) {
                    one.click();
                    await new Promise(done => setTimeout(done, gap));
                }
            }""",
            gap,
        )
        name = page.locator("#gallery button[aria-pressed=true]").get_attribute("data-name")
        page.wait_for_selector(f".facts:has-text('{name}')")


def test_upload_and_what_cannot_be_looked_at(page: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.png"
    own.write_bytes(cv2.imencode(".png", np.zeros((90, 120, 3), np.uint8))[1].tobytes())
    page.set_input_files("#upload input[type=file]", own)
    page.wait_for_selector(".facts:has-text('own.png · 120 x 90')")
    assert page.locator("#gallery button[aria-pressed=true]").count() == 0
    page.get_by_label("Errors", exact=True).click()
    page.wait_for_selector("text=No truth is known")
    page.get_by_label("Model").first.click()
    page.get_by_role("option", name="runs/second").click()
    page.wait_for_selector(".verdict:has-text('No polyp found')")
    for name, content, words in (
        ("<img src=x onerror=alert(1)>.png", b"no image at all", "not an image"),
        ("cut.jpg", cv2.imencode(".jpg", np.zeros((90, 120, 3), np.uint8))[1].tobytes()[:400], "damaged"),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        page.set_input_files("#upload input[type=file]", file)
        page.wait_for_selector(f".verdict:has-text('{words}')")
    assert page.locator("img[src=x]").count() == 0
    (tmp_path / "large.png").write_bytes(b"x" * 2_000_000)
    page.set_input_files("#upload input[type=file]", tmp_path / "large.png")
    page.wait_for_selector("text=maximum allowed size")
    page.locator("#gallery button").first.click()
    page.wait_for_selector(".scores")


def test_paste(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    pixels = cv2.imencode(".png", np.zeros((33, 44, 3), np.uint8))[1].tobytes()
    page.evaluate(
        """bytes => navigator.clipboard.write(
            [new ClipboardItem({'image/png': new Blob([new Uint8Array(bytes)], {type: 'image/png'})})])""",
        list(pixels),
    )
    page.locator("#upload").get_by_role("button", name="clipboard").click()
    page.wait_for_selector(".facts:has-text('44 x 33')")


def test_video(page: Any, tmp_path: Path) -> None:
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(5):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    page.get_by_role("tab", name="Video").click()
    page.get_by_role("button", name="Find polyps").click()
    page.wait_for_selector("text=Choose a video first")
    page.locator("input[type=file]").nth(1).set_input_files(clip)
    page.wait_for_selector("text=clip.avi")
    page.get_by_role("button", name="Find polyps").click()
    page.wait_for_selector("text=of 5 frames show a polyp")
    page.wait_for_selector("text=Every frame, as CSV")
    assert page.locator("video").get_attribute("src").endswith("clip_polyps.webm")


@pytest.mark.parametrize(
    "page",
    [
        {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme, "has_touch": True}
        for scheme in ("light", "dark")
    ],
    indirect=True,
)
def test_phone(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    image, gallery = (page.locator(selector).bounding_box() for selector in (".answer img", "#gallery"))
    assert image["y"] + image["height"] <= 844 and image["y"] < gallery["y"]  # the image is what one sees first
    assert page.get_by_text("For research use, not for diagnosis").is_visible()
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 200) == dark


def test_keyboard_reaches_everything(page: Any) -> None:
    focused = "(e => e.dataset.name ? 'gallery' : e.ariaLabel || e.innerText || e.type)(document.activeElement)"
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(focused))
        width = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert width != "0px"  # the focus is seen
    text = " ".join(map(str, reached))
    for part in ("gallery", "Download mask", "Image", "Threshold", "Opacity"):
        assert part in text, reached


def test_many_visitors_are_answered_and_memory_is_flat(server: tuple[str, int], runs: list[Path]) -> None:
    url, process = server
    paths = list(images(runs[0]).values())
    predictor = load_predictor([str(runs[0])])
    expected = [polyps.mask(predictor.predict(read(path)), 0.5) for path in paths]
    contents = [path.read_bytes() for path in paths]

    def ask(number: int) -> bool:
        which = number % len(paths)
        mask = fetch(f"{url}/api/mask?threshold=0.5", contents[which])
        return np.array_equal(cv2.imdecode(np.frombuffer(mask, np.uint8), -1), expected[which])

    def memory() -> int:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

    with ThreadPoolExecutor(20) as visitors:
        assert all(visitors.map(ask, range(200)))  # warm
        before = memory()
        assert all(visitors.map(ask, range(200)))
    assert memory() - before < 30  # MB
