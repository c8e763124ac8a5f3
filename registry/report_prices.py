"""Which prices were in force in a window: versions, else what the site's file says. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from registry.prices import DEFAULT, GpuPrice, Kind, TokenPrice, Version
from registry.window import Window, text


@dataclass(frozen=True, slots=True)
class InForce:
    """A price of a model's tokens (`hour` is None) or of a GPU type's hour (the others are)."""

    name: str
    since: str | None  # None: the site's file has it
    until: str | None  # None: it still is
    prompt: float | None
    cached: float | None
    completion: float | None
    hour: float | None


def in_force(
    versions: Iterable[Version],
    models: Mapping[str, TokenPrice],
    gpus: Mapping[str, GpuPrice],
    used: Mapping[str, str],
    gpu_types: Collection[str],
    window: Window,
) -> list[InForce]:
    """Those of the models `used` (each with the deployment that serves it) and of GPU types, as registry.prices finds
    them: a name's own, its deployment's, the default."""
    known: dict[tuple[Kind, str], list[Version]] = {}
    for version in sorted(versions, key=lambda v: v.valid_from):
        known.setdefault((version.kind, version.name), []).append(version)
    start, end = text(window)
    found: dict[tuple[Kind, str], list[InForce]] = {}
    for kind, chains in (
        (Kind.MODEL, [(model, deployment, DEFAULT) for model, deployment in used.items()]),
        (Kind.GPU, [(name, DEFAULT) for name in gpu_types]),
    ):
        site = models if kind is Kind.MODEL else gpus
        for chain in chains:
            for name in dict.fromkeys(chain):
                own = known.get((kind, name), [])
                found[kind, name] = _of(kind, name, own, site.get(name), start, end)
                if name in site or (own and own[0].valid_from <= start):
                    break  # it has a price throughout
    return [one for who in sorted(found, key=lambda who: (who[0] is Kind.GPU, who[1])) for one in found[who]]


def _of(
    kind: Kind, name: str, own: list[Version], site: TokenPrice | GpuPrice | None, start: str, end: str
) -> list[InForce]:
    shown = f"GPU {name}".strip() if kind is Kind.GPU else name
    found = []
    if site is not None and not (own and own[0].valid_from <= start):
        first = own[0].valid_from if own else None
        found.append(_price(kind, shown, None, first, site))
    for n, version in enumerate(own):
        until = own[n + 1].valid_from if n + 1 < len(own) else None
        if version.valid_from < end and (until is None or until > start):
            found.append(_price(kind, shown, version.valid_from, until, version))
    return found


def _price(kind: Kind, name: str, since: str | None, until: str | None, of: object) -> InForce:
    names = ("hour",) if kind is Kind.GPU else ("prompt", "cached", "completion")
    amounts = {n: getattr(of, n) if n in names else None for n in ("prompt", "cached", "completion", "hour")}
    return InForce(name, since, until, **amounts)
