"""The house keeps its shape: arrows between packages run one way, and each heavy library has one home."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "cli": {"gateway", "launchers", "registry", "slurm"},
    "gateway": {"registry"},
    "launchers": {"slurm", "registry"},
    "slurm": set[str](),
    "registry": set[str](),
}
# Library -> the one place that may import it: a module, or a folder (ends in /).
# pyarrow has two: the training environment reads datasets with it, the control plane writes the ledger's exports.
HOMES: dict[str, tuple[str, ...]] = {
    "litellm": ("gateway/provider_worker.py",),
    "pyslurm": ("slurm/native.py",),
    "submitit": ("launchers/submit.py",),
    "sqlite_utils": ("registry/",),
    "torch": ("launchers/megatron/",),
    "megatron": ("launchers/megatron/",),
    "transformers": ("launchers/megatron/",),
    "lm_eval": ("launchers/evaluation/harness.py",),
    "pyarrow": ("launchers/megatron/", "registry/ledger_export.py"),
    "matplotlib": ("cli/plot.py",),
    "jinja2": ("cli/render_html.py",),
    "weasyprint": ("cli/render_pdf.py",),
}
# What runs inside a job, in an environment with nothing of the control plane's: standard library only.
STANDARD_LIBRARY_ONLY = (
    "launchers/announce.py",
    "launchers/evaluation/results.py",
    "launchers/interval.py",
    "launchers/retention.py",
    "launchers/run_folder.py",
    "launchers/spec.py",
    "launchers/untrusted.py",
    "launchers/vllm/guard.py",
    "launchers/megatron/arithmetic.py",
    "launchers/megatron/flops.py",
    "launchers/megatron/kinds.py",
    "launchers/megatron/recipe.py",
    "launchers/megatron/manifest.py",
    "launchers/megatron/progress.py",
    "launchers/megatron/shelf.py",
    "launchers/megatron/stop.py",
    "registry/strict_toml.py",
)


def modules() -> list[Path]:
    return [p for package in MAY_IMPORT for p in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Every absolute import of a module, wherever in it, as the top package's name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute, so that the arrows can be read"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_its_arrows_allow(package: str) -> None:
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imports(path)
        if name in MAY_IMPORT and name != package and name not in MAY_IMPORT[package]
    ]
    assert not broken


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_a_library_is_imported_at_its_home_only(library: str, homes: tuple[str, ...]) -> None:
    users = [str(p.relative_to(ROOT)) for p in modules() if library in imports(p)]
    away = [u for u in users if not any(u == home or (home.endswith("/") and u.startswith(home)) for home in homes)]
    assert not away


@pytest.mark.parametrize("module", STANDARD_LIBRARY_ONLY)
def test_what_other_environments_import_needs_the_standard_library_only(module: str) -> None:
    import sys

    foreign = {n for n in imports(ROOT / module) if n not in sys.stdlib_module_names and n not in MAY_IMPORT}
    assert not foreign


def test_every_linter_exception_states_its_reason() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in modules()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (found := re.search(r"# (noqa: \w+|type: ignore\[[\w-]+\])(.*)", line)) and not found[2].strip(" #")
    ]
    assert not silent


def test_no_module_passes_four_hundred_lines() -> None:
    long = {str(p.relative_to(ROOT)): n for p in modules() if (n := len(p.read_text().splitlines())) > 400}
    assert not long
