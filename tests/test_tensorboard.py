"""TensorBoard's pages of a sweep, as a person sees them in Chromium."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from polyp.runs.folder import RunFolder
from polyp.training.loggers import RunLogger

playwright = pytest.importorskip("playwright.sync_api", reason="the extra test is not installed")
pytestmark = pytest.mark.slow

SWEPT = ("augment=light,strong", "optim.decoder_lr=0.001,0.003")


def write_job(folder: Path, augment: str, rate: float) -> None:
    """The curves and the result of a job of two epochs; its last validation Dice is not its best."""
    (folder / ".hydra").mkdir(parents=True)
    overrides = ["seed=0", f"augment={augment}", f"optim.decoder_lr={rate}"]
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    config: dict[str, Any] = {"seed": 0, "model": {"arch": "unet"}, "optim": {"decoder_lr": rate}}
    logger = RunLogger(RunFolder(folder), config | {"data": {"count": 60}}, 0)
    for epoch, dice in enumerate((0.8, 0.7)):
        curves = {f"{subset}/{name}": dice for subset in ("train", "val") for name in ("dice", "loss")}
        logger.log_metrics(curves | {"epoch": epoch, "lr-AdamW/encoder": rate, "val/iou": dice}, epoch)
    logger.write_result({"test/dice": 0.75, "test/iou": 0.6}, "val/dice", 0.8, 2)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page of Chromium at TensorBoard's address."""
    sweep = tmp_path_factory.mktemp("sweep")
    command = {"hydra": {"overrides": {"task": ["seed=0", *SWEPT], "hydra": []}}}
    (sweep / "multirun.yaml").write_text(yaml.safe_dump(command))
    for number, (augment, rate) in enumerate([("light", 0.001), ("strong", 0.003)]):
        write_job(sweep / f"{number}_augment-{augment}", augment, rate)
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(sweep), "--port", "0", "--bind_all"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    port = re.findall(r":(\d+)/", next(line for line in server.stderr if "http://" in line))[0]
    try:
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.goto(f"http://127.0.0.1:{port}/")
            yield page
            browser.close()
    finally:
        server.terminate()
        server.wait(10)
        server.stderr.close()


def test_the_first_screen_has_the_main_curves(page: Any) -> None:
    cards = page.locator("scalar-card")
    cards.nth(3).wait_for(timeout=60_000)
    titles = page.locator("scalar-card .tag").all_inner_texts()[:4]
    titles = ["".join(title.split()).removeprefix("Overview/") for title in titles]
    assert titles == ["train/dice", "train/loss", "val/dice", "val/loss"]
    assert cards.nth(3).bounding_box()["y"] < 1000
    groups = page.locator("metrics-card-group-toolbar .group-title").all_inner_texts()
    assert [group.strip() for group in groups] == ["Overview", "lr", "test", "train", "val"]


def test_hparams_show_what_was_swept_and_the_scores(page: Any) -> None:
    page.goto(page.url.partition("#")[0] + "#hparams")
    page.locator("text=0.0030000").wait_for(timeout=60_000)
    header = page.locator("vaadin-grid-cell-content", has_text="test/dice").first
    assert (box := header.bounding_box())["x"] + box["width"] <= 1400
    cells = [cell.strip() for cell in page.locator("vaadin-grid-cell-content").all_inner_texts()]
    cells = [cell for cell in cells if cell and "\n" not in cell]
    names = ["augment", "optim/decoder_lr", "val/dice", "test/dice"]
    assert [cell for cell in cells if "/" in cell or cell == "augment"] == names
    rows = [cells[place : place + 5] for place, cell in enumerate(cells) if cell.startswith(("0_", "1_"))]
    assert rows == [
        ["0_augment-light", "light", "0.0010000", "0.80000", "0.75000"],
        ["1_augment-strong", "strong", "0.0030000", "0.80000", "0.75000"],
    ]
