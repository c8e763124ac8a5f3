"""A report as PDF: the HTML, printed by WeasyPrint. The only module that imports it, when it prints."""

from __future__ import annotations

import contextlib
import io

import click

from cli import render_html
from registry.report import Report

LIBRARIES = "libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0"


def render(report: Report) -> bytes:
    page = render_html.render(report)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints advice of its own when a library is missing
            from weasyprint import HTML
            from weasyprint.urls import URLFetcher
    except ImportError as e:
        raise _missing(f"the Python package weasyprint ({e})", "pip install weasyprint") from e
    except OSError as e:  # the package is here, and a library of the system that it loads is not
        raise _missing(f"Pango ({e})", f"on Debian: apt-get install {LIBRARIES}") from e
    made = HTML(string=page, url_fetcher=URLFetcher(allowed_protocols=["data"])).write_pdf()
    assert isinstance(made, bytes)  # it is None only where a file was named
    return made


def _missing(what: str, remedy: str) -> click.ClickException:
    return click.ClickException(f"--format pdf needs {what}; {remedy}. --format html needs nothing of it")
