"""A client that streams all the time, one answer after the other, and notes what became of each."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from openai import APIConnectionError, APIError, OpenAI

TOKENS = 100
PATIENCE_S = 60.0  # for a gateway that refuses connections


@dataclass
class Answer:
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    retried: int = 0  # connections that were refused, or were cut before the first byte
    replica: str | None = None  # that it began on, where it did not wait for one
    text: str = ""
    continued: int = 0  # times, by another replica
    tokens: int = 0
    finish: str | None = None
    error: str | None = None

    @property
    def fate(self) -> str:
        """In one word; `failed`: before its first byte, where anybody could still have tried again."""
        if self.error is not None:
            return "broken" if self.text else "failed"
        return "whole" if self.finish == "length" and self.tokens == TOKENS else "truncated"


def digits_alone(model: Path) -> dict[str, int]:
    """The `logit_bias` with which this model says nothing but digits, each of them a token.

    What a model with random weights says otherwise are half characters: a replica that is to continue them does not get
    the tokens that were drawn, and says something else.
    """
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    found = {token: number for token, number in vocabulary.items() if any(c in "0123456789" for c in token)}
    assert set(found) == set("0123456789"), found
    return {str(number): 100 for number in found.values()}


class Client:
    def __init__(self, url: str, key: str, model: str, logit_bias: Mapping[str, int]) -> None:
        self.answers: list[Answer] = []
        self.latest = Answer()  # which may still be on its way
        self._openai = OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)
        self._model, self._bias = model, dict(logit_bias)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on)

    def _go_on(self) -> None:
        while not self._stop.is_set():
            self.answers.append(self._ask())
            self._stop.wait(0.1)

    def _ask(self) -> Answer:
        self.latest = answer = Answer()
        while True:
            try:
                self._stream(answer)
            except (APIConnectionError, httpx.TransportError) as e:
                if not answer.text and time.monotonic() < answer.began + PATIENCE_S and not self._stop.is_set():
                    answer.retried += 1
                    self._stop.wait(0.2)
                    continue
                answer.error = repr(e)
            except APIError as e:
                answer.error = repr(e)
            answer.ended = time.monotonic()
            return answer

    def _stream(self, answer: Answer) -> None:
        stream = self._openai.completions.create(
            model=self._model, prompt="def f(", max_tokens=TOKENS, temperature=0, stream=True,
            stream_options={"include_usage": True}, logit_bias=self._bias,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        with stream:
            answer.replica = stream.response.headers.get("x-headgate-replica")
            for chunk in stream:
                answer.continued += hasattr(chunk, "headgate")
                for choice in chunk.choices:
                    answer.text += choice.text
                    answer.finish = choice.finish_reason or answer.finish
                if chunk.usage:
                    answer.tokens = chunk.usage.completion_tokens


@contextmanager
def streaming(url: str, key: str, model: str, logit_bias: Mapping[str, int]) -> Iterator[Client]:
    client = Client(url, key, model, logit_bias)
    client._thread.start()
    try:
        yield client
    finally:
        client._stop.set()
        client._thread.join()
