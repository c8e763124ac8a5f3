"""`python -m gateway [SITE.toml]`"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gateway.serve import run
from registry.site import load_site

sys.exit(run(load_site(Path(sys.argv[1]) if sys.argv[1:] else None, os.environ)))
