"""Fixtures that more than one test file needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def training_python() -> str:
    """The training environment's interpreter: torch and megatron-core live there, not where the tests run."""
    python = Path(os.environ.get("HEADGATE_TRAINING_PYTHON", ROOT / ".venvs" / "training" / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"no training environment at {python}")
    return str(python)
