"""Tables and pages: one table for every reader, and values that are text wherever they are shown."""

import base64
import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from run_writers import on_drawn_images, write_model_run, write_run

from polyp import cli
from polyp.report.charts import SERIES, Chart, make_axes, styled
from polyp.report.html import Page
from polyp.report.tables import Column, Table

CHROMIUM = "/usr/bin/chromium"

ATTACK = "<script>alert('|')</script>"
ROWS = [{"name": ATTACK, "share": 0.123456, "seeds": 2}, {"name": "=1+1", "share": None}]
COLUMNS = [Column("name", "Name"), Column("share", format=".1%")]


def test_table_shows_people_rounded_columns(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(ROWS, COLUMNS)
    table.print(bold=lambda row: row["share"] is None)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["Name", "share"], [ATTACK, "12.3%"], ["=1+1"]]
    markdown = table.to_markdown().splitlines()
    assert (
        markdown[1] == "| --- | --- |" and markdown[2].endswith(" | 12.3% |") and markdown[3] == "| =1+1 |  |"
    )
    assert "<" not in markdown[2] and markdown[2].count("|") - markdown[2].count(r"\|") == 3


def test_table_gives_programs_every_value(tmp_path: Path) -> None:
    table = Table(ROWS, COLUMNS)
    (tmp_path / "table.csv").write_text(table.to_csv())
    with (tmp_path / "table.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {"name": ATTACK, "share": "0.123456", "seeds": "2"}
    assert second == {"name": "'=1+1", "share": "", "seeds": ""}  # no formula for a spreadsheet


def test_page_escapes_values(tmp_path: Path) -> None:
    page = Page(ATTACK, ATTACK)
    page.section(ATTACK, ATTACK)
    page.heading(ATTACK)
    page.text(ATTACK, "warning")
    page.table(ROWS)
    page.table([])
    page.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert (
        "<script" not in text and text.count("&lt;script&gt;") == 9
    )  # the title and the heading are there twice
    assert text.count("<table>") == 1 and "12.3%" not in text and '<td class="">0.123456</td>' in text


@styled
def test_charts_follow_the_page_and_are_saved_as_pdf(tmp_path: Path) -> None:
    figure, axes = make_axes(ATTACK, "a$x_{$")  # no formula
    axes.plot([0, 1], color=SERIES[0])
    axes.annotate("link", (0, 0), url="#below")
    page = Page("charts")
    page.charts([Chart("line", figure, ATTACK)])
    page.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert 'href="#below"' in text and "_blank" not in text  # a link stays on the page
    assert "stroke: var(--blue)" in text and SERIES[0] not in text.split("</style>")[1]
    assert "<script" not in text and "&lt;script&gt;" in text.split("<svg")[1].split("</svg>")[0]
    pdf = re.search(r'href="data:application/pdf;base64,(.*?)" download="line\.pdf"', text)
    assert pdf and base64.b64decode(pdf[1]).startswith(b"%PDF")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A page of each command: of unlike runs with many settings and long names, and of drawn images."""
    folder = tmp_path_factory.mktemp("pages")
    for number in range(4):
        changed = [
            f"model.encoder=a_very_long_name_of_an_encoder_{number}",
            f"model.loss={'ab'[number % 2]}_long_name_of_a_loss_function",
            *(f"optim.setting_{key}={number}" for key in range(9)),
        ]
        dice = np.clip(np.linspace(0.2, 1.1, 60) - 0.05 * number, 0, 1)
        name = f"{'a_very_long_name_of_a_run_' * 4}{number}"
        write_run(folder / "runs" / name, dice, 0.9 - number / 50, changed=changed)
    run = on_drawn_images(write_model_run(folder / "model"), 60, 96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        cli.main(["compare", str(folder / "runs"), "--out", str(folder / "compared")])
        cli.main(["evaluate", str(run)])
        cli.main(["data", "synthetic", "--out", str(folder / "data.html")])
    yield {
        "compare": folder / "compared/compare.html",
        "evaluate": run / "evaluations/test/report.html",
        "data": folder / "data.html",
    }


CONTRASTS = """() => {
    const light = colour => {
        const [r, g, b] = colour.match(/[0-9.]+/g).map(x => x / 255)
            .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b + .05;
    };
    const back = light(getComputedStyle(document.body).backgroundColor);
    return [...document.querySelectorAll("svg text")].map(text => {
        const fill = light(getComputedStyle(text).fill);
        return Math.max(fill, back) / Math.min(fill, back);
    });
}"""
"""The contrast of each text of a chart with the page, by the rules of WCAG 2."""


@pytest.mark.slow
def test_pages_on_screens(pages: dict[str, Path]) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra test is not installed")
    with playwright.sync_playwright() as driver, driver.chromium.launch(executable_path=CHROMIUM) as browser:
        for scheme, width in itertools.product(("light", "dark"), (1280, 390)):
            view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            for name, page in pages.items():
                view.goto(page.as_uri())
                assert view.evaluate("document.documentElement.scrollWidth") <= width, name
                assert min(view.evaluate(CONTRASTS)) >= 4.5, (name, scheme)
                if name == "compare" and width == 1280:
                    for column in ("test Dice (95 %)", "verdict"):
                        box = view.get_by_role("columnheader", name=column).first.bounding_box()
                        assert box and box["x"] + box["width"] <= width, column
                if (picture := view.locator(".gallery img").first).count():
                    small = picture.bounding_box()
                    picture.click()
                    assert picture.bounding_box()["width"] >= min(width - 40, 2 * small["width"])
                    assert view.locator("figcaption .legend:visible").count() == 1
                    picture.click()
                    assert picture.bounding_box()["width"] == small["width"]
            view.close()
