"""What the gateway costs, beside what it is measured against.

    make bench-gateway [ARGS="--quick --only requests,streams"]

CPU per request and per streamed chunk is user and system time of the router's process and its children, from /proc,
divided by the answers that came whole. Ours runs with everything on: keys, limits, routing, metering, ledger, metrics.
Each router has the same core, the same four replicas of one scripted engine, and takes turns with the others; figures
are medians over the rounds. Where prompts matter, vllm-router is measured more than once: with its cheapest policy,
which looks at none, and as it comes, where it asks each replica to render each prompt. LiteLLM's proxy, a hundred times
slower, gets one round and fewer requests. The benchmark installs its peers (benchmarks/peers/install.sh); one that
cannot be had is left out, and stderr says why.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from benchmarks.figures import show
from benchmarks.gateway_parts import (
    ENGINE_KEY,
    MODEL,
    Cores,
    Done,
    Missing,
    Programs,
    Router,
    Work,
    answers,
    compiled,
    cores,
    cpu_s,
    do,
    engine,
    free_ports,
    pss_mib,
    started,
    until,
)
from benchmarks.gateway_routers import (
    LITELLM,
    OURS,
    PEERS,
    VLLM_ROUTER_AS_IT_COMES,
    VLLM_ROUTER_ONE,
    Upstream,
    environ,
    gateway,
    peers,
    pins_certificates,
    prepared,
)

us_per_request = attrgetter("us_per_request")
us_per_chunk = attrgetter("us_per_chunk")
ASKS_FOR_PROMPTS = (VLLM_ROUTER_AS_IT_COMES, VLLM_ROUTER_ONE)  # before a stream; its chunks then cost the same
SLOW_SHARE = 150  # LiteLLM's proxy gets one request where the others get so many


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    rounds: int
    requests: int
    waves: int  # of streams, one after another on each connection
    chunks: int
    starts: int
    alone: int  # requests one at a time


FULL = Size(rounds=3, requests=30_000, waves=4, chunks=100, starts=5, alone=3_000)
QUICK = Size(rounds=1, requests=10_000, waves=2, chunks=50, starts=2, alone=1_000)


@dataclass(frozen=True, slots=True)
class Field:
    """Who competes, in front of the same engine."""

    ours: Router
    peers: list[Router]
    engine_port: int

    @property
    def all(self) -> list[Router]:
        return [self.ours, *self.peers]


@dataclass(slots=True)
class Bench:
    programs: Programs
    at: Cores
    folder: Path
    size: Size
    wanted: Sequence[str]
    failed: Counter[str] = dataclasses.field(default_factory=Counter)  # answers that did not come whole, by router
    asked: Counter[str] = dataclasses.field(default_factory=Counter)

    def run(self, router: Router, work: Work, model: str = MODEL) -> Done:
        done = do(self.programs, self.at.load, router, work, model)
        self.asked[router.name] += work.requests
        self.failed[router.name] += done.failed
        if done.failed:
            text = f"{done.refused} refused, {done.dropped} dropped, {done.short} short, {done.late} late"
            print(f"{router.name}: of {work.requests} requests {text}", file=sys.stderr)
        if not done.ok:
            text = f"{router.name} answers nothing any more; its log ends so:\n{router.log.read_text()[-1000:]}"
            raise Missing(text)
        return done

    def medians(self, routers: Sequence[Router], work: Work, of: Callable[[Done], float]) -> dict[str, float]:
        """Of each router over the rounds, in which they take turns; a first, shorter round is not counted."""
        values: dict[str, list[float]] = defaultdict(list)
        warm_up = dataclasses.replace(work, requests=max(work.concurrency, work.requests // 10))
        for n in range(self.size.rounds + 1):
            for router in routers:
                if router.slow and n > 1:
                    continue
                one = warm_up if n == 0 else work
                done = self.run(router, less(one) if router.slow else one)
                if n > 0:
                    values[router.name].append(of(done))
        return {name: statistics.median(some) for name, some in values.items()}

    @contextlib.contextmanager
    def field(self, *options: str, without: Sequence[str] = ()) -> Iterator[Field]:
        """Ours and its peers, in front of an engine with these options."""
        here = Path(tempfile.mkdtemp(dir=self.folder))
        with contextlib.ExitStack() as stack:
            upstream = Upstream(stack.enter_context(engine(self.programs, self.at, here, *options)))
            ours = stack.enter_context(gateway(self.at, here / "ours", {MODEL: upstream}))
            wanted = [name for name in self.wanted if name not in without]
            yield Field(ours, stack.enter_context(peers(self.at, here / "peers", upstream, wanted)), upstream.port)


def less(work: Work) -> Work:
    """For a slow router: one wave of streams, or fewer requests."""
    few = work.concurrency if work.chunks else max(work.concurrency, work.requests // SLOW_SHARE)
    return dataclasses.replace(work, requests=few)


def show_all(figure: str, unit: str, values: dict[str, float]) -> None:
    """Ours against each peer; alone where there is none."""
    ours = values.pop(OURS)
    for peer, value in values.items():
        show(figure, ours, unit, peer, value)
    if not values:
        show(figure, ours, unit)


def streams_of(size: Size, concurrency: int, ask: bool = False) -> Work:
    return Work(concurrency, concurrency * size.waves, size.chunks, 20, ask)


def requests(bench: Bench) -> None:
    """CPU per request, added latency, and memory after that load."""
    with bench.field("--plain") as field:
        for concurrency in (32, 256):
            work = Work(concurrency, bench.size.requests)
            cost = bench.medians(field.all, work, us_per_request)
            show_all(f"CPU per request, {concurrency} in flight", "us", cost)
        show_all("memory after that, PSS", "MiB", {router.name: pss_mib(router.pid) for router in field.all})
        # The engine itself takes part as one more router, with nothing in between.
        direct = Router("direct", field.engine_port, ENGINE_KEY, field.ours.pid, field.ours.log)
        alone = Work(1, bench.size.alone)
        p50 = bench.medians([*field.all, direct], alone, lambda done: done.p50_us)
        base = p50.pop("direct")
        show_all("added p50, one at a time", "ms", {name: (value - base) / 1000 for name, value in p50.items()})


def streams(bench: Bench) -> None:
    """CPU per streamed chunk, of engines that do not tell running counts; and a thousand streams at once."""
    with bench.field("--plain", without=ASKS_FOR_PROMPTS) as field:
        for concurrency in (100, 400):
            cost = bench.medians(field.all, streams_of(bench.size, concurrency), us_per_chunk)
            show_all(f"CPU per chunk, {concurrency} streams", "us", cost)
        thousand = Work(1000, 1000 * bench.size.waves, bench.size.chunks, interval_ms=100)
        done = bench.run(field.ours, thousand)
        show(f"dropped or short of {thousand.requests}, 1000 streams at once", done.failed, "streams")
        show("CPU per chunk, 1000 streams", done.us_per_chunk, "us")


def counts(bench: Bench) -> None:
    """The same of engines that tell running counts in every chunk, to whoever asks.

    First no client asks: ours asks by itself, and takes the counts out again. Then every client does.
    """
    with bench.field(without=ASKS_FOR_PROMPTS) as field:
        for concurrency in (100, 400):
            cost = bench.medians(field.all, streams_of(bench.size, concurrency), us_per_chunk)
            show_all(f"CPU per chunk, {concurrency} streams, running counts for the ledger", "us", cost)
        quick = [router for router in field.all if not router.slow]
        cost = bench.medians(quick, streams_of(bench.size, 100, ask=True), us_per_chunk)
        show_all("CPU per chunk, 100 streams, running counts for the client", "us", cost)


def tls(bench: Bench) -> None:
    """The same gateway, the same work, to an engine with TLS and to one without."""
    if not bench.programs.tls:
        raise Missing("TLS to the upstream needs OpenSSL's headers (on Debian: apt-get install libssl-dev)")
    if not pins_certificates():
        raise Missing("this gateway knows no certificates of replicas yet")
    here = Path(tempfile.mkdtemp(dir=bench.folder))
    certificate, private_key = self_signed(here)
    secure = ("--certificate", certificate, "--private-key", private_key)
    with contextlib.ExitStack() as stack:
        plain_port = stack.enter_context(engine(bench.programs, bench.at, here, "--plain"))
        tls_port = stack.enter_context(engine(bench.programs, bench.at, here, "--plain", *secure))
        upstreams = {MODEL: Upstream(plain_port), "closed": Upstream(tls_port, certificate.read_text())}
        ours = stack.enter_context(gateway(bench.at, here / "ours", upstreams))
        for figure, work, of in (
            ("CPU per request, 32 in flight", Work(32, bench.size.requests), us_per_request),
            ("CPU per chunk, 100 streams", streams_of(bench.size, 100), us_per_chunk),
            ("CPU per chunk, 400 streams", streams_of(bench.size, 400), us_per_chunk),
        ):
            values: dict[str, list[float]] = defaultdict(list)
            for n in range(bench.size.rounds + 1):
                for model in upstreams:
                    done = bench.run(ours, work, model)
                    if n > 0:  # the first round warms up
                        values[model].append(of(done))
            secured, plain = statistics.median(values["closed"]), statistics.median(values[MODEL])
            show(f"{figure}, TLS to the upstream", secured, "us", "the same without TLS", plain)


def ready(bench: Bench) -> None:
    """From exec to the first 200 on /ready, of a gateway that starts on a site with a tenant and a deployment."""
    here = Path(tempfile.mkdtemp(dir=bench.folder))
    took, cpu = [], []
    with engine(bench.programs, bench.at, here, "--plain") as upstream:
        port = free_ports(1)
        site, _ = prepared(here, port, {MODEL: Upstream(upstream)})
        for n in range(bench.size.starts):
            log = here / f"start-{n}.log"
            began = time.perf_counter()
            with started([sys.executable, "-m", "gateway", site], bench.at.router, log, environ()) as pid:
                until(lambda: answers(port, "/ready"), "our gateway", pid, log, every_s=0.005)
                took.append(time.perf_counter() - began)
                cpu.append(cpu_s(pid))
                idle = pss_mib(pid)
    show("ready after its start", statistics.median(took), "s")
    show("CPU of its start", statistics.median(cpu), "s")
    show("memory when ready, PSS", idle, "MiB")


def self_signed(folder: Path) -> tuple[Path, Path]:
    """As an engine has: a certificate and its key, in PEM. Raises Missing without openssl."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-days", "2", "-subj", "/CN=replica", "-addext", "subjectAltName=IP:127.0.0.1"]
    words += ["-addext", "basicConstraints=critical,CA:FALSE"]  # it vouches for nobody else, or it is not taken
    try:
        subprocess.run([*words, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        raise Missing("there is no openssl to make a certificate with (on Debian: apt-get install openssl)") from None
    return certificate, key


SECTIONS = {"requests": requests, "streams": streams, "counts": counts, "tls": tls, "ready": ready}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-gateway", description="What the gateway costs")
    parser.add_argument("--quick", action="store_true", help="one round of less work: two to three minutes")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas: %(default)s")
    parser.add_argument("--without-peers", action="store_true", help="ours alone")
    parser.add_argument("--without-litellm", action="store_true", help="it takes its time")
    asked = parser.parse_args()
    if unknown := set(asked.only.split(",")) - set(SECTIONS):
        parser.error(f"there are no sections {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    wanted = () if asked.without_peers else tuple(p for p in PEERS if p != LITELLM or not asked.without_litellm)
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as folder:
        try:
            bench = Bench(compiled(Path(folder)), cores(), Path(folder), QUICK if asked.quick else FULL, wanted)
        except Missing as e:
            print(f"bench-gateway: {e}", file=sys.stderr)
            return 1
        left_out = 0
        for name in asked.only.split(","):
            try:
                SECTIONS[name](bench)
            except Missing as e:
                print(f"left out: the rest of {name}: {e}", file=sys.stderr)
                left_out += 1
    show(f"not answered whole, of all {bench.asked[OURS]} requests", bench.failed[OURS], "requests")
    return 1 if left_out or bench.failed[OURS] else 0


if __name__ == "__main__":
    sys.exit(main())
