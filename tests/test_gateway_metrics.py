"""What is counted for each request, and the page that a Prometheus reads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_fixtures import gateway, until
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics
from gateway.app_keys import GATEWAY
from gateway.ledger_writer import JOURNALS
from gateway.metering import Usage
from gateway.metrics import OTHER, Metrics
from registry.journal import Journal, line
from registry.steps import Attempt, Outcome, UsageEvent, encode

ROOT = Path(__file__).resolve().parent.parent


Sample = tuple[str, frozenset[tuple[str, str]]]


async def page(counted: Metrics) -> dict[Sample, float]:
    """Every sample by name and labels, as Prometheus' own parser reads the page."""
    text = (await counted.page()).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one(name: str, **labels: str) -> Sample:
    return f"headgate_{name}", frozenset(labels.items())


TOKENS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "reasoning_output_tokens")


def named(name: str, operation: str = "chat", model: str = "tiny", **labels: str) -> Sample:
    """A sample of a metric of OpenTelemetry's."""
    of = {"gen_ai_operation_name": operation, "gen_ai_provider_name": "headgate", "gen_ai_request_model": model}
    return f"gen_ai_{name}", frozenset((of | labels).items())


def used(name: str, model: str = "tiny") -> Sample:
    return named(f"client_inference_usage_{name}_total", model=model, gen_ai_token_modality="unknown")


def finish(counted: Metrics, deployment: str = "tiny", tenant: str = "physics", status: int = 200) -> None:
    outcome = "completed" if status < 400 else "no_ready_replica"
    first_token_s = 0.05 if status < 400 else None
    counted.finished(deployment, "chat", status, outcome, tenant, Usage(100, 50, 30, 20), 0.25, first_token_s, 3.0)


async def test_requests_are_counted_by_how_they_ended_and_tokens_for_deployment_and_tenant() -> None:
    counted = Metrics()
    finish(counted)
    finish(counted, tenant="biology")
    counted.finished("tiny", "chat", 503, "no_ready_replica", "physics", Usage(), 60.0, None, 60.0)
    samples = await page(counted)
    of = {"deployment": "tiny", "kind": "chat"}
    assert samples[one("requests_total", **of, status="2xx", outcome="completed")] == 2
    assert samples[one("requests_total", **of, status="5xx", outcome="no_ready_replica")] == 1
    billed = {name: samples[used(name)] for name in TOKENS}
    assert billed == dict(zip(TOKENS, (200, 100, 60, 40), strict=True))
    assert samples[one("tenant_requests_total", tenant="physics")] == 2
    assert samples[one("tenant_prompt_tokens_total", tenant="physics")] == 100
    assert samples[one("tenant_generation_tokens_total", tenant="biology")] == 50


async def test_times_fall_into_buckets_up_to_and_including_their_bound() -> None:
    counted = Metrics()
    for total in (0.01, 0.010001, 5.0, 1e6):
        counted.finished("tiny", "chat", 200, "completed", "physics", Usage(1, 1), 0.0, None, total)
    samples = await page(counted)
    of = {"deployment": "tiny", "kind": "chat"}
    name = "server_request_duration_seconds"
    at_most = {le: samples[named(f"{name}_bucket", le=le)] for le in ("0.01", "0.02", "5.12", "1310.72", "+Inf")}
    assert at_most == {"0.01": 1, "0.02": 2, "5.12": 3, "1310.72": 3, "+Inf": 4}
    assert samples[named(f"{name}_count")] == 4 and samples[named(f"{name}_sum")] == 0.01 + 0.010001 + 5 + 1e6
    assert samples[one("request_queue_time_seconds_count", **of)] == 4


async def test_a_request_that_generated_nothing_has_no_time_to_its_first_token() -> None:
    counted = Metrics()
    finish(counted)
    finish(counted, status=503)
    samples = await page(counted)
    assert samples[named("server_time_to_first_token_seconds_count")] == 1
    assert samples[named("server_time_to_first_token_seconds_sum")] == 0.05
    assert samples[named("server_request_duration_seconds_count")] == 2


async def test_kinds_that_are_one_operation_to_opentelemetry_are_added_up() -> None:
    counted = Metrics()
    for kind, total_s in (("chat", 1.0), ("message", 2.0), ("response", 4.0), ("completion", 8.0), ("rerank", 16.0)):
        counted.finished("tiny", kind, 200, "completed", "physics", Usage(7, 1), 0.0, 0.5, total_s)
    samples = await page(counted)
    assert samples[used("input_tokens")] == 21
    sums = {operation: samples[named("server_request_duration_seconds_sum", operation)] for operation in
            ("chat", "text_completion", "rerank")}  # fmt: skip
    assert sums == {"chat": 7.0, "text_completion": 8.0, "rerank": 16.0}
    assert samples[named("server_request_duration_seconds_bucket", le="2.56")] == 2
    assert samples[one("requests_total", deployment="tiny", kind="message", status="2xx", outcome="completed")] == 1


async def test_retries_ejections_and_gauges_are_on_the_page() -> None:
    counted = Metrics()
    running = {("tiny", "replica-1"): 3.0}
    counted.watch("requests_in_flight", "Requests that a replica has.", ("deployment", "replica"), lambda: running)
    counted.watch("streams_open", "Streams to clients.", (), lambda: {(): 7.0})
    counted.watch_counter("refusals", "Steps that were refused.", (), lambda: {(): 2.0})
    counted.retried("tiny", "upstream_failed")
    counted.ejected("unreachable")
    counted.ejected("unreachable")
    samples = await page(counted)
    assert samples[one("request_retries_total", deployment="tiny", why="upstream_failed")] == 1
    assert samples[one("replica_ejections_total", fault="unreachable")] == 2
    assert samples[one("requests_in_flight", deployment="tiny", replica="replica-1")] == 3
    assert samples[one("streams_open")] == 7 and samples[one("refusals_total")] == 2
    running.clear()
    running["tiny", "replica-2"] = 1.0
    samples = await page(counted)
    assert one("requests_in_flight", deployment="tiny", replica="replica-1") not in samples
    assert samples[one("requests_in_flight", deployment="tiny", replica="replica-2")] == 1


async def test_the_process_says_what_it_costs() -> None:
    samples = await page(Metrics())
    assert samples["process_resident_memory_bytes", frozenset()] > 1 << 20


async def test_labels_are_bounded_and_nothing_is_lost_above_the_bound() -> None:
    counted = Metrics()
    for n in range(3 * metrics.TENANTS):
        finish(counted, f"deployment-{n}", f"tenant-{n}")
        counted.retried(f"deployment-{n}", "upstream_failed")
    samples = await page(counted)
    tenants = [v for (name, _), v in samples.items() if name == "headgate_tenant_requests_total"]
    requests = [v for (name, _), v in samples.items() if name == "headgate_requests_total"]
    retries = [v for (name, _), v in samples.items() if name == "headgate_request_retries_total"]
    assert len(tenants) == metrics.TENANTS + 1 and len(requests) == len(retries) == metrics.DEPLOYMENTS + 1
    assert sum(tenants) == sum(requests) == sum(retries) == 3 * metrics.TENANTS
    others = samples[one("tenant_requests_total", tenant=OTHER)]
    finish(counted, tenant="tenant-0")
    finish(counted, tenant="tenant-500")
    samples = await page(counted)
    assert samples[one("tenant_requests_total", tenant="tenant-0")] == 2
    assert samples[one("tenant_requests_total", tenant=OTHER)] == others + 1


async def test_a_name_with_quotes_and_line_breaks_stays_one_label() -> None:
    counted = Metrics()
    finish(counted, 'a"\n} 1\nb\\')
    samples = await page(counted)
    assert samples[used("output_tokens", model='a"\n} 1\nb\\')] == 50


async def test_requests_finish_while_the_page_is_made() -> None:
    counted = Metrics()
    for n in range(50):
        finish(counted, f"deployment-{n}")
    making = asyncio.create_task(counted.page())
    turns = 0
    while not making.done():
        finish(counted, f"deployment-{turns + 50}", f"tenant-{turns}")
        turns += 1
        await asyncio.sleep(0)
    assert turns > 5 and b"headgate_requests_total" in await making


def test_a_gateway_that_nobody_scrapes_does_not_load_prometheus_client() -> None:
    code = "import sys, gateway.metrics; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


async def test_steps_that_the_ledger_refused_are_counted(tmp_path: Path) -> None:
    attempt = Attempt("0:1", "physics", "k1", "tiny", "replica-1", "chat", "2026-11-28T10:00:00.000000Z", "ada")
    unheld = UsageEvent(attempt, 7, 4, 1, Outcome.COMPLETED, "2026-11-28T10:00:01.000000Z")
    async with gateway(tmp_path) as platform, platform.http() as http:

        async def counted() -> str:
            async with http.get("/metrics") as answer:
                return next(x for x in (await answer.text()).splitlines() if x.startswith("headgate_ledger_conflicts"))

        assert await counted() == "headgate_ledger_conflicts_total 0.0"
        other = Journal(platform.site.ledger_db.parent / JOURNALS, pytest.fail)
        other.write([line(encode(unheld))])
        other.close()
        assert platform.app is not None
        await until(lambda: platform.app[GATEWAY].ledger.conflicts)
        assert await counted() == "headgate_ledger_conflicts_total 1.0"
