"""Tables and pages: one table for every reader, and values that are text wherever they are shown."""

import csv
from pathlib import Path

import pytest

from polyp.report.html import Page
from polyp.report.tables import Column, Table

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
