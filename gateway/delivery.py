"""One answer on its way from an upstream to its client: held until it is output, then passed on as it comes."""

from __future__ import annotations

from collections.abc import Callable

from gateway.errors import UpstreamFailed
from gateway.front import Front, Headers
from gateway.metering import StreamMeter
from gateway.upstream import Upstream

EVENTS = ("content-type", "text/event-stream; charset=utf-8")
JSON = ("content-type", "application/json")


class Stream:
    """Feed it what an upstream sends. Until the first output nothing of it has reached the client.

    `begun` is called once, as the first output leaves. Many clients hang up on the last event, before the stream itself
    has ended: `telling` is called before that is written, with the number of bytes, `told` after it.
    """

    def __init__(
        self,
        front: Front,
        meter: StreamMeter,
        upstream: Upstream,
        headers: Headers,
        begun: Callable[[], None],
        telling: Callable[[int], None],
        told: Callable[[], None],
    ) -> None:
        self._front, self._meter, self._upstream, self._headers = front, meter, upstream, headers
        self._begun, self._telling, self._told = begun, telling, told
        self._ended = False
        self._held: list[bytes] | None = []
        front.source = upstream
        if front.blocked:  # by what another upstream sent
            upstream.pause()

    def feed(self, data: bytes) -> None:
        out = self._meter.feed(data)
        last = self._meter.ended and not self._ended and self._meter.failure is None
        if last:
            self._ended = True
            self._telling(len(out) + sum([len(held) for held in self._held or ()]))
        if self._held is None:
            if out:
                self._front.write(out)
        elif self._meter.generated:
            self._begin(out)
        elif out:
            self._held.append(out)
        if last:
            self._told()
        if self._meter.failure is not None:
            self._upstream.fail(UpstreamFailed(self._meter.failure))

    def end(self) -> None:
        """The upstream is done. Raises UpstreamFailed when it never began, or broke off."""
        rest = self._meter.rest()
        if self._meter.failure is not None:
            raise UpstreamFailed(self._meter.failure)
        if self._held is not None:
            if not self._held and not rest:
                raise UpstreamFailed("the replica ended the stream before it began")
            self._begin(rest)
        elif rest:
            self._front.write(rest)
        self._front.end()

    def _begin(self, out: bytes) -> None:
        assert self._held is not None
        data = b"".join([*self._held, out])
        self._held = None
        self._begun()
        if self._front.started:  # with comments, while it waited; or by a replica that broke off
            if data:
                self._front.write(data)
        else:
            self._front.start(200, self._headers, data)


def comments(front: Front, headers: Headers) -> Callable[[bytes], None]:
    """For what a stream is told while it waits: begins the answer with the first comment."""

    def tell(comment: bytes) -> None:
        if front.started:
            front.write(comment)
        else:
            front.start(200, [EVENTS, ("cache-control", "no-cache"), *headers], comment)

    return tell
