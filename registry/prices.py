"""Prices, in versions: each is in force from an instant on, until the next of its name. None is ever changed.

What a site's file says under [prices] and [gpu_prices] is in force where no version is.
"""

from __future__ import annotations

import enum
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from registry import clock
from registry.db import Conflict, Database, RegistryError, fields, row, rows, transaction

DEFAULT = "default"  # of every name that has no price of its own


class TokenPrice(Protocol):
    """Credits per million tokens, which is the same number as micro-credits per token."""

    @property
    def prompt(self) -> float: ...
    @property
    def cached(self) -> float | None: ...  # of a prompt's tokens that the engine had in its cache; None: as `prompt`
    @property
    def completion(self) -> float: ...


class GpuPrice(Protocol):
    @property
    def hour(self) -> float: ...  # credits


class Kind(enum.StrEnum):
    MODEL = "model"
    GPU = "gpu"  # a type, as Slurm's gres has it


@dataclass(frozen=True, slots=True)
class Version:
    """Of a model's tokens (`hour` is 0) or of a GPU type's hour (the others are)."""

    kind: Kind
    name: str
    valid_from: str
    prompt: float
    cached: float | None
    completion: float
    hour: float
    created_at: str
    created_by: str


def put(
    db: Database,
    kind: Kind,
    name: str,
    by: str,
    *,
    valid_from: str | None = None,
    prompt: float = 0.0,
    cached: float | None = None,
    completion: float = 0.0,
    hour: float = 0.0,
) -> Version:
    """A new version, in force from now or from an instant to come: what was billed stays as it was.

    Raises RegistryError for an amount or an instant that cannot be one, Conflict where a version begins just then.
    """
    for what, amount in (("prompt", prompt), ("cached", cached), ("completion", completion), ("hour", hour)):
        if amount is not None and not (math.isfinite(amount) and 0 <= amount <= 1e9):
            raise RegistryError(f"price of {name}: {what} must be a number from 0 to 1e9, not {amount!r}")
    with transaction(db) as c:
        now = clock.now()
        start = now if valid_from is None else valid_from
        if start < now:
            raise RegistryError(f"price of {name}: valid from {start}, which is past; what was billed stays as it was")
        if row(db, "SELECT 1 FROM prices WHERE kind = ? AND name = ? AND valid_from = ?", kind, name, start):
            raise Conflict(f"price of {name}: another version is valid from {start} on")
        version = Version(kind, name, start, prompt, cached, completion, hour, now, by)
        c.execute(
            "INSERT INTO prices VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (kind, name, start, prompt, cached, completion, hour, now, by),
        )
    return version


def everything(db: Database) -> list[Version]:
    """By kind and name, oldest first."""
    return [
        Version(**{**fields(Version, r), "kind": Kind(r["kind"])})
        for r in rows(db, "SELECT * FROM prices ORDER BY kind, name, valid_from")
    ]


@dataclass(frozen=True, slots=True)
class Validity:
    """A price and when it holds: from an instant (None: ever since) until another (None: until further notice)."""

    kind: Kind
    name: str
    valid_from: str | None = None
    valid_until: str | None = None
    by: str | None = None  # who set it; None: the site's file
    prompt: float | None = None  # of a model's tokens, credits per million
    cached: float | None = None
    completion: float | None = None
    hour: float | None = None  # of a GPU type, credits


def schedule(
    versions: Iterable[Version], models: Mapping[str, TokenPrice], gpus: Mapping[str, GpuPrice]
) -> list[Validity]:
    """Every price there was, is and will be, by kind and name, oldest first. The site file's are `models`, `gpus`."""
    found = [_tokens(p, Validity(Kind.MODEL, name)) for name, p in models.items()]
    found += [Validity(Kind.GPU, name, hour=p.hour) for name, p in gpus.items()]
    for v in versions:
        validity = Validity(v.kind, v.name, v.valid_from, by=v.created_by)
        found.append(_tokens(v, validity) if v.kind is Kind.MODEL else replace(validity, hour=v.hour))
    found.sort(key=lambda p: (p.kind, p.name, p.valid_from or ""))
    for place, (price, after) in enumerate(pairwise(found)):
        if (price.kind, price.name) == (after.kind, after.name):
            found[place] = replace(price, valid_until=after.valid_from)
    return found


def _tokens(price: TokenPrice, validity: Validity) -> Validity:
    return replace(validity, prompt=price.prompt, cached=price.cached, completion=price.completion)


def holds(price: Validity, at: str) -> bool:
    """`at` as registry.clock writes it."""
    return (price.valid_from or "") <= at and (price.valid_until is None or at < price.valid_until)


class PriceBook:
    """What costs what, when. `models` and `gpus` are the site file's, by name."""

    def __init__(
        self,
        versions: Iterable[Version] = (),
        models: Mapping[str, TokenPrice] | None = None,
        gpus: Mapping[str, GpuPrice] | None = None,
    ) -> None:
        self._models = {} if models is None else models  # not a copy: providers' prices come later
        self._gpus = gpus or {}
        self._versions: dict[tuple[Kind, str], tuple[list[str], list[Version]]] = {}
        for version in sorted(versions, key=lambda v: v.valid_from):
            starts, found = self._versions.setdefault((version.kind, version.name), ([], []))
            starts.append(version.valid_from)
            found.append(version)

    def of_model(self, model: str, deployment: str, at: str) -> TokenPrice | None:
        """A model without a price of its own costs what its deployment does, where it is a LoRA adapter of one.

        What has no price either way costs "default"; where there is none, nothing. `at` as registry.clock writes it.
        """
        for name in (model, deployment, DEFAULT):
            price = self._version(Kind.MODEL, name, at) or self._models.get(name)
            if price is not None:
                return price
        return None

    def of_gpu(self, kind: str, at: str) -> float:
        """Credits per hour of a GPU of this type ("" for one without); 0 where nobody set a price."""
        for name in (kind, DEFAULT):
            price = self._version(Kind.GPU, name, at) or self._gpus.get(name)
            if price is not None:
                return price.hour
        return 0.0

    def _version(self, kind: Kind, name: str, at: str) -> Version | None:
        found = self._versions.get((kind, name))
        if found is None:
            return None
        place = bisect_right(found[0], at)
        return found[1][place - 1] if place else None
