"""A key, as OpenAI's SDKs send it or as Anthropic's do -> who is calling."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.catalog import Catalog
from gateway.errors import ModelNotAllowed, Refused, RegistryUnreadable, WrongKey
from registry.keys import LiveKey, Scope, digest


def authenticate(catalog: Catalog, headers: Mapping[str, str], needs: Scope = Scope.INFERENCE) -> LiveKey:
    """Raises what identify() does; Refused (403) when the key lacks the scope."""
    found = identify(catalog, headers)
    if needs not in found.scopes:
        has = ", ".join(sorted(found.scopes)) or "none"
        raise Refused(f"this needs a key of scope {needs}; this one's: {has}", 403)
    return found


def identify(catalog: Catalog, headers: Mapping[str, str]) -> LiveKey:
    """Whatever its scopes. Raises WrongKey, or RegistryUnreadable where nobody can tell."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        key = headers.get("x-api-key", "")
    if not key.strip():
        raise WrongKey("no API key: send it as the header 'Authorization: Bearer KEY', or as 'x-api-key: KEY'")
    # Looked up by hash: how long a comparison takes says nothing about a key.
    found = catalog.find(lambda view: view.keys.get(digest(catalog.secret, key.strip())))
    if found is None:
        if catalog.failure is not None:  # the key may be a good one: a client that is told otherwise throws it away
            raise RegistryUnreadable(f"keys cannot be looked up: {catalog.failure}")
        raise WrongKey("the API key is not known, or was revoked")
    if found.expires_at is not None and found.expires_at <= catalog.now():
        raise WrongKey(f"the API key {found.id} has expired")
    return found


def may_call(caller: LiveKey, model: str) -> None:
    """`model`: the name that the client calls, an endpoint's too. Raises ModelNotAllowed (403)."""
    if caller.models is not None and model not in caller.models:
        allowed = ", ".join(sorted(caller.models)) or "none"
        raise ModelNotAllowed(f"the API key {caller.id} may not call {model!r}; its models: {allowed}")
