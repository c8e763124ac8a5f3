"""`headgate doctor`: one page on whether this site can train, serve and count, and what to mend."""

from __future__ import annotations

import json
import os
import shutil
import socket
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cli.client import Control, Refused, Unreachable
from cli.context import Context
from cli.services import gateway_answers, url
from registry.site import Site
from slurm.findings import Finding, Level, ok, problem, warning, worst

if TYPE_CHECKING:
    from launchers.doctor.examine import Section

COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}
NARROWEST, WIDEST = 80, 140  # columns


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON: {site, worst, findings}.")
@click.pass_obj
def doctor(context: Context, /, as_json: bool) -> None:
    """Look at this site: Slurm, accounting, directories, ports, environments. Each line is ok, a warning or a problem.

    Needs no controller and changes nothing.

    The exit status is the worst line's: 0 ok, 1 warning, 2 problem.
    """
    from launchers.doctor.examine import Section, examine

    try:
        site = context.site()
    except click.ClickException as e:
        settings = problem("site", e.message, "mend the setting it names; `headgate config show --origin` shows all")
        name, sections = str(context.site_file or "site"), [Section("Settings", (settings,))]
    else:
        name, sections = site.name, examine(site, os.environ, lambda: services(site))
    findings = [f for section in sections for f in section.findings]
    click.echo(as_document(name, sections) if as_json else page(name, sections, _width()))
    raise SystemExit(int(worst(findings)))


def services(site: Site) -> Iterator[Finding]:
    """The gateway's port and the control socket: ours, free, or somebody else's."""
    yield gateway_port(site)
    path = site.control_socket
    try:
        Control(path, timeout_s=3, here=True).get("/v1/status")
    except Refused as e:
        yield warning("controller", f"{path}: answers, and refuses this account: {e.message}", "ask its administrator")
    except Unreachable as e:
        if isinstance(e.__cause__, FileNotFoundError | ConnectionRefusedError):
            yield ok("controller", f"none runs; it would listen on {path}")
        else:
            yield problem("controller", e.message, "`headgate logs controller`; may this account write to the socket?")
    else:
        yield ok("controller", f"answers on {path}")


def gateway_port(site: Site) -> Finding:
    where = f"{site.gateway.host}:{site.gateway.port}"
    if gateway_answers(site):
        return ok("gateway", f"answers on {url(site)}")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            site.gateway.host, site.gateway.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, proto) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the gateway does
            s.bind(address)
    except OSError as e:
        return problem("gateway", f"cannot listen on {where}: {e.strerror or e}", "gateway.host and gateway.port")
    return ok("gateway", f"none runs; {where} is free for it")


def as_document(name: str, sections: list[Section]) -> str:
    findings = [
        {
            "section": section.title,
            "subject": f.subject,
            "level": f.level.name.lower(),
            "says": f.says,
            "remedy": f.remedy,
        }
        for section in sections
        for f in section.findings
    ]
    level = worst(f for section in sections for f in section.findings)
    return json.dumps({"site": name, "worst": level.name.lower(), "findings": findings}, indent=2)


def page(name: str, sections: list[Section], width: int) -> str:
    findings = [f for section in sections for f in section.findings]
    column = max(len(f.subject) for f in findings)
    lines = [f"site {name}"]
    for section in sections:
        lines += ["", section.title]
        for finding in section.findings:
            lines += _entry(finding, column, width)
    return "\n".join([*lines, "", _verdict(findings)])


def _entry(finding: Finding, column: int, width: int) -> list[str]:
    level = finding.level.name.lower()
    head = f"  {level:7}  {finding.subject:{column}}  "
    indent = " " * len(head)
    lines = _wrapped(finding.says, head, indent, width)
    lines[0] = lines[0].replace(level, click.style(level, fg=COLOURS[finding.level]), 1)
    if finding.remedy:
        lines += _wrapped(finding.remedy, f"{indent}-> ", f"{indent}   ", width)
    return lines


def _wrapped(text: str, head: str, indent: str, width: int) -> list[str]:
    """Paths and settings stay whole: they are there to be copied."""
    return textwrap.wrap(
        text, width, initial_indent=head, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _verdict(findings: list[Finding]) -> str:
    counts = {level: sum(f.level is level for f in findings) for level in (Level.PROBLEM, Level.WARNING)}
    said = [f"{n} {level.name.lower()}{'s' if n > 1 else ''}" for level, n in counts.items() if n]
    return ", ".join(said) or "all is well"


def _width() -> int:
    return min(max(shutil.get_terminal_size((120, 24)).columns, NARROWEST), WIDEST)
