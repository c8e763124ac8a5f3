"""Models that others serve: what may be sent to them, and at what price."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from gateway import calls, relay
from gateway.calls import Kind
from gateway.errors import BadRequest, UpstreamFailed
from gateway.providers import Providers
from gateway.surfaces.table import SURFACES
from registry.site import External, Gateway, Price, Scheduler, Site

ASK = {"model": "claude", "messages": [{"role": "user", "content": "What is gravity?"}], "max_tokens": 50}
CLAUDE = External(model="anthropic/claude-3-5-haiku-20241022", api_base="http://a.example", api_key_env="CLAUDE_KEY")


def providers(*, key: str = "provider-secret", **external: External) -> Providers:
    site = Site(
        name="test",
        state_dir=Path("/nowhere"),
        shared_dir=Path("/nowhere"),
        gateway=Gateway(read_timeout_s=30.0),
        scheduler=Scheduler(kind="local"),
        external=external,
    )
    return Providers(site, {"CLAUDE_KEY": key})


def sent(external: External = CLAUDE, kind: Kind = Kind.CHAT, **fields: Any) -> Any:
    """What the process that calls providers is sent."""
    call = calls.read(kind, json.dumps({**ASK, **fields}).encode())
    return json.loads(providers().request(external, call))


# -- what may be sent -------------------------------------------------------------------------------------------------


def test_a_request_names_the_providers_model_and_carries_its_key() -> None:
    body = sent(temperature=0.5)
    envelope = body.pop("headgate")
    assert body == {**ASK, "temperature": 0.5}
    assert (envelope["name"], envelope["model"]) == ("claude", CLAUDE.model)
    assert (envelope["api_base"], envelope["api_key"]) == ("http://a.example", "provider-secret")
    assert envelope["timeout_s"] == relay.WHOLE_S


def test_a_stream_is_always_asked_to_count_and_bounded_between_two_reads() -> None:
    for options in ({}, {"stream_options": {"include_usage": False}}):
        body = sent(stream=True, **options)
        assert body["stream"] is True
        assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
        assert body["headgate"]["timeout_s"] == 30.0


def test_the_bound_that_a_budget_sets_is_sent() -> None:
    call = calls.bounded(calls.read(Kind.CHAT, json.dumps({"model": "claude", "messages": ASK["messages"]}).encode()))
    assert json.loads(providers().request(CLAUDE, call))["max_tokens"] == 1024


def test_a_provider_that_needs_no_key_is_sent_none() -> None:
    assert sent(External(model="openai/x", api_base="http://a.example"))["headgate"]["api_key"] is None


def test_without_the_providers_key_the_error_says_which_variable() -> None:
    call = calls.read(Kind.CHAT, json.dumps(ASK).encode())
    with pytest.raises(UpstreamFailed, match=r"its provider's key is not set \(CLAUDE_KEY\)"):
        providers(key="").request(CLAUDE, call)


@pytest.mark.parametrize(
    "name",
    """api_base api_key api_version base_url caching client context_window_fallback_dict cooldown_time
    custom_llm_provider deployment_id drop_params extra_body extra_headers fallbacks headers headgate http_client
    input_cost_per_token litellm_logging_obj max_retries metadata mock_response mock_timeout mock_tool_calls
    model_list num_retries organization output_cost_per_token proxy_server_request shared_session ssl_verify
    timeout web_search_options
    """.split(),
)
def test_a_field_that_would_configure_the_library_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match=rf"'{name}' cannot be sent .*allowed: .*temperature") as failure:
        sent(**{name: "http://127.0.0.1:1"})
    assert failure.value.param == name


def test_only_tools_that_the_client_runs_itself_may_be_sent() -> None:
    function = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    assert sent(tools=[function])["tools"] == [function]
    for tools in ([{"type": "mcp", "server_url": "http://127.0.0.1:1"}], [function, {"type": "x"}], ["search"], 5):
        with pytest.raises(BadRequest, match="'tools'"):
            sent(tools=tools)


def message(**fields: Any) -> Any:
    call = SURFACES["/v1/messages"].read(json.dumps({**ASK, **fields}).encode())
    return json.loads(providers().request(CLAUDE, call))


def test_of_anthropics_messages_only_what_they_need_is_sent() -> None:
    mine = {"name": "f", "input_schema": {"type": "object"}}
    fields = {"tools": [mine, {**mine, "type": "custom"}], "metadata": {"user_id": "u"}, "system": "short", "top_k": 3}
    body = message(stream=True, **fields)
    assert body.pop("headgate")["timeout_s"] == 30.0
    assert body == {**ASK, **fields, "stream": True}
    for refused in (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"mcp_servers": []},
        {"metadata": {"user_api_key": "x"}},
        {"metadata": "u"},
        {"api_base": "http://127.0.0.1:1"},
        {"stream_options": 1, "response_format": {}},
    ):
        with pytest.raises(BadRequest):
            message(**refused)


def test_no_file_of_the_provider_account_is_named_and_no_link_is_passed_off_as_one() -> None:
    for part in (
        {"type": "file", "file": {"file_id": "file-of-somebody-else"}},
        {"type": "file", "file": {"file_id": "http://10.0.0.1/"}},
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {"file_id": "file_1"}}]},
    ):
        for asked in (sent, message):
            with pytest.raises(BadRequest, match="send the data itself"):
                asked(messages=[{"role": "user", "content": [part]}])
    own = {"type": "tool_use", "id": "t", "name": "f", "input": {"file_id": "the tool's own affair"}}
    assert message(messages=[{"role": "assistant", "content": [own]}])["messages"][0]["content"] == [own]


@pytest.mark.parametrize("data", ["file-of-somebody-else", "http://10.0.0.1/", "gs://bucket/x", "DATA:a", "", 5, ["x"]])
def test_what_is_called_a_files_data_is_data_and_no_name_of_a_file(data: Any) -> None:
    for part in (
        {"type": "file", "file": {"file_data": data}},
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "file", "file": {"file_data": data}}]},
        {"type": "input_file", "file_data": data},
    ):
        for asked in (sent, message, response):
            with pytest.raises(BadRequest, match="'file_data' that is no data: URL"):
                asked(**{"input" if asked is response else "messages": [{"role": "user", "content": [part]}]})
    inside = {"type": "input_file", "file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}
    said = [{"role": "user", "content": [inside]}]
    assert response(input=said)["input"] == said
    assert sent(messages=said)["messages"] == said


def response(**fields: Any) -> Any:
    asked = {"model": "claude", "input": "What is gravity?", **fields}
    return json.loads(providers().request(CLAUDE, SURFACES["/v1/responses"].read(json.dumps(asked).encode())))


def test_of_openais_responses_nothing_is_sent_that_lives_with_the_provider() -> None:
    assert response(instructions="short", stream=True)["instructions"] == "short"
    for name, value in (("previous_response_id", "r"), ("conversation", "c"), ("background", True), ("prompt", {})):
        with pytest.raises(BadRequest, match=f"'{name}'"):
            response(**{name: value})
    with pytest.raises(BadRequest, match="'tools'"):
        response(tools=[{"type": "web_search"}])
    with pytest.raises(BadRequest, match="send the data itself"):
        response(input=[{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}])


def test_what_is_nested_too_deeply_is_refused() -> None:
    content: Any = "x"
    for _ in range(300):
        content = [content]
    with pytest.raises(BadRequest, match="nested too deeply"):
        sent(messages=[{"role": "user", "content": content}])


def test_what_no_provider_is_asked_for_is_refused_with_what_is() -> None:
    with pytest.raises(
        BadRequest, match="answers /v1/chat/completions, /v1/messages, /v1/responses, /v1/embeddings only"
    ):
        call = calls.read(Kind.COMPLETION, b'{"model": "claude", "prompt": "gravity"}')
        providers().request(CLAUDE, call)


def test_the_gateway_itself_never_imports_litellm() -> None:
    program = "import sys, gateway.app, gateway.providers; print('litellm' in sys.modules, 'openai' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True)
    assert said.stdout.split() == ["False", "False"]


# -- prices -----------------------------------------------------------------------------------------------------------


def test_prices_in_dollars_become_credits_at_the_externals_rate() -> None:
    known = providers(
        haiku=External(model="anthropic/haiku", credits_per_usd=100.0),
        haiku2=External(model="anthropic/haiku", credits_per_usd=200.0),
        unpriced=External(model="anthropic/haiku"),
        unknown=External(model="anthropic/unheard-of", credits_per_usd=100.0),
    )
    assert known.prices == {}
    known._listens({"anthropic/haiku": (0.000001, 0.000005, 0.0000001)})
    assert known.prices == {
        "haiku": Price(prompt=pytest.approx(100.0), completion=pytest.approx(500.0), cached=pytest.approx(10.0)),
        "haiku2": Price(prompt=pytest.approx(200.0), completion=pytest.approx(1000.0), cached=pytest.approx(20.0)),
    }
