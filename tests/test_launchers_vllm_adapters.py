"""LoRA adapters: which directories hold one, what an engine is told, and how a running one comes to have others."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from specs import folder_of, serve

from launchers.vllm import adapters
from launchers.vllm.arguments import last
from launchers.vllm.endpoint import Endpoint


def adapter(root: Path, name: str, **config: Any) -> str:
    directory = root / name
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8} | config))
    (directory / "adapter_model.safetensors").write_bytes(b"")
    return str(directory)


@pytest.mark.parametrize(
    ("config", "rank"), [({}, 8), ({"r": 20}, 20), ({"r": 4, "rank_pattern": {"q_proj": 64}}, 64), ({"r": 512}, 512)]
)
def test_the_rank_is_the_highest_of_any_module(config: dict[str, Any], rank: int, tmp_path: Path) -> None:
    assert adapters.rank_of(Path(adapter(tmp_path, "a", **config))) == rank


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"r": 0}, r"rank \(r, rank_pattern\) is 0"),
        ({"r": "8"}, "is '8', not 1 ... 512"),
        ({"r": True}, "is True"),
        ({"rank_pattern": [1]}, r"is \[1\]"),
        ({"rank_pattern": {"q": 1024}}, "is 1024"),
    ],
)
def test_what_is_no_adapter_that_can_be_served_is_refused_in_words(
    config: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=complaint):
        adapters.rank_of(Path(adapter(tmp_path, "a", **config)))


def test_a_pickle_is_no_adapter(tmp_path: Path) -> None:
    directory = Path(adapter(tmp_path, "a"))
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"there is no adapter_model\.safetensors"):
        adapters.rank_of(directory)


def test_a_directory_is_named_from_the_root_and_has_a_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an absolute path"):
        adapters.rank_of(Path("adapters/a"))
    directory = Path(adapter(tmp_path, "a"))
    (directory / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"there is no adapter_config\.json"):
        adapters.rank_of(directory)


def test_an_engine_has_room_for_the_largest_of_its_adapters(tmp_path: Path) -> None:
    assert adapters.engine_args(serve()) == ()
    assert adapters.env(serve()) == {}
    spec = serve(adapters={"a": adapter(tmp_path, "a", r=20), "b": adapter(tmp_path, "b")})
    words = adapters.engine_args(spec)
    assert "--enable-lora" in words
    assert (last(words, "--max-lora-rank"), last(words, "--max-loras")) == ("32", "2")
    assert adapters.env(spec) == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


def test_what_a_running_replica_is_asked_for_arrives_whole(tmp_path: Path) -> None:
    folder = folder_of(serve(), tmp_path)
    assert adapters.wanted(folder) is None
    adapters.ask(folder, {"a": "/adapters/a"})
    assert adapters.wanted(folder) == {"a": "/adapters/a"}
    adapters.ask(folder, {})
    assert adapters.wanted(folder) == {}


@pytest.mark.parametrize("text", ["[]", "{}", '{"adapters": ["a"]}', '{"adapters": {"a": 1}}', "{"])
def test_a_file_that_nobody_asked_with_is_refused_by_name(text: str, tmp_path: Path) -> None:
    folder = folder_of(serve(), tmp_path)
    (folder.root / adapters.ASKED).write_text(text)
    with pytest.raises(ValueError, match=r"adapters\.json"):
        adapters.wanted(folder)


@dataclass
class LoraEngine:
    """Takes and lets go of adapters as vLLM does, but for those it is to refuse."""

    refuses: set[str] = field(default_factory=set)
    has: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, object]:
        name = body["lora_name"]
        self.asked.append((path.removeprefix("/v1/"), name))
        if name in self.refuses:
            return 500, {"error": {"message": f"rank of {name} is too high", "code": 500}}
        if path.endswith("/unload_lora_adapter"):
            return (200, "gone") if self.has.pop(name, None) else (404, {"error": {"message": "cannot be found"}})
        if name in self.has and not body["load_inplace"]:
            return 400, {"error": {"message": "has already been loaded"}}
        self.has[name] = body["lora_path"]
        return 200, "Success"


@contextmanager
def answering(engine: LoraEngine) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Authorization"] == "Bearer secret"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, said = engine.answer(self.path, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Endpoint("127.0.0.1", server.server_address[1], "secret")
        finally:
            server.shutdown()
            thread.join()


def test_a_new_engine_is_given_all_its_adapters(tmp_path: Path) -> None:
    wanted = {name: adapter(tmp_path, name) for name in ("b", "a")}
    with answering(engine := LoraEngine()) as endpoint:
        assert adapters.load(endpoint, wanted) == ["a", "b"]
    assert engine.has == wanted


def test_a_new_engine_that_refuses_one_is_not_ready_and_says_why(tmp_path: Path) -> None:
    with answering(LoraEngine(refuses={"a"})) as endpoint, pytest.raises(adapters.LoadError) as e:
        adapters.load(endpoint, {"a": adapter(tmp_path, "a")})
    assert "adapter a could not be loaded: HTTP 500: rank of a is too high" in str(e.value)


def test_a_change_loads_what_is_new_before_it_takes_anything_away_and_replaces_in_place(tmp_path: Path) -> None:
    old, moved, kept, new = (adapter(tmp_path, name) for name in ("old", "moved", "kept", "new"))
    has = {"gone": old, "other": old, "kept": kept}
    engine = LoraEngine(has=dict(has))
    with answering(engine) as endpoint:
        loaded = adapters.change(endpoint, has, {"other": moved, "kept": kept, "new": new})
    assert loaded == adapters.Loaded({"other": moved, "kept": kept, "new": new})
    assert engine.has == loaded.adapters
    assert engine.asked == [
        ("load_lora_adapter", "new"),
        ("load_lora_adapter", "other"),
        ("unload_lora_adapter", "gone"),
    ]


def test_what_fails_leaves_the_rest_to_be_done_and_says_what_there_is(tmp_path: Path) -> None:
    good, no_adapter = adapter(tmp_path, "good"), tmp_path / "empty"
    no_adapter.mkdir()
    has = {"stuck": good, "forgotten": good}
    engine = LoraEngine(refuses={"bad", "stuck"})
    with answering(engine) as endpoint:
        loaded = adapters.change(endpoint, has, {"bad": good, "empty": str(no_adapter), "good": good})
    assert loaded.adapters == {"good": good, "stuck": good} and not loaded.again
    for words in ("bad could not be loaded", "no adapter_model.safetensors", "stuck could not be unloaded"):
        assert words in str(loaded.problem)


def test_an_engine_that_does_not_answer_has_what_it_had(tmp_path: Path) -> None:
    nobody = Endpoint("127.0.0.1", 1, "secret")
    loaded = adapters.change(nobody, {"a": "/a"}, {"b": adapter(tmp_path, "b")})
    assert loaded.adapters == {"a": "/a"} and loaded.again
    assert "the engine did not answer" in str(loaded.problem)


@pytest.mark.parametrize(
    ("has", "wanted"),
    [((), ("a", "b", "c")), (("a", "b"), ()), (("a", "b"), ("c", "d"))],
    ids=["load", "unload", "both"],
)
def test_an_engine_that_does_not_answer_is_asked_no_more_for_now(
    has: tuple[str, ...], wanted: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def silence(*words: object) -> tuple[int, bytes]:
        asked.append(words)
        return 0, b""

    monkeypatch.setattr(adapters, "call", silence)
    before = dict.fromkeys(has, "/old")
    loaded = adapters.change(Endpoint("127.0.0.1", 1, "secret"), before, {n: adapter(tmp_path, n) for n in wanted})
    assert loaded.adapters == before and loaded.again and len(asked) == 1


def test_an_adapter_on_a_file_system_that_is_away_is_one_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(directory: Path) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(adapters, "rank_of", stale)
    engine = LoraEngine()
    with answering(engine) as endpoint:
        loaded = adapters.change(endpoint, {}, {"a": adapter(tmp_path, "a")})
    assert loaded.again and "adapter a could not be loaded" in str(loaded.problem) and engine.asked == []


def test_an_adapter_that_an_engine_took_without_an_answer_is_taken_again(tmp_path: Path) -> None:
    a = adapter(tmp_path, "a")
    with answering(LoraEngine(has={"a": a})) as endpoint:
        assert adapters.change(endpoint, {}, {"a": a}) == adapters.Loaded({"a": a})
