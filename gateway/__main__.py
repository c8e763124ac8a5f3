"""`python -m gateway [--take-over] [SITE.toml]`"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gateway.serve import run
from registry.site import load_site
from registry.strict_toml import ConfigError

parser = argparse.ArgumentParser(prog="python -m gateway")
parser.add_argument("site", nargs="?", type=Path, metavar="SITE.toml", help="the site's settings")
parser.add_argument("--take-over", action="store_true", help="in place of the gateway that runs, refusing nobody")
arguments = parser.parse_args()
try:
    site = load_site(arguments.site, os.environ)
except ConfigError as e:
    sys.exit(f"headgate gateway: {e}")
sys.exit(run(site, take_over=arguments.take_over))
