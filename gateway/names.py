"""What clients call, and who serves it: a deployment, an endpoint in front of several, a provider's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway import endpoints
from gateway.catalog import Catalog
from gateway.errors import UnknownModel
from gateway.routing import Policy
from registry.site import External


@dataclass(frozen=True, slots=True)
class Chosen:
    """Whom to ask, in order; who gets a copy; and which of an endpoint's targets cannot be asked, but should be up."""

    chain: tuple[str, ...]
    shadow: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    keeps_name: bool = False  # the engine knows what the client asked for by this very name


class Names:
    """`draw` is uniform in [0, 1)."""

    def __init__(self, catalog: Catalog, external: Mapping[str, External], draw: Callable[[], float]) -> None:
        self._catalog = catalog
        self._external = external
        self._draw = draw
        self._direct: dict[str, Chosen] = {}

    def choose(
        self, model: str, key_id: str, headers: Mapping[str, str], allowed: frozenset[str] | None = None
    ) -> Chosen:
        """`allowed`: the names that the key may call, None for all: others are not told. Raises UnknownModel."""
        if model in self._external or model in self._catalog.view.deployments:
            direct = self._direct.get(model)
            if direct is None:
                direct = self._direct[model] = Chosen((model,))
            return direct
        return self._look(model, key_id, headers) or self._unknown(model, key_id, headers, allowed)

    def policy(self, deployment: str) -> Policy:
        found = self._catalog.view.deployments.get(deployment)
        return Policy(found.request.get("routing") or Policy.LEAST_WORK) if found else Policy.LEAST_WORK

    def _look(self, model: str, key_id: str, headers: Mapping[str, str]) -> Chosen | None:
        view = self._catalog.view
        if (endpoint := view.endpoints.get(model)) is not None:
            choice = endpoints.choose(endpoint, key_id, headers, self._draw, self._usable)
            return Chosen(choice.chain, choice.shadow, choice.missed)
        if model in view.deployments:
            return Chosen((model,))
        if (deployment := view.adapters.get(model)) is not None:
            return Chosen((deployment,), keeps_name=True)
        return None

    def _unknown(self, model: str, key_id: str, headers: Mapping[str, str], allowed: frozenset[str] | None) -> Chosen:
        if self._catalog.refresh() and (found := self._look(model, key_id, headers)) is not None:
            return found
        view = self._catalog.view
        known = {*view.deployments, *view.endpoints, *view.adapters, *self._external}
        told = ", ".join(sorted(known if allowed is None else known & allowed)) or "none yet"
        raise UnknownModel(f"no model is called {model!r}; there are: {told}")

    def _usable(self, name: str) -> bool:
        return name in self._external or bool(self._catalog.view.replicas.get(name))
