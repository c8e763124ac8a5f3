"""Which replica a request should go to."""

from __future__ import annotations

import pytest

from gateway.routing import SESSION_SLACK_TOKENS, STALE_S, Gauges, Policy, ReplicaLoad, Work, others, pick, uncached

WORK = Work(prompt_tokens=4000, longest_tokens=100, block_tokens=250.0)


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


def gauged(load: ReplicaLoad, running: int, waiting: int, kv_usage: float = 0.5) -> ReplicaLoad:
    load.others = others(Gauges(running, waiting, kv_usage, at=100.0), load)
    return load


def test_what_waits_at_an_engine_and_is_not_ours_counts_as_requests_like_ours() -> None:
    ours = ReplicaLoad("a", outstanding=9, prefilling={1: 0}, prompt_tokens=3000.0, output_tokens=100.0)
    busy = gauged(ours, running=8, waiting=3)
    assert busy.others[:2] == (2, 6200)
    assert best(busy, ReplicaLoad("b", queued=6000), now=101.0) == "b"
    assert best(busy, ReplicaLoad("b", queued=6300), now=101.0) == "a"
    assert best(busy, ReplicaLoad("b", queued=6000), now=101.0 + STALE_S) == "a"  # gauges this old say nothing
    more = ReplicaLoad("b", outstanding=10)
    assert best(busy, more, policy=Policy.LEAST_OUTSTANDING, now=101.0) == "b"
    assert best(busy, more, policy=Policy.LEAST_OUTSTANDING, now=101.0 + STALE_S) == "a"


def test_what_runs_at_an_engine_and_is_not_ours_counts_with_its_output() -> None:
    assert gauged(ReplicaLoad("a", outstanding=2, output_tokens=100.0), running=12, waiting=0).others[:2] == (10, 1000)


@pytest.mark.parametrize(("running", "waiting"), [(2, 5), (7, 0), (3, 0), (0, 0), (8, 0)])
def test_what_is_at_an_engine_and_ours_counts_once(running: int, waiting: int) -> None:
    ours = ReplicaLoad("a", outstanding=8, prefilling=dict.fromkeys(range(6), 0))
    assert gauged(ours, running, waiting).others.requests == 0


def test_a_request_that_ended_since_the_gauges_were_read_is_nobodys() -> None:
    assert gauged(ReplicaLoad("a", outstanding=80), running=90, waiting=0).others.requests == 0


def test_an_engine_whose_kv_cache_is_full_makes_one_wait() -> None:
    assert gauged(ReplicaLoad("a", outstanding=20), running=20, waiting=0, kv_usage=0.995).others.requests == 1


def test_a_session_stays_unless_its_replica_is_much_busier() -> None:
    work = WORK._replace(session_replica="b")
    assert best(ReplicaLoad("a"), ReplicaLoad("b", queued=SESSION_SLACK_TOKENS), work=work) == "b"
    assert best(ReplicaLoad("a"), ReplicaLoad("b", queued=SESSION_SLACK_TOKENS + 1), work=work) == "a"
    assert best(ReplicaLoad("a"), ReplicaLoad("c", queued=1), work=work) == "a"  # its replica is gone


@pytest.mark.parametrize("policy", Policy)
def test_a_long_request_does_not_go_where_it_would_be_cut(policy: Policy) -> None:
    ending, lasting = ReplicaLoad("a", ends_at=1060.0), ReplicaLoad("b", outstanding=50, queued=50_000, last_chosen=9)
    long = WORK._replace(longest_tokens=2000)
    just = ReplicaLoad("c", ends_at=1110.0)  # within a minute of the other's end, and late enough
    assert best(ending, lasting, work=WORK, policy=policy, now=1000.0) == "a"
    assert best(ending, just, work=long, policy=policy, now=1000.0) == "c"
    assert best(ending, lasting, work=long, policy=policy, now=1000.0) == "b"
    assert best(ending, lasting, work=long._replace(session_replica="a"), policy=policy, now=1000.0) == "b"


@pytest.mark.parametrize("policy", Policy)
def test_where_all_end_soon_those_that_last_the_longest_share_it(policy: Policy) -> None:
    long = WORK._replace(longest_tokens=20_000)
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
