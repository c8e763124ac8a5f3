"""What the router knows of its replicas, from choice to choice."""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from benchmarks.routing_fleet import Clock, Engine, times_to_first_token
from benchmarks.routing_rules import Ours, exact, replica
from benchmarks.routing_trace import Request, synthetic
from gateway.prefix import BLOCK_BYTES
from gateway.router import LIKELY_OUTPUT_TOKENS, SESSIONS, Routed, Router
from gateway.routing import SESSION_SLACK_TOKENS, Gauges, Policy
from registry import clock
from registry.deployments import Replica

TEXT = os.urandom(16 * BLOCK_BYTES)  # of 4,000 tokens


@dataclass
class Desk:
    """Routes to replicas 0, 1, ... of one deployment."""

    ready: Sequence[Replica]
    router: Router = field(default_factory=Router)
    policy: Policy = Policy.LEAST_WORK

    def route(
        self,
        prompt: bytes = b"",
        tokens: int = 4000,
        output: int = 0,
        session: str | None = None,
        longest: int | None = None,
    ) -> Routed:
        one = output if longest is None else longest
        routed = self.router.route("chat", self.policy, self.ready, tokens, output, one, prompt, b"chat", session)
        assert routed is not None
        return routed

    def queued(self) -> dict[str, int]:
        return {load.id: load.queued for load in self.router.snapshot()}


@pytest.fixture
def desk() -> Desk:
    return Desk([replica(0), replica(1)])


def test_nothing_is_chosen_of_nothing() -> None:
    assert Router().route("chat", Policy.LEAST_WORK, [], 10, 10, 10, TEXT, b"", None) is None


def test_a_request_is_load_until_it_is_left_and_its_prompt_until_the_first_output(desk: Desk) -> None:
    with desk.route(tokens=4000, output=50) as routed:
        assert routed.replica.id == "0" and routed.uncached_tokens == 4000
        assert desk.router.outstanding("0") == 1 and desk.queued()["0"] == 4050
        routed.first_output()
        routed.first_output()
        assert desk.router.outstanding("0") == 1 and desk.queued()["0"] == 50
    assert desk.router.outstanding("0") == 0 and desk.queued()["0"] == 0
    assert desk.router.outstanding("unheard of") == 0


def test_a_request_that_failed_before_its_first_output_leaves_nothing_behind(desk: Desk) -> None:
    with pytest.raises(OSError), desk.route(output=50):
        raise OSError
    assert desk.queued() == {"0": 0, "1": 0}


def test_a_first_output_says_that_all_prompts_sent_before_are_computed_too(desk: Desk) -> None:
    desk.ready = [replica(0)]
    whole, stream, later = (desk.route(tokens=n) for n in (1000, 200, 30))
    stream.first_output()
    assert desk.queued()["0"] == 30
    whole.first_output()
    later.first_output()
    for routed in (stream, later, whole):
        with routed:
            pass
    assert desk.queued()["0"] == desk.router.outstanding("0") == 0


def test_a_client_that_allows_a_very_long_answer_is_not_believed(desk: Desk) -> None:
    with desk.route(tokens=1, output=100_000):
        assert desk.queued()["0"] == 1 + LIKELY_OUTPUT_TOKENS


def test_a_prompt_is_never_longer_than_an_engine_takes(desk: Desk) -> None:
    desk.ready = [replace(replica(0), context_tokens=8192)]
    assert desk.route(tokens=3_000_000).uncached_tokens == 8192  # a large picture


def test_what_follows_a_long_beginning_counts_as_never_seen(desk: Desk) -> None:
    desk.ready = [replica(0)]
    desk.route(TEXT, tokens=40_000)
    assert desk.route(TEXT, tokens=40_000).uncached_tokens == 40_000 - int(len(TEXT) / 3)


def test_a_conversation_goes_where_its_beginning_was(desk: Desk) -> None:
    first = desk.route(TEXT[: 8 * BLOCK_BYTES], tokens=2000)
    other = desk.route(tokens=10)
    for routed in (first, other):
        with routed:
            routed.first_output()
    assert (first.replica.id, other.replica.id) == ("0", "1")
    for _ in range(3):
        with desk.route(TEXT, tokens=4000) as again:
            assert again.replica.id == "0"
    assert again.uncached_tokens == 1  # the third time all of it was known
    with desk.route(TEXT[: 12 * BLOCK_BYTES] + bytes(4 * BLOCK_BYTES), tokens=4000) as part:
        assert (part.replica.id, part.uncached_tokens) == ("0", 1000)


def test_of_a_burst_with_one_beginning_those_behind_count_on_its_being_computed(desk: Desk) -> None:
    burst = [desk.route(TEXT, tokens=4000) for _ in range(4)]
    assert [r.replica.id for r in burst] == ["0", "1", "0", "1"]  # the second finds no queue; then both know it
    assert [r.uncached_tokens for r in burst] == [4000, 4000, 1, 1]


def test_what_one_deployment_or_salt_has_cached_is_nothing_to_another(desk: Desk) -> None:
    desk.route(TEXT)
    for deployment, salt in (("other", b"chat"), ("chat", b"adapter")):
        routed = desk.router.route(deployment, Policy.LEAST_WORK, [replica(0)], 4000, 0, 0, TEXT, salt, None)
        assert routed is not None and routed.uncached_tokens == 4000


def test_a_session_returns_to_its_replica_while_that_is_not_much_busier(desk: Desk) -> None:
    home = desk.route(session="s").replica.id
    assert {desk.route(tokens=1000, session="s").replica.id for _ in range(3)} == {home}
    busy = desk.route(tokens=2 * SESSION_SLACK_TOKENS, session="s")
    assert busy.replica.id == home
    moved = desk.route(session="s").replica.id
    assert moved != home
    desk.ready = [replica(int(home))]
    assert desk.route(session="s").replica.id == home  # the only one


def test_only_so_many_sessions_are_remembered_the_most_recent_ones(desk: Desk) -> None:
    desk.policy = Policy.ROUND_ROBIN
    for session in (*range(SESSIONS), 0, *range(SESSIONS, SESSIONS + 9)):
        with desk.route(session=str(session)):
            pass
    known = {int(session) for _, session in desk.router._sessions}
    assert len(known) == SESSIONS and known.isdisjoint(range(1, 10)) and {0, 10, SESSIONS + 8} <= known


def test_what_waits_at_an_engine_of_others_keeps_ours_away(desk: Desk) -> None:
    now = desk.router._monotonic()
    desk.router.gauged("0", Gauges(running=4, waiting=9, kv_usage=0.9, at=now))
    assert [desk.route(tokens=10).replica.id for _ in range(3)] == ["1", "1", "1"]
    desk.router.gauged("0", Gauges(running=0, waiting=0, kv_usage=0.9, at=now))
    assert desk.route(tokens=10).replica.id == "0"


def test_our_own_waiting_requests_are_not_taken_for_others(desk: Desk) -> None:
    desk.ready = [replica(0)]
    for _ in range(3):
        desk.route(tokens=10)
    desk.router.gauged("0", Gauges(running=1, waiting=2, kv_usage=0.1, at=desk.router._monotonic()))
    assert [load.others.requests for load in desk.router.snapshot()] == [0]


def test_a_replica_whose_job_ends_gets_no_long_request() -> None:
    moments = (lambda: 5000.0, lambda: clock.parse("2026-05-01T12:00:00Z").timestamp())
    router = Router(monotonic=moments[0], unix=moments[1])
    ending = replace(replica(0), ends_at="2026-05-01T12:00:30.000000Z")
    desk = Desk([ending, replica(1)], router)
    assert [desk.route(output=20).replica.id for _ in range(2)] == ["0", "1"]
    assert [desk.route(output=2000).replica.id for _ in range(3)] == ["1", "1", "1"]
    assert "0" in [desk.route(output=20 * 64, longest=20).replica.id for _ in range(9)]  # 64 short ones, side by side
    assert desk.route(output=20, longest=20_000).replica.id == "1"  # held is little, allowed is much
    desk.ready = [ending]
    assert desk.route(output=2000).replica.id == "0"
    desk = Desk(
        [replace(one, context_tokens=100) for one in (ending, replica(1))],
        Router(monotonic=moments[0], unix=moments[1]),
    )
    assert "0" in [desk.route(longest=2**31 - 1).replica.id for _ in range(9)]  # no answer is longer than the context


def test_what_is_gone_is_forgotten_and_what_runs_there_can_still_end(desk: Desk) -> None:
    running = desk.route(TEXT, output=10)
    with desk.route(TEXT[BLOCK_BYTES:]) as other:
        assert (running.replica.id, other.replica.id) == ("0", "1")
    desk.router.forget(["0", "never known"])
    desk.router.gauged("0", Gauges(running=1, waiting=0, kv_usage=0.1, at=0.0))  # was on its way
    assert desk.queued() == {"1": 0} and desk.router.outstanding("0") == 0
    with running:
        running.first_output()
    assert desk.queued() == {"1": 0}
    again = desk.route(TEXT)
    assert (again.replica.id, again.uncached_tokens) == ("0", 4000)  # a new one, which knows nothing
    assert desk.router.outstanding("0") == 1
    desk.router.forget(["0", "1"])
    assert desk.router.snapshot() == [] and not desk.router._fleets


def test_gauges_that_come_late_of_a_replica_that_nobody_was_sent_to_leave_nothing_behind(desk: Desk) -> None:
    desk.router.forget(["idle"])
    desk.router.gauged("idle", Gauges(running=0, waiting=0, kv_usage=0.1, at=0.0))
    assert desk.router.snapshot() == []


@pytest.mark.parametrize("policy", Policy)
def test_whatever_comes_and_goes_the_load_of_all_that_are_done_is_none(policy: Policy) -> None:
    chance = random.Random(3)
    everyone = [replica(n) for n in range(6)]
    desk, live = Desk(everyone, policy=policy), list[Routed]()
    for _ in range(3000):
        desk.ready = everyone if chance.random() < 0.9 else chance.sample(everyone, chance.randint(1, 6))
        if live and chance.random() < 0.5:
            with live.pop(chance.randrange(len(live))) as ended:
                if chance.random() < 0.8:
                    ended.first_output()
        elif live and chance.random() < 0.5:
            chance.choice(live).first_output()
        else:
            start = chance.randrange(4) * BLOCK_BYTES
            live.append(desk.route(TEXT[start:], output=chance.randrange(99), session=chance.choice((None, "a", "b"))))
            assert live[-1].replica in desk.ready
        assert sum(load.outstanding for load in desk.router.snapshot()) == len(live)
        assert all(load.queued >= 0 for load in desk.router.snapshot())
    for routed in live:
        with routed:
            pass
    assert set(desk.queued().values()) == {0}


def test_requests_wait_about_as_if_the_engines_caches_were_known_and_less_than_with_shortest_queues() -> None:
    requests = synthetic(requests=1500)
    ours, blind, knowing = (
        _mean(requests, Policy.LEAST_WORK),
        _mean(requests, Policy.LEAST_OUTSTANDING),
        _mean(requests),
    )
    assert ours < 1.05 * knowing
    assert ours < 0.7 * blind


def _mean(requests: Sequence[Request], policy: Policy | None = None) -> float:
    """Seconds to the first token; with exact knowledge where no policy is named."""
    engines, now = [Engine() for _ in range(8)], Clock()
    ours = policy and Ours(Router(monotonic=now, unix=now), policy, [replica(n) for n in range(8)])
    return statistics.fmean(times_to_first_token(requests, ours or exact(engines, now), engines, now))
