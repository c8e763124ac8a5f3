"""What is counted, for /metrics. Counting is a few dict and list increments; the page is made when it is asked for.

What OpenTelemetry's conventions for generative AI have a name for has that name, those labels and those buckets; there
a deployment is the `gen_ai_request_model`. A gateway is its engines' client: `gen_ai_client_inference_usage_*` is what
was billed. Everything else is ours, with our prefix. Every label is bounded: deployments, kinds, outcomes and faults
are our own words, never a client's; tenants are the registry's, and from the TENANTS-th on they are counted as one,
"other".
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from gateway.calls import Kind
from gateway.metering import Usage

if TYPE_CHECKING:
    from prometheus_client.core import Metric

Labels = tuple[str, ...]

PREFIX = "headgate_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TENANTS = 200
DEPLOYMENTS = 200  # in the gateway's life; those that came later are "other" too
OTHER = "other"
# The conventions' word for a kind of request, where they have one.
OPERATIONS: dict[str, str] = {
    Kind.CHAT: "chat",
    Kind.RESPONSE: "chat",
    Kind.MESSAGE: "chat",
    Kind.COMPLETION: "text_completion",
    Kind.EMBEDDING: "embeddings",
}
PROVIDER = "headgate"
MODALITY = "unknown"  # engines do not tell tokens of a text from those of a picture
# Seconds. OpenTelemetry's gen_ai.server.time_to_first_token, and gen_ai.server.request.duration with longer ones added.
FIRST_TOKEN_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    30.0,
    120.0,
)
TOTAL_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 327.68, 1310.72)
QUEUED_S = (0.001, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
OPERATION = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_STATUS = {n: f"{n}xx" for n in range(1, 6)}


class Histogram:
    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many were at most that) as the exposition wants it."""
        below, found = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            found.append((bound, float(below)))
        return found


def added(histograms: Sequence[Histogram]) -> Histogram:
    """Of the same bounds, at least one."""
    whole = Histogram(histograms[0].bounds)
    for histogram in histograms:
        whole.counts = [a + b for a, b in zip(whole.counts, histogram.counts, strict=True)]
        whole.sum += histogram.sum
    return whole


class Series:
    """Of one kind of request to one deployment."""

    __slots__ = ("cached", "first_token", "generated", "prompt", "queued", "reasoning", "requests", "total")

    def __init__(self) -> None:
        self.requests: dict[tuple[int, str], int] = {}  # by status class and outcome
        self.prompt = self.cached = self.generated = self.reasoning = 0
        self.queued = Histogram(QUEUED_S)
        self.first_token = Histogram(FIRST_TOKEN_S)
        self.total = Histogram(TOTAL_S)


class Used:
    """Of one tenant."""

    __slots__ = ("generated", "prompt", "requests")

    def __init__(self) -> None:
        self.requests = self.prompt = self.generated = 0


@dataclass(frozen=True, slots=True)
class Watched:
    name: str
    text: str
    labels: Labels
    read: Callable[[], Mapping[Labels, float]]
    counts: bool  # it only grows


class Metrics:
    def __init__(self) -> None:
        self._series: dict[tuple[str, str], Series] = {}  # by deployment and kind
        self._deployments: set[str] = set()  # that have their own name on the page
        self._tenants: dict[str, Used] = {}
        self._retries: Counter[tuple[str, str]] = Counter()  # by deployment and why
        self._ejections: Counter[str] = Counter()  # by fault
        self._watched: list[Watched] = []

    def finished(
        self,
        deployment: str,
        kind: str,
        status: int,
        outcome: str,
        tenant: str,
        used: Usage,
        queued_s: float,
        first_token_s: float | None,
        total_s: float,
    ) -> None:
        """Once for each request, answered or refused.

        `deployment` is a known one (or an external model), "" where the client named none; `status` is HTTP's;
        `outcome` the ledger's, or the code of the error it was refused with; `tenant` is "" where no key was known.
        `first_token_s` is None where no generated output was sent.
        """
        series = self._series.get((deployment, kind)) or self._new_series(deployment, kind)
        ended = (status // 100, outcome)
        series.requests[ended] = series.requests.get(ended, 0) + 1
        series.prompt += used.prompt_tokens
        series.cached += used.cached_tokens
        series.generated += used.completion_tokens
        series.reasoning += used.reasoning_tokens
        series.queued.observe(queued_s)
        series.total.observe(total_s)
        if first_token_s is not None:
            series.first_token.observe(first_token_s)
        theirs = self._tenants.get(tenant) or self._new_tenant(tenant)
        theirs.requests += 1
        theirs.prompt += used.prompt_tokens
        theirs.generated += used.completion_tokens

    def retried(self, deployment: str, why: str) -> None:
        """A request is sent to another replica; `why` is an error's code."""
        self._retries[self._known(deployment), why] += 1

    def ejected(self, fault: str) -> None:
        """A replica is given no requests for a while."""
        self._ejections[fault] += 1

    def watch(self, name: str, text: str, labels: Labels, read: Callable[[], Mapping[Labels, float]]) -> None:
        """A gauge that is read at each scrape, as {its labels' values: value}. `name` goes without the prefix."""
        self._watched.append(Watched(name, text, labels, read, counts=False))

    def watch_counter(self, name: str, text: str, labels: Labels, read: Callable[[], Mapping[Labels, float]]) -> None:
        """The same for what only grows; the page puts `_total` behind its name."""
        self._watched.append(Watched(name, text, labels, read, counts=True))

    async def page(self) -> bytes:
        """In Prometheus' text format (CONTENT_TYPE). Streams go on between its parts, each of a few milliseconds."""
        # At the first scrape, not at import: 1 MiB and 10 ms that a gateway nobody scrapes does not need.
        from prometheus_client.exposition import generate_latest

        parts = []
        for metric in self._collected():
            parts.append(generate_latest(_Alone(metric)))
            await asyncio.sleep(0)
        return b"".join(parts)

    def _collected(self) -> Iterator[Metric]:
        from prometheus_client.process_collector import ProcessCollector

        yield from self._requests()
        yield from self._times()
        yield from self._faults()
        yield from self._gauges()
        yield from ProcessCollector(registry=None).collect()

    def _requests(self) -> Iterator[Metric]:
        yield _counter(
            "requests",
            "Requests that were answered or refused.",
            ("deployment", "kind", "status", "outcome"),
            (
                ((*of, _STATUS.get(status, OTHER), outcome), count)
                for of, series in self._series.items()
                for (status, outcome), count in series.requests.items()
            ),
        )
        labels = (*OPERATION, "gen_ai_token_modality")
        for name, text, read in (
            ("input_tokens", "Prompt tokens that were billed, cached ones included.", attrgetter("prompt")),
            ("output_tokens", "Tokens generated that were billed, reasoning included.", attrgetter("generated")),
            ("cache_read_input_tokens", "Of the prompt tokens, those an engine had cached.", attrgetter("cached")),
            ("reasoning_output_tokens", "Of the tokens generated, those of reasoning.", attrgetter("reasoning")),
        ):
            yield _counter(
                f"gen_ai_client_inference_usage_{name}",
                text,
                labels,
                (((*of, MODALITY), sum(map(read, series))) for of, series in self._by_operation().items()),
                prefix="",
            )
        tenants = [((name,), used) for name, used in self._tenants.items()]
        for name, text, read in (
            ("tenant_requests", "Requests of a tenant.", attrgetter("requests")),
            ("tenant_prompt_tokens", "Prompt tokens of a tenant.", attrgetter("prompt")),
            ("tenant_generation_tokens", "Tokens generated for a tenant.", attrgetter("generated")),
        ):
            yield _counter(name, text, ("tenant",), ((key, read(used)) for key, used in tenants))

    def _times(self) -> Iterator[Metric]:
        from prometheus_client.core import HistogramMetricFamily

        text = "Time a request waited for a replica."
        family = HistogramMetricFamily(f"{PREFIX}request_queue_time_seconds", text, labels=("deployment", "kind"))
        for key, one in self._series.items():
            family.add_metric(key, one.queued.buckets(), one.queued.sum)
        yield family
        for name, text, read in (
            ("time_to_first_token", "From a request to its first generated output.", attrgetter("first_token")),
            ("request_duration", "From a request to the end of its answer.", attrgetter("total")),
        ):
            family = HistogramMetricFamily(f"gen_ai_server_{name}_seconds", text, labels=OPERATION)
            for of, series in self._by_operation().items():
                histogram = added(list(map(read, series)))
                family.add_metric(of, histogram.buckets(), histogram.sum)
            yield family

    def _by_operation(self) -> dict[Labels, list[Series]]:
        """Kinds of requests that are one operation to OpenTelemetry, together; by the values of OPERATION."""
        found: dict[Labels, list[Series]] = {}
        for (deployment, kind), series in self._series.items():
            found.setdefault((OPERATIONS.get(kind, kind), PROVIDER, deployment), []).append(series)
        return found

    def _faults(self) -> Iterator[Metric]:
        text = "Requests that were sent to another replica."
        yield _counter("request_retries", text, ("deployment", "why"), self._retries.items())
        text = "Times that a replica was given no requests for a while."
        yield _counter("replica_ejections", text, ("fault",), (((fault,), n) for fault, n in self._ejections.items()))

    def _gauges(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        for watched in self._watched:
            if watched.counts:
                yield _counter(watched.name, watched.text, watched.labels, watched.read().items())
                continue
            family = GaugeMetricFamily(PREFIX + watched.name, watched.text, labels=watched.labels)
            for labels, value in watched.read().items():
                family.add_metric(labels, value)
            yield family

    def _new_series(self, deployment: str, kind: str) -> Series:
        return self._series.setdefault((self._known(deployment), kind), Series())

    def _known(self, deployment: str) -> str:
        """Deployments come and go while the gateway stays."""
        if deployment not in self._deployments and len(self._deployments) >= DEPLOYMENTS:
            return OTHER
        self._deployments.add(deployment)
        return deployment

    def _new_tenant(self, tenant: str) -> Used:
        return self._tenants.setdefault(tenant if len(self._tenants) < TENANTS else OTHER, Used())


class _Alone:
    """One metric as what prometheus_client calls a collector."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def _counter(
    name: str, text: str, labels: Labels, samples: Iterable[tuple[Labels, float]], prefix: str = PREFIX
) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(prefix + name, text, labels=labels)
    for values, count in samples:
        family.add_metric(values, count)
    return family
