"""Bearer key -> who is calling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.catalog import Catalog
from gateway.errors import WrongKey
from registry.tenants import Tenant, digest


@dataclass(frozen=True, slots=True)
class Caller:
    key_id: str
    tenant: Tenant


def authenticate(catalog: Catalog, headers: Mapping[str, str]) -> Caller:
    """Raises WrongKey when there is no key, or none that may be used."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise WrongKey("no API key: send it as the header 'Authorization: Bearer KEY'")
    # Looked up by hash: how long a comparison takes says nothing about a key.
    sha256 = digest(key.strip())
    found = catalog.find(lambda view: view.keys.get(sha256))
    if found is None:
        raise WrongKey("the API key is not known, or was revoked")
    return Caller(*found)
