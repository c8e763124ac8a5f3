"""`python -m gateway [SITE.toml]`"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gateway.serve import run
from registry.site import load_site
from registry.strict_toml import ConfigError

try:
    site = load_site(Path(sys.argv[1]) if sys.argv[1:] else None, os.environ)
except ConfigError as e:
    sys.exit(f"headgate gateway: {e}")
sys.exit(run(site))
