"""What the root command tells every other: which site, with which overrides."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import click

from registry.site import Site, load_site
from registry.strict_toml import ConfigError


@dataclass(frozen=True, slots=True)
class Context:
    """`ctx.obj` of every command: `headgate --site FILE --set KEY=VALUE ...`."""

    site_file: Path | None = None
    settings: tuple[str, ...] = ()

    def site(self) -> Site:
        """Read the site. A mistake in it ends the command with the message alone, not a traceback."""
        try:
            return load_site(self.site_file, os.environ, self.settings)
        except ConfigError as e:
            raise click.ClickException(str(e)) from e
