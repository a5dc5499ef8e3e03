"""`polyp app` as a person meets it: a process of its own, Debian's Chromium, and many visitors at once."""

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from run_writers import on_drawn_images, write_model_run

from polyp.images import read_image
from polyp.inference import polyps
from polyp.inference.predictor import load_predictor
from polyp.runs.folder import RunFolder

pytest.importorskip("uvicorn", reason="the extra app is not installed")
from app_server import serve

from polyp.commands.app.gallery import load_gallery
from polyp.commands.app.inference_queue import InferenceQueue
from polyp.commands.app.server import make_app
from polyp.runs.model import ModelSource

playwright = pytest.importorskip("playwright.sync_api", reason="the extra test is not installed")
pytestmark = pytest.mark.slow

CHROMIUM = "/usr/bin/chromium"

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        folder = tmp_path_factory.mktemp("app")
        folders = [
            on_drawn_images(write_model_run(folder / "runs" / name), 60, 96) for name in ("first", "second")
        ]
        checkpoint = RunFolder(folders[1]).best_checkpoint  # the second shall find nothing anywhere
        content = torch.load(checkpoint, weights_only=True)
        next(v for k, v in content["state_dict"].items() if k.endswith("segmentation_head.0.bias")).fill_(-50)
        torch.save(content, checkpoint)
        yield folders


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The address and the process id of an app, which then ends by Ctrl-C without a word."""
    log = tmp_path_factory.mktemp("log") / "app.log"
    command = [
        sys.executable,
        "-m",
        "polyp.cli",
        "app",
        *map(str, runs),
        "--port",
        "0",
        "--max-upload",
        "1MB",
    ]
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path_factory.getbasetemp() / "cache"),
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        output = ""
        while (match := re.search(r"http://\S+", output)) is None:
            line = process.stdout.readline()
            assert line, log.read_text()
            output += line
        yield match[0], process.pid
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
    assert "Traceback" not in log.read_text() + process.stdout.read()
    process.stdout.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).is_file():
        pytest.skip(f"no {CHROMIUM}")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, server: tuple[str, int], request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page with its first result; it requests nothing from another host and runs without an error."""
    context = browser.new_context(**getattr(request, "param", {"viewport": DESKTOP}))
    opened = context.new_page()
    requested: list[str] = []
    errors: list[str] = []
    context.on("request", lambda request: requested.append(request.url))
    opened.on("websocket", lambda websocket: requested.append(websocket.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.extend([message.text] * ("Security Policy" in message.text)))
    opened.goto(server[0])
    opened.wait_for_selector(".result img")
    yield opened
    context.close()
    assert len(requested) > 5 and not errors
    assert [url for url in requested if not url.startswith((server[0], "data:", "blob:"))] == []


def fetch(url: str, content: bytes | None = None) -> bytes:
    with urllib.request.urlopen(url, content, timeout=60) as reply:
        return reply.read()


def downloaded(page: Any, view: str) -> np.ndarray:
    with page.expect_download() as coming:
        page.get_by_role("link", name=f"Download {view}").click()
    return cv2.imread(str(coming.value.path()), cv2.IMREAD_UNCHANGED)


def picture(page: Any) -> str:
    return page.locator(".result img").first.get_attribute("src")


def images(run: Path) -> dict[str, Path]:
    """The run's test images by name."""
    return {pair.stem: pair.image for pair in load_gallery([ModelSource.of(str(run))]).images.values()}


def test_choosing_dragging_and_views(page: Any, runs: list[Path]) -> None:
    name = page.locator("#gallery label").nth(1).get_attribute("title")
    page.locator("#gallery label").nth(1).click()
    page.wait_for_selector(f".facts:has-text('{name}')")
    assert page.locator("#gallery label:has(:checked)").get_attribute("title") == name
    image = read_image(images(runs[0])[name])
    predictor = load_predictor([str(runs[0])])
    probability = predictor.predict(image)
    assert np.array_equal(downloaded(page, "mask"), polyps.compute_mask(probability, predictor.threshold))
    assert downloaded(page, "overlay").shape == image.shape
    assert re.search(r"Dice \d\.\d{3} · IoU", page.locator(".scores").inner_text())

    previous, slider = picture(page), page.get_by_role("slider", name=re.compile("Threshold"))
    slider.focus()
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector(".scores:has-text('0.65')")
    assert picture(page) != previous
    assert np.array_equal(downloaded(page, "mask"), polyps.compute_mask(probability, 0.65))
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 2 / 3, middle)  # 0.65 of 0.05 to 0.95
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, middle, steps=5)
    page.mouse.up()
    page.wait_for_selector(".scores:has-text('threshold 0.2')")
    dragged = float(slider.input_value())
    assert 0.2 <= dragged < 0.3 and np.array_equal(
        downloaded(page, "mask"), polyps.compute_mask(probability, dragged)
    )

    words_of = {
        "Errors": "missed",
        "Uncertainty": "uncertain",
        "Probability": "of polyp",
        "Mask": "prediction",
    }
    for view, words in (words_of | {"Image": "alone", "Overlay": "truth"}).items():
        previous = picture(page)
        page.get_by_role("radio", name=view).click()
        page.wait_for_selector(f".result img[alt*=', {view.lower()}:']")
        assert words in page.locator(".legend").first.inner_text() and picture(page) != previous
    page.get_by_label("All models side by side").click()
    page.wait_for_selector(".beside .result:nth-child(3) img")
    assert page.locator(".beside h2").all_inner_texts() == ["runs/first", "runs/second", "average of all"]


def test_row_of_a_polyp_shows_its_box(page: Any) -> None:
    frame, row = page.locator(".picture div"), page.locator("tbody tr").first
    assert not frame.is_visible()
    row.focus()
    picture, box = page.locator(".picture").bounding_box(), frame.bounding_box()
    width, height = map(int, row.locator("td").nth(3).inner_text().split(" \u00d7 "))
    image = int(re.search(r"(\d+) \u00d7", page.locator(".facts").inner_text())[1])
    assert box["width"] / picture["width"] == pytest.approx(width / image, abs=0.02)
    assert box["height"] / box["width"] == pytest.approx(height / width, rel=0.1)


def test_page_shows_what_was_chosen_last(page: Any) -> None:
    """While one result is on its way, other images and views are chosen."""
    beside = page.get_by_label("All models side by side")
    for view, words in (("Image", "alone"), ("Overlay", "truth")) * 2:
        page.get_by_role("radio", name=view).click()
        beside.click()
        page.wait_for_selector(".beside", state="attached" if beside.is_checked() else "detached")
        page.wait_for_selector(f".legend:has-text('{words}')")
    for gap in (0, 20):
        page.evaluate(
            """async gap => {
                const buttons = [...document.querySelectorAll('#gallery input')];
                for (const one of [...buttons.slice(1), ...buttons, buttons[gap ? 0 : 1]]) {
                    one.click();
                    await new Promise(done => setTimeout(done, gap));
                }
            }""",
            gap,
        )
        name = page.locator("#gallery label:has(:checked)").get_attribute("title")
        page.wait_for_selector(f".facts:has-text('{name}')")


def below(page: Any, selector: str, reference: str) -> None:
    """An element stands right below another."""
    upper, lower = (page.locator(name).bounding_box() for name in (reference, selector))
    assert 0 <= lower["y"] - upper["y"] - upper["height"] < 30


def test_uploads_and_their_errors(page: Any, tmp_path: Path) -> None:
    upload = tmp_path / "own.png"
    upload.write_bytes(cv2.imencode(".png", np.zeros((90, 120, 3), np.uint8))[1].tobytes())
    page.set_input_files("#image-file", upload)
    page.wait_for_selector(".facts:has-text('own.png · 120 \u00d7 90')")
    assert page.locator("#gallery :checked").count() == 0
    assert page.get_by_role("radio", name="Errors").is_disabled()
    assert page.locator("#errors-hint").is_visible()  # which says why
    page.get_by_role("combobox", name="Model").select_option("runs/second")
    page.wait_for_selector(".verdict:has-text('No polyp found')")
    for name, content, words in (
        ("<img src=x onerror=alert(1)>.png", b"no image at all", "not a readable image"),
        (
            "cut.jpg",
            cv2.imencode(".jpg", np.zeros((90, 120, 3), np.uint8))[1].tobytes()[:400],
            "not a readable image",
        ),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        page.set_input_files("#image-file", file)
        page.wait_for_selector(f"#image-error:has-text('{words}')")
        below(page, "#image-error", "#image-file")
        assert page.locator(".facts").inner_text().startswith("own.png")  # the last result is still there
    assert page.locator("img[src=x]").count() == 0
    (tmp_path / "large.png").write_bytes(b"x" * 2_000_000)
    page.set_input_files("#image-file", tmp_path / "large.png")
    page.wait_for_selector("#image-error:has-text('more than the 1 MB')")
    page.locator("#gallery label").first.click()
    page.wait_for_selector(".scores")
    assert not page.locator("#image-error").is_visible()
    page.route("**/api/result*", lambda route: route.abort())
    page.get_by_role("radio", name="Mask").click()
    page.wait_for_selector("#results .error")
    page.unroute("**/api/result*")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".legend:has-text('white')")


def test_image_is_sent_again_once_the_server_has_forgotten_it(page: Any, tmp_path: Path) -> None:
    file = tmp_path / "own.png"
    file.write_bytes(cv2.imencode(".png", np.zeros((90, 120, 3), np.uint8))[1].tobytes())
    page.set_input_files("#image-file", file)
    page.wait_for_selector(".facts:has-text('own.png')")
    forgotten = {"status": 410, "json": {"error": "no longer in memory"}}
    page.route(
        "**/api/result*",
        lambda route: route.fulfill(**forgotten) if route.request.method == "GET" else route.continue_(),
    )
    page.get_by_role("radio", name="Image").click()
    page.wait_for_selector(".legend:has-text('alone')")


def test_paste_and_drop(page: Any) -> None:
    pixels = cv2.imencode(".png", np.zeros((33, 44, 3), np.uint8))[1].tobytes()
    send = """([bytes, type, name]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/png'}));
        const event = type == 'paste' ? new ClipboardEvent(type, {clipboardData: data, bubbles: true})
            : new DragEvent(type, {dataTransfer: data, bubbles: true});
        document.body.dispatchEvent(event);
    }"""
    for kind in ("paste", "drop"):
        page.evaluate(send, [list(pixels), kind, f"{kind}.png"])
        page.wait_for_selector(f".facts:has-text('{kind}.png · 44 \u00d7 33')")


def write_clip(path: Path, frames: Sequence[np.ndarray]) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def test_video(page: Any, tmp_path: Path, runs: list[Path]) -> None:
    """A video of black frames and of grey ones, with a threshold that only one of them reaches."""
    solid = {value: np.full((48, 64, 3), value, np.uint8) for value in (0, 128)}
    predictor = load_predictor([str(runs[0])])
    highest = {value: float(predictor.predict(frame).max()) for value, frame in solid.items()}
    brighter = int(highest[128] > highest[0])
    values = [128 * (brighter ^ (frame not in (*range(20, 30), *range(40, 45)))) for frame in range(60)]
    clip = write_clip(tmp_path / "clip.avi", [solid[value] for value in values])

    page.get_by_role("tab", name="Image").focus()
    page.keyboard.press("ArrowRight")
    start = page.get_by_role("button", name="Find polyps")
    start.click()
    page.wait_for_selector("#video-error:has-text('Choose a video first')")
    page.set_input_files("#video-file", clip)
    page.wait_for_selector("text=clip.avi")
    page.locator("#threshold").fill(f"{sum(highest.values()) / 2:.2f}")
    page.evaluate(
        """() => {
            const status = document.querySelector('#video-status');
            window.seen = [];
            const observer = new MutationObserver(() => seen.push(status.innerText));
            observer.observe(status, {childList: true, subtree: true});
        }"""
    )
    start.click()
    page.wait_for_selector("text=15 of 60 frames show a polyp")
    assert any("of 60 frames" in text for text in page.evaluate("seen"))
    assert fits(page)
    assert page.locator(".bar i").evaluate_all(
        "parts => parts.map(part => [part.style.left, part.style.width])"
    ) == [
        ["33.3333%", "16.6667%"],
        ["66.6667%", "8.33333%"],
    ]
    # The mean of blue, which is missing in the colour of outlines.
    blue = """video => new Promise(done => {
        const look = () => {
            const canvas = document.createElement('canvas').getContext('2d');
            canvas.drawImage(video, 0, 0);
            const blues = canvas.getImageData(0, 0, 64, 48).data.filter((_, index) => index % 4 === 2);
            done(blues.reduce((sum, blue) => sum + blue) / blues.length);
        };
        video.seeking ? (video.onseeked = look) : look();
    })"""
    for number, frame in ((1, 40), (0, 20)):
        page.locator("#findings button").nth(number).press("Enter")
        assert f"Frame {frame + 1} of 60" in page.locator(".timeline output").inner_text()
        assert abs(page.locator("video").evaluate(blue) - values[frame]) < 50
    page.locator(".bar i").nth(1).click()
    assert "Frame 43 of 60" in page.locator(".timeline output").inner_text()  # its middle
    page.locator("#findings button").nth(0).click()
    page.get_by_role("slider", name="Frame").press("ArrowLeft")
    assert "Frame 20 of 60, 0:01.9: no polyp" in page.locator(".timeline output").inner_text()
    assert abs(page.locator("video").evaluate(blue) - values[19]) < 50
    assert page.locator("video").evaluate("video => video.videoWidth") == 64
    for kind in ("video", "table"):
        with page.expect_download() as coming:
            page.get_by_role("link", name=f"Download {kind}").click()
        assert coming.value.suggested_filename == f"clip_polyps.{dict(video='webm', table='csv')[kind]}"
    assert len(coming.value.path().read_text().splitlines()) == 61

    (tmp_path / "bad.avi").write_bytes(b"no video")
    page.set_input_files("#video-file", tmp_path / "bad.avi")
    start.click()
    page.wait_for_selector("#video-error:has-text('bad.avi')")
    below(page, "#video-error", "#video-file")
    assert page.locator("#panel-video .result").is_visible()  # of the video before


def test_waiting_shows_what_happens_and_the_position(browser: Any, runs: list[Path]) -> None:
    queue, go = InferenceQueue({"it": str(runs[0])}), threading.Event()
    with serve(make_app(queue, load_gallery([ModelSource.of(str(runs[0]))]))) as client:
        for _ in range(3):
            queue.submit(go.wait)
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.wait_for_selector("#status:has-text('3 requests are before yours')")
        assert page.get_by_role("status").first.is_visible()
        go.set()
        page.wait_for_selector(".result img")
        assert not page.locator("#status").is_visible()
        page.close()
    queue.close()


def fits(page: Any) -> bool:
    """Nothing of the page needs scrolling."""
    return page.evaluate(
        """['html', 'aside', '.stage'].map(part => document.querySelector(part)).every(
            e => e.scrollHeight <= e.clientHeight && e.scrollWidth <= e.clientWidth)"""
    )


def test_all_of_it_is_visible_at_once(page: Any) -> None:
    for number in range(3):
        page.locator("#gallery label").nth(number).click()
        page.wait_for_selector(
            f".facts:has-text('{page.locator('#gallery label').nth(number).get_attribute('title')}')"
        )
        assert fits(page)
        for selector in (
            ".picture",
            "#gallery",
            "#image-file",
            "#views",
            "#threshold",
            "#opacity",
            "#details a",
        ):
            box = page.locator(selector).first.bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= DESKTOP["height"], selector
        assert page.locator(".picture").bounding_box()["height"] > 400
    page.set_viewport_size({"width": 1024, "height": 600})  # of a small laptop, where the page scrolls
    assert page.locator(".picture").bounding_box()["height"] > 300
    page.set_viewport_size(DESKTOP)
    intro = page.locator("#intro")
    assert intro.is_visible() and intro.inner_text().count(".") == 1


@pytest.mark.parametrize(
    "page",
    [{"viewport": PHONE, "color_scheme": scheme, "has_touch": True} for scheme in ("light", "dark")],
    indirect=True,
)
def test_phone(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = [
        page.locator(selector).bounding_box()
        for selector in (".result img", "#gallery", "#details a >> nth=0")
    ]
    assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"] and boxes[0]["y"] + boxes[0]["height"] <= 844
    assert page.get_by_text("For research use, not for diagnosis").is_visible()
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 200) == dark


CONTRASTS = """() => {
    const parse = colour => colour.match(/[\\d.]+/g).map(Number);
    const backOf = element => {
        for (; element; element = element.parentElement) {
            const colour = parse(getComputedStyle(element).backgroundColor);
            if ((colour[3] ?? 1) === 1) return colour;
        }
    };
    const luminance = colour => colour.slice(0, 3).map(value => value / 255)
        .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
    const contrast = (one, other) => {
        const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    };
    const found = [];
    for (const element of document.querySelectorAll('body *')) {
        const style = getComputedStyle(element), name = element.cloneNode().outerHTML;
        if (!element.checkVisibility() || element.matches(':disabled')) continue;
        const text = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (text && !element.closest('noscript'))
            found.push([name + ' ' + element.innerText, contrast(parse(style.color), backOf(element)), 4.5]);
        const around = backOf(element.parentElement);
        if (element.matches('.drop, select, button:not([role]), .actions a, fieldset span, .bar'))
            found.push([name + ' border', contrast(parse(style.borderTopColor), around), 3]);
        if (element.matches('.bar i'))
            found.push([name, contrast(parse(style.backgroundColor), around), 3]);
        if (element.matches('#gallery label:has(:checked), [role=tab][aria-selected=true]'))
            found.push([name + ' mark', contrast(parse(style.borderBottomColor), backOf(element)), 3]);
    }
    const focus = document.createElement('i');
    focus.style.color = 'var(--accent)';
    document.body.append(focus);
    for (const part of document.querySelectorAll('body, .result'))
        found.push(['focus', contrast(parse(getComputedStyle(focus).color), backOf(part)), 3]);
    return found;
}"""
"""What is visible, its contrast, and the least that WCAG 2.2 allows at level AA (1.4.3 and 1.4.11)."""


@pytest.mark.parametrize(
    "page", [{"viewport": DESKTOP, "color_scheme": scheme} for scheme in ("light", "dark")], indirect=True
)
def test_contrast(page: Any, tmp_path: Path) -> None:
    def check(least: int) -> None:
        page.wait_for_selector(".busy", state="detached")
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > least and [row for row in contrasts if row[1] < row[2]] == []

    page.get_by_text("HTTP API").click()
    check(30)
    (tmp_path / "bad.png").write_bytes(b"no image")
    page.set_input_files("#image-file", tmp_path / "bad.png")
    page.wait_for_selector("#image-error:not(:empty)")
    check(30)
    page.get_by_role("tab", name="Video").click()
    check(10)
    clip = write_clip(tmp_path / "clip.avi", [np.full((48, 64, 3), 200, np.uint8)] * 5)
    page.set_input_files("#video-file", clip)
    page.locator("#threshold").fill("0.05")
    page.get_by_role("button", name="Find polyps").click()
    page.wait_for_selector(".bar i")
    check(15)


def test_keyboard_alone(page: Any) -> None:
    """Everything is reached in few steps, and used, with a visible focus."""
    focused = """(e => e == document.body ? '' : e.name == 'image' ? 'gallery'
        : e.labels?.[0]?.innerText || e.innerText)(document.activeElement)"""
    outline = "(e => getComputedStyle(e.closest('label') ?? e).outlineStyle)(document.activeElement)"

    def go_to(part: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            reached = page.evaluate(focused)
            assert not reached or page.evaluate(outline) != "none"
            if part in reached:
                return
        raise AssertionError(f"{part} is not reached")

    name = page.locator("#gallery label").nth(1).get_attribute("title")
    go_to("gallery")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f".facts:has-text('{name}')")
    for part in ("own image", "Overlay"):
        go_to(part)
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".legend:has-text('missed')")
    go_to("Threshold")
    page.keyboard.press("End")
    page.wait_for_selector(".scores:has-text('0.95')")
    page.keyboard.press("Home")
    page.wait_for_selector(".scores:has-text('0.05')")
    for part in ("Opacity", "Model", "side by side", "Download mask"):
        go_to(part)
    with page.expect_download() as coming:
        page.keyboard.press("Enter")
    assert coming.value.suggested_filename == f"{name}_mask.png"
    go_to("HTTP API")
    page.keyboard.press("Enter")
    assert page.locator("#api").is_visible()
    go_to("Image")
    page.keyboard.press("ArrowRight")
    for part in ("Your video", "Find polyps"):
        go_to(part)


def test_many_clients_get_their_masks_and_memory_is_flat(server: tuple[str, int], runs: list[Path]) -> None:
    url, process = server
    paths = list(images(runs[0]).values())
    predictor = load_predictor([str(runs[0])])
    expected = [polyps.compute_mask(predictor.predict(read_image(path)), 0.5) for path in paths]
    contents = [path.read_bytes() for path in paths]

    def ask(number: int) -> bool:
        index = number % len(paths)
        mask = fetch(f"{url}/api/mask?threshold=0.5", contents[index])
        return np.array_equal(cv2.imdecode(np.frombuffer(mask, np.uint8), -1), expected[index])

    def memory() -> int:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

    with ThreadPoolExecutor(20) as visitors:
        assert all(visitors.map(ask, range(200)))  # warm
        start = memory()
        assert all(visitors.map(ask, range(200)))
    assert memory() - start < 30  # MB
