"""Models that others serve. LiteLLM speaks to them, in a process of its own: to the relay that is one more upstream."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway import calls, relay
from gateway.calls import Call
from gateway.errors import BadRequest, UpstreamFailed
from gateway.media import DATA
from gateway.provider_process import Prices, ProviderProcess
from gateway.provider_worker import ENVELOPE, Envelope
from registry.site import External, Price, Site

log = logging.getLogger(__name__)

OURS = frozenset({"model", "stream", "stream_options"})  # read by the gateway, and sent in its own words
MESSAGES = ("messages", "system", "input")
# With it a client would read the files of everybody who calls this provider with the site's key. And LiteLLM takes a
# URL for one, too, and fetches it from inside the cluster.
FILE = "file_id"
CONTENT = "file_data"  # LiteLLM passes it off as a file's id or URL, unless it is the data
COUNTING = {"include_usage": True, "continuous_usage_stats": True}


@dataclass(frozen=True, slots=True)
class Route:
    """`passed_on` as they are. Nothing else is: LiteLLM takes its own settings from the same arguments, and with
    `api_base`, `fallbacks` or `mock_response` a client could have the provider's key sent to itself, or answers that
    nobody bills.
    """

    passed_on: frozenset[str]
    tools: tuple[str | None, ...] = ()  # types of tools that run at the client
    counts_aloud: bool = False  # a stream must be asked to count


ROUTES = {  # by path
    "/v1/chat/completions": Route(
        frozenset(
            "frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens messages n "
            "parallel_tool_calls presence_penalty reasoning_effort response_format seed stop temperature tool_choice "
            "tools top_logprobs top_p user verbosity".split()
        ),
        tools=("function",),
        counts_aloud=True,
    ),
    "/v1/messages": Route(
        frozenset(
            "max_tokens messages metadata stop_sequences system temperature thinking tool_choice tools top_k "
            "top_p".split()
        ),
        tools=("custom", None),
    ),
    "/v1/responses": Route(
        frozenset(
            "input instructions max_output_tokens parallel_tool_calls reasoning store temperature text tool_choice "
            "tools top_p user".split()
        ),
        tools=("function",),
    ),
    "/v1/embeddings": Route(frozenset("dimensions encoding_format input user".split())),
}


class Providers:
    """`environ` holds the providers' keys.

    `prices` are the site's; once `address` has returned, also those of external models that are priced in dollars and
    have no price of their own in the site file.
    """

    def __init__(self, site: Site, environ: Mapping[str, str]) -> None:
        self.prices: dict[str, Price] = dict(site.prices)
        self._priced = frozenset(site.prices)
        self._environ = environ
        self._read_timeout = site.gateway.read_timeout_s
        self._external = site.external
        models = sorted({e.model for e in site.external.values() if e.credits_per_usd is not None})
        self._process = ProviderProcess(site.providers_dir, models, environ, self._listens)

    async def address(self) -> str:
        """The path of the Unix socket on which providers are called; the first time, it takes seconds.

        Raises UpstreamFailed.
        """
        return await self._process.address()

    def request(self, external: External, call: Call) -> bytes:
        """The body to send there, to the call's own path. Raises BadRequest and UpstreamFailed."""
        path = calls.PATHS[call.kind]
        route = ROUTES.get(path)
        if route is None:
            raise BadRequest(f"{call.model} is served by a provider, which answers {', '.join(ROUTES)} only", "model")
        _check(call, route)
        key = None
        if external.api_key_env is not None:
            key = self._environ.get(external.api_key_env)
            if not key:
                raise UpstreamFailed(f"{call.model}: its provider's key is not set ({external.api_key_env})")
        envelope = Envelope(
            name=call.model,
            model=external.model,
            api_base=external.api_base,
            api_key=key,
            timeout_s=self._read_timeout if call.stream else relay.WHOLE_S,
            prompt_tokens=call.prompt_tokens,
        )
        body: dict[str, Any] = {name: value for name, value in call.fields.items() if name in route.passed_on}
        body |= {"model": call.model, ENVELOPE: dataclasses.asdict(envelope)}
        if call.stream:
            body |= {"stream": True} | ({"stream_options": COUNTING} if route.counts_aloud else {})
        return calls.written(body)

    async def close(self) -> None:
        """What is being answered is cut."""
        await self._process.close()

    def _listens(self, dollars: Prices) -> None:
        for name, external in self._external.items():
            rate, cost = external.credits_per_usd, dollars.get(external.model)
            if rate is None or name in self._priced:
                continue
            if cost is None:
                log.warning("LiteLLM knows no price of %s (external.%s)", external.model, name)
                continue
            prompt, completion, cached = cost
            each = rate * 1e6
            self.prices[name] = Price(
                prompt=prompt * each, completion=completion * each, cached=None if cached is None else cached * each
            )


def _check(call: Call, route: Route) -> None:
    """Raises BadRequest."""
    for name in sorted(call.fields.keys() - OURS - route.passed_on):
        allowed = ", ".join(sorted(OURS | route.passed_on))
        raise BadRequest(f"{name!r} cannot be sent to {call.model}, which a provider serves; allowed: {allowed}", name)
    # A provider runs tools of its own (search, code) at its own price, and LiteLLM reaches out for some.
    tools = call.fields.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(t, dict) and t.get("type") in route.tools for t in tools):
        allowed = " or ".join(f"{kind!r}" for kind in route.tools if kind)
        raise BadRequest(f"'tools' of {call.model}, which a provider serves, must be of type {allowed}", "tools")
    if any(_names_a_file([call.fields.get(name)]) for name in MESSAGES):
        raise BadRequest(
            f"'file_id', or a 'file_data' that is no data: URL, cannot be sent to {call.model}, which a provider "
            "serves: files there are the site's, not yours; send the data itself"
        )
    # Who the client's own user is, for the provider; LiteLLM has settings of its own in the same place.
    metadata = call.fields.get("metadata") or {}
    if not isinstance(metadata, dict) or metadata.keys() - {"user_id"}:
        raise BadRequest(f"'metadata' of {call.model}, which a provider serves, may have a 'user_id' only", "metadata")


def _names_a_file(nodes: list[Any]) -> bool:
    """With a stack of its own: JSON nests deeper than Python may recurse."""
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes.extend(node)
        elif isinstance(node, dict):
            if FILE in node or not _is_data(node.get(CONTENT)):
                return True
            nodes.extend(value for name, value in node.items() if name not in DATA)
    return False


def _is_data(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.startswith("data:"))
