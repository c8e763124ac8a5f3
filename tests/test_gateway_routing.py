"""Which replica a request should go to."""

from __future__ import annotations

import pytest

from gateway.routing import SESSION_SLACK_TOKENS, STALE_S, Gauges, Policy, ReplicaLoad, Work, pick, uncached, unknown

WORK = Work(prompt_tokens=4000, completion_tokens=100, block_tokens=250.0)


def best(
    *loads: ReplicaLoad,
    policy: Policy = Policy.LEAST_WORK,
    work: Work = WORK,
    matched: dict[str, int] | None = None,
    now: float = 0.0,
) -> str | None:
    chosen = pick(policy, loads, work, matched or {}, now)
    return chosen.id if chosen else None


@pytest.mark.parametrize("policy", Policy)
def test_of_nothing_comes_nothing_and_of_one_that_one(policy: Policy) -> None:
    assert best(policy=policy) is None
    assert best(ReplicaLoad("a", queued=10**9, outstanding=10**6), policy=policy) == "a"


def test_the_shortest_queue_in_tokens_takes_it_not_the_fewest_requests() -> None:
    assert best(ReplicaLoad("a", outstanding=1, queued=90_000), ReplicaLoad("b", outstanding=9, queued=900)) == "b"


def test_a_cached_beginning_is_worth_the_tokens_it_saves() -> None:
    matched = {"a": 8}  # 2,000 tokens
    assert best(ReplicaLoad("a", queued=1999), ReplicaLoad("b"), matched=matched) == "a"
    assert best(ReplicaLoad("a", queued=2001), ReplicaLoad("b"), matched=matched) == "b"


@pytest.mark.parametrize("policy", Policy)
def test_equals_take_turns(policy: Policy) -> None:
    loads = [ReplicaLoad(name) for name in "abc"]
    turns = []
    for n in range(1, 7):
        chosen = pick(policy, loads, WORK, {}, 0.0)
        assert chosen is not None
        chosen.last_chosen = n
        turns.append(chosen.id)
    assert turns == ["a", "b", "c", "a", "b", "c"]


def test_what_waits_at_an_engine_and_is_not_ours_counts_as_requests_of_usual_size() -> None:
    waits = Gauges(running=9, waiting=3, kv_usage=0.5, at=100.0)
    busy = ReplicaLoad("a", gauges=waits, unknown=unknown(waits, prefilling=1), typical=3000.0)
    assert busy.unknown == 2
    assert best(busy, ReplicaLoad("b", queued=5000), now=101.0) == "b"
    assert best(busy, ReplicaLoad("b", queued=7000), now=101.0) == "a"
    assert best(busy, ReplicaLoad("b", queued=5000), now=101.0 + STALE_S) == "a"  # gauges this old say nothing
    few = ReplicaLoad("b", outstanding=1)
    assert best(busy, few, policy=Policy.LEAST_OUTSTANDING, now=101.0) == "b"


def test_what_waits_at_an_engine_and_is_ours_counts_once() -> None:
    assert unknown(Gauges(running=2, waiting=5, kv_usage=0.5, at=0.0), prefilling=6) == 0


def test_an_engine_whose_kv_cache_is_full_makes_one_wait() -> None:
    assert unknown(Gauges(running=20, waiting=0, kv_usage=0.995, at=0.0), prefilling=0) == 1


def test_a_session_stays_unless_its_replica_is_much_busier() -> None:
    work = WORK._replace(session_replica="b")
    assert best(ReplicaLoad("a"), ReplicaLoad("b", queued=SESSION_SLACK_TOKENS), work=work) == "b"
    assert best(ReplicaLoad("a"), ReplicaLoad("b", queued=SESSION_SLACK_TOKENS + 1), work=work) == "a"
    assert best(ReplicaLoad("a"), ReplicaLoad("c", queued=1), work=work) == "a"  # its replica is gone


@pytest.mark.parametrize("policy", Policy)
def test_a_long_request_does_not_go_where_it_would_be_cut(policy: Policy) -> None:
    ending, lasting = ReplicaLoad("a", ends_at=1060.0), ReplicaLoad("b", outstanding=50, queued=50_000, last_chosen=9)
    long = WORK._replace(completion_tokens=2000)
    assert best(ending, lasting, work=WORK, policy=policy, now=1000.0) == "a"
    assert best(ending, lasting, work=long, policy=policy, now=1000.0) == "b"
    assert best(ending, lasting, work=long._replace(session_replica="a"), policy=policy, now=1000.0) == "b"


@pytest.mark.parametrize("policy", Policy)
def test_where_all_end_soon_those_that_last_the_longest_share_it(policy: Policy) -> None:
    long = WORK._replace(completion_tokens=20_000)
    first, second, third = (
        ReplicaLoad("a", ends_at=1060.0),
        ReplicaLoad("b", ends_at=1290.0),
        ReplicaLoad("c", ends_at=1300.0),
    )
    assert best(first, second, third, work=long, policy=policy, now=1000.0) == "b"
    second.last_chosen, second.outstanding, second.queued = 1, 1, 5000
    assert best(first, second, third, work=long, policy=policy, now=1000.0) == "c"
    assert best(first, work=long, policy=policy, now=1059.0) == "a"
    assert best(first, ReplicaLoad("gone", ends_at=900.0), work=long, policy=policy, now=1059.0) == "a"


def test_an_engine_always_computes_a_token() -> None:
    assert uncached(WORK, 8) == 2000
    assert uncached(WORK, 16) == uncached(WORK, 99) == 1
