"""Reports as table, CSV, JSON, HTML and PDF."""

from __future__ import annotations

import builtins
import csv
import dataclasses
import io
import json
import re
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
from report_sample import DAYS, HOSTILE, LONG, NAMES, sample

from cli import charts
from cli.render import render
from cli.render_values import window
from registry.report import Chart, Column, Report, Section, from_json

GOLDEN = Path(__file__).with_name("golden")


def text(format: Any, report: Report | None = None) -> str:
    made = render(report or sample(), format)
    assert isinstance(made, str)
    return made


def one(kind: Any, *values: Any) -> Report:
    """A report of one column."""
    section = Section("s", "S", (Column("k", "K", kind),), tuple({"k": v} for v in values))
    return dataclasses.replace(sample(), sections=(section,))


class Page(HTMLParser):
    """What a browser would find: texts of cells by row, element names, what would be fetched."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.rows: list[list[str]] = []
        self.fetched: list[str] = []
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data", "srcset")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


@pytest.mark.parametrize("format", ("table", "csv"))
def test_the_sample_reads_as_it_was_agreed(format: str) -> None:
    with open(GOLDEN / f"usage.{format}", encoding="utf-8", newline="") as agreed:
        assert text(format) == agreed.read()


def test_json_is_the_report_whole() -> None:
    assert from_json(json.loads(text("json"))) == sample()


def test_csv_is_one_table_whose_numbers_add_up_and_whose_texts_are_no_formulas() -> None:
    rows = list(csv.DictReader(io.StringIO(text("csv"), newline="")))
    assert [r["section"] for r in rows] == ["usage"] * 20 + ["models"] * 2
    total = sample().sections[0].total
    assert total is not None
    assert sum(int(r["requests"]) for r in rows if r["section"] == "usage") == total["requests"]
    assert rows[4]["tenant"] == "'=cmd|'/c calc'!A1"
    assert rows[5]["wait"] == ""
    for begins in "=+-@\t\r":
        assert list(csv.reader(io.StringIO(text("csv", one("text", begins + "1")), newline="")))[1][1][0] == "'"
    assert list(csv.reader(io.StringIO(text("csv", one("count", -1)), newline="")))[1][1] == "-1"


def test_a_text_cannot_break_a_table_or_steer_the_terminal() -> None:
    shown = text("table", one("text", "a\nb\tc\x1b[31m"))
    assert "a b c" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("kind", "values", "shown"),
    (
        ("count", (1234567, 0, None), ["1,234,567", "0", "-"]),
        ("count", (1234.56, 36.754, 40.0, 0.0, 0.0012345), ["1,235", "36.75", "40", "0", "0.00123"]),
        ("credits", (1234, 0.5), ["1,234.00", "0.50"]),
        ("credits", (1234.5, 0.000364), ["1,234.500000", "0.000364"]),
        ("percent", (0.5, 1.234), ["50.0 %", "123.4 %"]),
        ("hours", (1711.5, 0), ["1,711.50", "0.00"]),
        ("seconds", (0.4, 59, 228.2, 3599.6), ["0 s", "59 s", "3 min 48 s", "1 h 00 min"]),
        ("seconds", (43571, 86399, 86400, 100_000), ["12 h 06 min", "1 d 0 h", "1 d 0 h", "1 d 4 h"]),
        ("time", ("2026-11-01T10:00:05.123456Z", "2026-11-01"), ["2026-11-01 10:00:05", "2026-11-01"]),
        ("text", ("v1.2Z", None), ["v1.2Z", "-"]),
    ),
)
def test_values_are_shown_by_their_kind(kind: str, values: tuple[Any, ...], shown: list[str]) -> None:
    assert [row[0] for row in Page(text("html", one(kind, *values))).rows[1:]] == shown


@pytest.mark.parametrize(
    ("start", "end", "words"),
    (
        ("2026-11-01T00:00:00.000000Z", "2026-12-01T00:00:00.000000Z", "November 2026"),
        ("2026-12-01T00:00:00.000000Z", "2027-01-01T00:00:00.000000Z", "December 2026"),
        ("2026-11-03T00:00:00.000000Z", "2026-11-10T00:00:00.000000Z", "3 Nov 2026 to 9 Nov 2026"),
        ("2026-11-03T00:00:00.000000Z", "2026-11-04T00:00:00.000000Z", "3 Nov 2026"),
        ("2026-11-01T00:00:00.000000Z", "2026-11-09T12:30:00.000000Z", "1 Nov 2026 00:00 to 9 Nov 2026 12:30 UTC"),
    ),
)
def test_a_window_is_said_in_the_fewest_words(start: str, end: str, words: str) -> None:
    assert window(dataclasses.replace(sample(), start=start, end=end)) == words


def test_the_html_shows_every_row_and_total_of_every_section() -> None:
    html = text("html")
    page = Page(html)
    assert [row[0] for row in page.rows] == [
        *("Tenant", *NAMES, "total"),
        *("Model", "meta-llama/Llama-3.3-70B-Instruct", "demo@latest"),
    ]
    assert page.rows[21][1:5] == ["3,087,963", "4,048,319,493", "886,245,381", "3,810.546342"]
    for words in (
        "Corrections",
        "Nothing in this time.",
        "Slurm&#39;s books were last read",
        "all 2 checks below hold",
    ):
        assert words in html


def test_a_table_of_many_columns_is_set_smaller_and_one_of_few_rows_stays_on_its_page() -> None:
    assert re.findall(r'<table class="([^"]*)">', text("html")) == ["wide", "short"]


def test_the_html_fetches_nothing_and_runs_nothing() -> None:
    html = text("html")
    page = Page(html)
    assert {f for f in page.fetched if not f.startswith("data:")} == set()
    assert "script" not in page.names
    assert not re.search(r"url\(|@import|\son\w+=", html)
    assert set(re.findall(r"\w+://[\w./]+", html)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched


def test_hostile_names_are_only_text_wherever_they_stand() -> None:
    hostile = '</style></title><script>alert(1)</script>"; } body { display: none }\\'
    report = dataclasses.replace(sample(), title=hostile, of=hostile, site=hostile, notes=(hostile,))
    page = Page(text("html", report))
    assert "script" not in page.names
    assert page.names.count("style") == 1
    assert page.names.count("title") > 1  # the charts' tips
    assert HOSTILE in [row[0] for row in page.rows]
    assert "display: none" not in text("html", report).partition("</style>")[0].partition("<style>")[2]


def test_on_paper_each_tenants_sections_begin_a_page_of_their_own() -> None:
    (section,) = one("text", "x").sections
    keys = ("acme/summary", "acme/limits", "beta/summary", "beta/limits")
    report = dataclasses.replace(sample(), sections=tuple(dataclasses.replace(section, key=k) for k in keys))
    assert re.findall(r'<section id="([^"]+)" class="apart">', text("html", report)) == ["beta/summary"]
    assert '" class="apart">' not in text("html")


def test_a_check_that_does_not_hold_is_said_first() -> None:
    report = sample()
    broken = dataclasses.replace(report.checks[0], holds=False)
    report = dataclasses.replace(report, checks=(broken, report.checks[1]))
    html = text("html", report)
    assert html.index("1 of 2 checks do not hold: the ledger") < html.index("Tokens and credits by tenant")
    assert "the ledger's entries sum to zero (1,234,567 entries)  <- DOES NOT HOLD" in text("table", report)


# Charts.


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(charts.svg(chart))


def texts(chart: Chart) -> list[str]:
    return [e.text or "" for e in drawn(chart).iter("{http://www.w3.org/2000/svg}text")]


def tips(chart: Chart) -> list[str]:
    return [e.text or "" for e in drawn(chart).iter("{http://www.w3.org/2000/svg}title")]


def test_every_chart_is_well_formed_and_names_its_unit_and_values() -> None:
    for section in sample().sections:
        for chart in section.charts:
            assert chart.unit in texts(chart)
            assert drawn(chart).get("aria-label") == chart.title
    bars = Chart("bars", "Cost", "credits", ("a & b", LONG), (("<x>", (1.5, 0.0)),))
    assert tips(bars) == [LONG, "a & b, <x>: 1.5 credits"]
    assert "a & b" in texts(bars)
    assert f"{LONG[:29]}…" in texts(bars)


def test_days_of_one_month_are_named_by_number_and_of_two_by_month_and_day() -> None:
    def line(days: tuple[str, ...]) -> list[str]:
        return texts(Chart("line", "", "u", days, (("s", tuple(range(len(days)))),)))

    assert {"1", "15", "30"} <= set(line(DAYS))
    assert {"10-31", "11-01"} <= set(line(("2026-10-31", "2026-11-01")))


def test_the_smallest_of_many_series_are_stacked_as_one_and_nothing_is_lost() -> None:
    chart = Chart("stacked", "", "u", ("a", "b"), tuple((f"s{n}", (float(n), 1.0)) for n in range(20)))
    shown, left_out = charts.bounded(chart)
    assert len(shown.series) == charts.MOST_SERIES
    assert shown.series[-1][0] == "13 others"
    assert [sum(v[i] for _, v in shown.series) for i in (0, 1)] == [190.0, 20.0]
    assert left_out == ""


def test_of_very_many_names_the_largest_are_drawn_and_the_chart_says_so() -> None:
    chart = Chart("bars", "", "u", tuple(f"n{i}" for i in range(100)), (("s", tuple(float(i) for i in range(100))),))
    said = texts(chart)
    assert "the 30 largest of 100 names" in said
    assert "n99" in said
    assert "n69" not in said


@pytest.mark.parametrize("kind", ("bars", "stacked", "line"))
@pytest.mark.parametrize("values", ((), (0.0, 0.0), (-5.0, 3.0), (1e-7, 2e-7), (1e15, 1.0), (float("nan"), 1.0)))
def test_no_values_break_a_chart(kind: Any, values: tuple[float, ...]) -> None:
    chart = Chart(kind, "t", "u", ("a", "b")[: len(values)], (("s", values), ("r", values)))
    for element in drawn(chart).iter():
        for attribute in ("x", "y", "width", "height", "x1", "y1"):
            assert float(element.get(attribute, "0")) >= 0


def test_the_axis_ends_at_a_round_number_above_the_highest() -> None:
    assert [t for t in texts(Chart("bars", "", "u", ("a",), (("s", (1_234_567.0,)),)))[:-2] if t[0].isdigit()] == [
        *("0", "250k", "500k", "750k", "1000k", "1250k")
    ]


# PDF.


def test_the_pdf_has_the_pages_of_the_html_and_nothing_is_left_unsaid(caplog: pytest.LogCaptureFixture) -> None:
    try:
        made = render(sample(), "pdf")
    except click.ClickException as e:
        pytest.skip(e.message)
    assert isinstance(made, bytes)
    assert made.startswith(b"%PDF")
    assert made.rstrip().endswith(b"%%EOF")
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", made, re.DOTALL)
    plain = b"".join(zlib.decompress(s) for s in streams if s[:1] == b"x")
    assert 1 < len(re.findall(rb"/Type\s*/Page\b", plain)) < 10  # 5, with the fonts of where it was looked at
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == []  # of the style sheet


@pytest.mark.parametrize(
    ("error", "named"),
    (
        (ImportError("No module named 'weasyprint'"), "pip install weasyprint"),
        (OSError("cannot load library"), "libpango-1.0-0"),
    ),
)
def test_what_pdf_needs_is_named_when_it_is_missing(
    error: Exception, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == "weasyprint":
            raise error
        return real(name, *args)

    for module in [m for m in sys.modules if m.partition(".")[0] == "weasyprint"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(click.ClickException, match=named) as said:
        render(sample(), "pdf")
    assert "--format html" in said.value.message
