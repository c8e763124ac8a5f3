"""A real vLLM for a test, with a model small enough for a laptop's CPU."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine import Engine
from platform_fixtures import ROOT, free_port
from waiting import wait_for

from registry.site import load_site

START_S = 500.0  # it is minutes on a slow disk that others use, too
KEY = "the-engines-own-key"
CONTEXT = 1024  # tokens that conftest.vllm takes


def make_llamas(training_python: str, root: Path) -> Path:
    """What make_llamas.py leaves, in `root`."""
    program = [training_python, "-W", "ignore", str(ROOT / "tests" / "make_llamas.py"), str(root)]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPATH": str(ROOT)}
    subprocess.run(program, env=env, check=True, timeout=120, capture_output=True)
    return root


@contextmanager
def real_engine(model: Path, root: Path, *words: str) -> Iterator[Engine]:
    """vLLM as the laptop's site starts it, serving `model` as "tiny", with tools and JSON schemas.

    Its log and caches are in `root`. Skips where there is no engine environment.
    """
    python = ROOT / ".venvs" / "engine" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no engine environment at {python} (make environments)")
    laptop = load_site(ROOT / "site-configs" / "laptop.toml", {}, [f"state_dir={root}", f"shared_dir={root}"])
    how = laptop.environment("engine")
    port = free_port()
    argv = [
        *how.command, *how.args, *words, "--enable-prompt-tokens-details", "--model", str(model),
        "--served-model-name", "tiny",
        "--host", "127.0.0.1", "--port", str(port), "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
        # A model with random weights would fill a schema's gaps with blanks until its bound.
        "--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}),
    ]  # fmt: skip
    with (root / "log").open("w") as log:
        process = subprocess.Popen(argv, env={**os.environ, **how.env, "VLLM_API_KEY": KEY}, stdout=log, stderr=log)
    try:
        wait_for(lambda: process.poll() is not None or _answers(port), timeout=START_S, every=0.5)
        assert process.poll() is None, (root / "log").read_text()[-3000:]
        yield Engine(key=KEY, port=port)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def tiny_engine(training_python: str, root: Path) -> Iterator[Engine]:
    """What `conftest.vllm` is."""
    words = ("--hf-overrides", json.dumps({"max_position_embeddings": CONTEXT}), "--max-model-len", str(CONTEXT))
    with real_engine(make_llamas(training_python, root) / "plain", root, *words) as running:
        yield running
