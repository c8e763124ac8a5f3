"""An upstream's answer, as bytes, and as the gateway's meter counts it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.calls import Call
from gateway.metering import StreamMeter, Usage


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    call: Call

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """What stands after `data: `, as JSON; the end is "[DONE]"."""
        return events(self.body)


def events(body: bytes) -> list[Any]:
    assert body.endswith(b"\n\n")
    said = [event.removeprefix("data: ") for event in body.decode().removesuffix("\n\n").split("\n\n")]
    return [event if event == "[DONE]" else json.loads(event) for event in said]


def counted(answer: Answer) -> tuple[Usage, list[Any]]:
    """What the gateway bills of a stream, and the events that its client sees."""
    meter = StreamMeter(answer.call)
    shown = meter.feed(answer.body) + meter.rest()
    assert meter.usage is not None
    return meter.usage, events(shown)
