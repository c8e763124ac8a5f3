"""Limits of four subjects, checked together and debited together: by scripted clocks."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import gates
from gateway.admission import Admission, Hold
from gateway.errors import BudgetExhausted, TooManyRequests
from gateway.windows import GRAIN_S, WINDOW_S, Calendar, Period
from registry.keys import LiveKey, Scope
from registry.ledger import Totals, Used
from registry.limits import Limits, Subject
from registry.tenants import Tenant

KEY, USER, TENANT, MODEL = Subject.KEY, Subject.USER, Subject.TENANT, Subject.MODEL
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp()
DAY_S = 86400.0


def caller(key: str = "key-1", user: str = "ann", tenant: str = "physics") -> LiveKey:
    return LiveKey(key, Tenant(tenant, "root", None, ""), frozenset({Scope.INFERENCE}), user)


ANN = caller()


class Counter:
    """An Admission and its clocks."""

    def __init__(self, limits: dict[tuple[Subject, str], Limits], totals: Totals | None = None) -> None:
        self.now = 1000.0
        self.wall = NOON
        self.admission = Admission(Used(totals or {}, {}), lambda: self.now, lambda: self.wall)
        self.admission.limit(limits)

    def admit(self, tokens: int = 1, microcredits: int = 0, who: LiveKey = ANN, model: str = "tiny") -> Hold:
        return self.admission.admit(who, model, tokens, microcredits)

    def use(self, tokens: int, paid: int = 0, **more: Any) -> None:
        """A request that used just what it was thought to."""
        with self.admit(tokens, paid, **more) as hold:
            hold.used, hold.paid = tokens, paid

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    def left(self, subject: Subject = TENANT, name: str = "physics") -> dict[str, float]:
        return {shown.limit: shown.left for shown in self.admission.shown(subject, name)}


def tenant(**limits: Any) -> Counter:
    return Counter({(TENANT, "physics"): Limits(**limits)})


def test_requests_are_counted_over_any_sixty_seconds() -> None:
    limited = tenant(requests_per_minute=2)
    limited.admit()
    limited.later(30)
    limited.admit()
    limited.later(20)
    with pytest.raises(TooManyRequests) as refused:
        limited.admit()
    assert refused.value.retry_after == 10
    limited.later(10)
    limited.admit()
    with pytest.raises(TooManyRequests):
        limited.admit()


def test_many_starts_are_remembered_in_little_room() -> None:
    limited = tenant(requests_per_minute=100_000)
    for _ in range(50_000):
        limited.admit()
        limited.later(1e-4)
    (standing,) = limited.admission._standings.values()
    assert standing.minute_requests == 50_000
    assert len(standing.minute) <= 501  # of 5 s
    limited.later(54)
    assert limited.left() == {"requests_per_minute": 50_000}
    limited.later(6)
    assert limited.left() == {"requests_per_minute": 100_000}


def test_a_burst_may_start_at_once_and_the_others_evenly_after_it() -> None:
    limited = tenant(requests_per_minute=60, burst=3)
    for _ in range(3):
        limited.admit()
    with pytest.raises(TooManyRequests, match=r"3 requests at once, of 60 a minute: 0 left, .* in 1 s") as refused:
        limited.admit()
    assert refused.value.retry_after == 1
    limited.later(0.5)
    with pytest.raises(TooManyRequests):
        limited.admit()  # what was refused took nothing from the bucket
    limited.later(0.5)
    limited.admit()
    limited.later(100)
    assert limited.left()["burst"] == 3


def test_tokens_of_a_minute_are_estimated_until_a_request_ends() -> None:
    limited = tenant(tokens_per_minute=100)
    with limited.admit(80) as hold:
        with pytest.raises(TooManyRequests, match=r"100 tokens a minute .* 20 left, .* may need 30") as refused:
            limited.admit(30)
        assert (refused.value.retry_after, refused.value.type) == (60, "tokens")
        hold.used = 50
    limited.use(30)
    limited.later(59)
    with pytest.raises(TooManyRequests) as refused:
        limited.admit(21)
    assert refused.value.retry_after == 1
    limited.later(1)
    limited.use(100)


def test_a_request_that_outlives_the_minute_leaves_the_tokens_of_the_next_alone() -> None:
    limited = tenant(tokens_per_minute=100)
    with limited.admit(80) as hold:
        limited.later(70)
        limited.use(100)
        hold.used = 10
    assert limited.left() == {"tokens_per_minute": 0}
    limited.later(60)
    assert limited.left() == {"tokens_per_minute": 100}


def test_what_no_minute_has_is_not_worth_trying_again() -> None:
    with pytest.raises(TooManyRequests, match="more than any minute has") as refused:
        tenant(tokens_per_minute=100).admit(101)
    assert (refused.value.retry_after, refused.value.should_retry) == (None, False)
    with pytest.raises(TooManyRequests) as refused:
        tenant(requests_per_minute=0).admit()
    assert (refused.value.retry_after, refused.value.should_retry) == (None, False)


def test_as_many_run_at_a_time_as_may() -> None:
    limited = tenant(concurrent_requests=2)
    with limited.admit():
        with limited.admit(), pytest.raises(TooManyRequests, match="2 requests running at a time"):
            limited.admit()
        with pytest.raises(ZeroDivisionError), limited.admit():
            raise ZeroDivisionError
        assert limited.left() == {"concurrent_requests": 1}
    assert limited.left() == {"concurrent_requests": 2}


@pytest.mark.parametrize(
    ("limit", "refusal"),
    [
        ({"tokens_per_day": 100}, r"tenant physics may use 100 tokens a day: 10 left, this request may need 11 "),
        ({"tokens_per_month": 100}, r"100 tokens a month: 10 left, .*; the month ends in 2 d 12 h \(2026-12-01 00:00"),
        ({"token_budget": 100}, r"100 tokens in all: 10 left, this request may need 11 \(its prompt, .* max_tokens"),
        ({"credits_per_day": 0.00019}, r"may spend 0.00019 credits a day: 0.00001 left, .* may cost 0.000011 "),
        ({"credits_per_month": 0.00019}, r"0.00019 credits a month: 0.00001 left"),
        ({"spend_ceiling": 0.00019}, r"0.00019 credits in all: 0.00001 left"),
    ],
)
def test_a_spent_budget_says_what_is_left_of_which_window(limit: dict[str, Any], refusal: str) -> None:
    limited = tenant(**limit)
    limited.use(90, 180)
    with pytest.raises(BudgetExhausted, match=refusal) as refused:
        limited.admit(11, 11)
    assert (refused.value.retry_after, refused.value.should_retry) == (None, False)
    limited.use(10, 10)


def test_a_refusal_says_when_the_day_ends() -> None:
    limited = tenant(tokens_per_day=1000)
    limited.later(9 * 3600 + 47 * 60)
    limited.use(880)
    with pytest.raises(BudgetExhausted, match=r"120 left, .* need 500 .*; the day ends in 2 h 13 min \(00:00 UTC\)$"):
        limited.admit(500)


def test_waiting_is_advised_only_when_it_helps() -> None:
    limited = tenant(token_budget=100, tokens_per_day=1000)
    limited.use(50)
    with pytest.raises(BudgetExhausted) as spent:
        limited.admit(51)
    assert spent.value.retry_after is None
    with limited.admit(40), pytest.raises(BudgetExhausted, match="10 left, 40 held by requests") as held:
        limited.admit(20)
    assert held.value.retry_after == 1
    daily = tenant(tokens_per_day=100)
    daily.later(12 * 3600 - 90)
    daily.use(100)
    with pytest.raises(BudgetExhausted, match="ends in 2 min") as soon:
        daily.admit(1)
    assert soon.value.retry_after == 90
    with pytest.raises(BudgetExhausted) as never:
        daily.admit(101)
    assert never.value.retry_after is None


def test_a_hold_is_given_back_however_the_request_ends() -> None:
    limited = tenant(token_budget=100)
    with pytest.raises(ZeroDivisionError), limited.admit(100):
        raise ZeroDivisionError
    with limited.admit(100) as hold:
        hold.used = 60
    with pytest.raises(BudgetExhausted):
        limited.admit(41)
    limited.admit(40)


EACH = {
    "requests_per_minute": (1, TooManyRequests),
    "concurrent_requests": (1, TooManyRequests),
    "tokens_per_minute": (10, TooManyRequests),
    "tokens_per_day": (10, BudgetExhausted),
    "token_budget": (10, BudgetExhausted),
    "spend_ceiling": (1e-5, BudgetExhausted),
}


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("who", [(KEY, "key-1"), (USER, "ann"), (TENANT, "physics"), (MODEL, "tiny")])
def test_what_one_subject_refuses_is_debited_of_none(who: tuple[Subject, str], name: str) -> None:
    most, error = EACH[name]
    wide = Limits(1000, 1000, 1000, 1000, 1000, 1000, 1000.0, 1000.0, 1000, 1000.0)
    everybody = {(KEY, "key-1"): wide, (USER, "ann"): wide, (TENANT, "physics"): wide, (MODEL, "tiny"): wide}
    limited = Counter({**everybody, who: Limits(**{name: most})})
    with limited.admit(10, 10):
        before = [limited.left(*each) for each in everybody]
        with pytest.raises(error, match=f"{who[0]} {who[1]} may"):
            limited.admit(10, 10)
        assert [limited.left(*each) for each in everybody] == before


def test_each_subject_counts_its_own_requests_only() -> None:
    limited = Counter(
        {
            (KEY, "key-1"): Limits(token_budget=10),
            (USER, "ann"): Limits(token_budget=20),
            (TENANT, "physics"): Limits(token_budget=30),
            (MODEL, "tiny"): Limits(token_budget=40),
        }
    )
    for who, refused in (
        (caller(), "key key-1"),
        (caller("key-2"), "user ann"),
        (caller("key-3", "bob"), "tenant physics"),
        (caller("key-4", "bob", "biology"), "model tiny"),
    ):
        limited.use(10, who=who)
        with pytest.raises(BudgetExhausted, match=f"^{refused} "):
            limited.admit(10, who=who)
    limited.use(10, who=caller("key-4", "bob", "biology"), model="large")


def test_a_model_is_named_as_the_client_calls_it() -> None:
    limited = Counter({(MODEL, "llama-v7"): Limits(token_budget=1)})
    with pytest.raises(BudgetExhausted, match=r"^model chat may") as refused:
        limited.admission.admit(ANN, "llama-v7", 2, 0, "chat")
    assert "llama-v7" not in str(refused.value)


def test_what_was_used_before_the_start_counts_in_its_own_window() -> None:
    totals = {
        ("2026-11-28", "tenant", "physics"): (10, 1),
        ("2026-11", "tenant", "physics"): (200, 2),
        ("all", "tenant", "physics"): (3000, 3_000_000),
        ("2026-11-27", "tenant", "physics"): (9, 9),
    }
    every = Limits(tokens_per_day=100, tokens_per_month=1000, token_budget=10_000, spend_ceiling=5.0)
    limited = Counter({(TENANT, "physics"): every}, totals)
    assert limited.left() == {
        "tokens_per_day": 90,
        "tokens_per_month": 800,
        "token_budget": 7000,
        "spend_ceiling": 2.0,
    }


def test_days_and_months_begin_at_midnight_utc() -> None:
    limited = tenant(tokens_per_day=100, tokens_per_month=250, token_budget=1000)
    limited.use(100)
    limited.later(DAY_S / 2 - 1)
    with pytest.raises(BudgetExhausted, match="day ends in 1 s"):
        limited.admit()
    limited.later(1)
    limited.use(100)  # 29 November
    limited.later(DAY_S)
    with pytest.raises(BudgetExhausted, match="250 tokens a month: 50 left"):
        limited.admit(51)
    limited.later(DAY_S)
    assert limited.left() == {"tokens_per_day": 100, "tokens_per_month": 250, "token_budget": 800}


def test_what_is_running_at_midnight_stays_held_and_counts_on_the_day_on_which_it_ends() -> None:
    limited = tenant(tokens_per_day=100)
    with limited.admit(80) as hold:
        limited.later(DAY_S)
        assert limited.left() == {"tokens_per_day": 20}
        hold.used = 50
    assert limited.left() == {"tokens_per_day": 50}


def test_a_clock_that_is_set_back_gives_no_budget_back() -> None:
    limited = tenant(tokens_per_day=100, tokens_per_month=150)
    limited.use(100)
    limited.wall += 3 * DAY_S
    limited.use(100)  # 1 December
    for back in (DAY_S, DAY_S / 2):
        limited.wall -= back
        with pytest.raises(BudgetExhausted):
            limited.admit()
        limited.admission.settled(Used({("2026-11-30", "tenant", "physics"): (0, 0)}, {}))
        assert limited.left() == {"tokens_per_day": 0, "tokens_per_month": 50}


def test_a_clock_that_was_years_ahead_for_a_moment_freezes_no_budget() -> None:
    totals = {("2026-11-28", "tenant", "physics"): (70, 0), ("2026-11", "tenant", "physics"): (80, 0)}
    limited = Counter({(TENANT, "physics"): Limits(tokens_per_day=100, tokens_per_month=150)}, totals)
    limited.wall += 5 * 365 * DAY_S
    limited.use(100)
    limited.wall -= 5 * 365 * DAY_S
    assert limited.left() == {"tokens_per_day": 30, "tokens_per_month": 70}
    assert limited.admission.periods == ("2026-11-28", "2026-11", "all")
    limited.use(30)
    limited.later(DAY_S)
    assert limited.left() == {"tokens_per_day": 100, "tokens_per_month": 40}


def test_what_is_taken_back_in_the_ledger_may_be_used_again_once() -> None:
    limited = tenant(tokens_per_month=100, spend_ceiling=1.0)
    limited.use(90, 900_000)
    who = ("2026-11", "tenant", "physics"), ("all", "tenant", "physics")
    limited.admission.settled(Used(dict.fromkeys(who, (90, 900_000)), {}))
    # 40 of it; and 5 were used meanwhile that the ledger does not have yet.
    limited.use(5)
    taken_back = Used(dict.fromkeys(who, (50, 500_000)), dict.fromkeys(who, (40, 400_000)))
    for _ in range(2):
        limited.admission.settled(taken_back)
        assert limited.left() == {"tokens_per_month": 45, "spend_ceiling": 0.5}
    later = Used(dict.fromkeys(who, (-20, 0)), dict.fromkeys(who, (115, 900_000)))
    limited.admission.settled(later)  # also of another month's
    assert limited.left() == {"tokens_per_month": 100, "spend_ceiling": 1.0}


def test_a_fallback_has_limits_of_its_own_and_the_first_is_charged_for_its_part_only() -> None:
    each = Limits(token_budget=100, spend_ceiling=1.0, concurrent_requests=1)
    limited = Counter({(MODEL, "tiny"): each, (MODEL, "large"): each, (TENANT, "physics"): each})
    with limited.admit(60, 600_000) as hold:
        hold.used, hold.paid = 10, 100_000  # by tiny, which then failed
        hold.move(ANN, "large", "chat")
        assert limited.left(MODEL, "tiny") == {"concurrent_requests": 1, "token_budget": 90, "spend_ceiling": 0.9}
        assert limited.left(MODEL, "large") == {"concurrent_requests": 0, "token_budget": 40, "spend_ceiling": 0.4}
        hold.used, hold.paid = 30, 300_000
    assert limited.left(MODEL, "tiny")["token_budget"] == 90
    assert limited.left(MODEL, "large") == {"concurrent_requests": 1, "token_budget": 80, "spend_ceiling": 0.8}
    assert limited.left() == {"concurrent_requests": 1, "token_budget": 70, "spend_ceiling": 0.7}

    # One whose limit has no room takes nothing, and the one before is charged no more.
    with limited.admit(10, who=caller("key-2", "bob", "biology"), model="large"), limited.admit(50) as hold:
        with pytest.raises(TooManyRequests, match=r"^model chat may have 1 requests running"):
            hold.move(ANN, "large", "chat")
        assert limited.left(MODEL, "tiny") == {"concurrent_requests": 1, "token_budget": 90, "spend_ceiling": 0.9}
        assert limited.left()["token_budget"] == 20
    assert limited.left()["token_budget"] == 70


def test_a_limit_that_is_set_live_counts_what_was_used_before() -> None:
    limited = Counter({}, {("all", "user", "ann"): (60, 0)})
    limited.use(60)
    assert limited.admission.limit({(USER, "ann"): Limits(token_budget=100)})  # to be read anew
    with pytest.raises(BudgetExhausted, match="40 left"):
        limited.admit(41)
    limited.admission.settled(Used({("all", "user", "ann"): (90, 0)}, {}))
    with pytest.raises(BudgetExhausted, match="10 left"):
        limited.admit(11)
    limited.admission.settled(Used({("all", "user", "ann"): (70, 0)}, {}))  # a look from before
    assert limited.left(USER, "ann") == {"token_budget": 10}


def test_limits_go_up_and_down_without_a_restart() -> None:
    who = (TENANT, "physics")
    limited = tenant(token_budget=100, requests_per_minute=10)
    with limited.admit(60) as hold:
        assert not limited.admission.limit({who: Limits(token_budget=50, requests_per_minute=1)})
        with pytest.raises(TooManyRequests):
            limited.admit()
        limited.admission.limit({who: Limits(token_budget=50)})
        with pytest.raises(BudgetExhausted):
            limited.admit()
        limited.admission.limit({who: Limits(token_budget=200, concurrent_requests=1)})
        with pytest.raises(TooManyRequests):
            limited.admit()
        hold.used = 60
    assert limited.left() == {"token_budget": 140, "concurrent_requests": 1}


def test_a_limit_that_is_taken_away_and_set_again_forgets_nothing() -> None:
    who = (TENANT, "physics")
    limited = tenant(concurrent_requests=1, requests_per_minute=2)
    with limited.admit():
        limited.admission.limit({})
        limited.admit()  # unlimited
        limited.later(100)
        limited.admission.limit({(USER, "bob"): Limits(token_budget=1)})
        limited.admission.limit({who: Limits(concurrent_requests=1)})
        with pytest.raises(TooManyRequests):
            limited.admit()
    assert limited.left() == {"concurrent_requests": 1}


def test_who_is_limited_no_more_is_forgotten_in_time() -> None:
    limited = tenant(requests_per_minute=2)
    limited.use(1)
    limited.admission.limit({})
    assert limited.admission._standings
    limited.later(WINDOW_S)
    limited.admission.limit({(USER, "bob"): Limits(token_budget=1)})
    assert list(limited.admission._standings) == [(USER, "bob")]


def test_the_tightest_limit_is_told() -> None:
    limited = Counter(
        {
            (KEY, "key-1"): Limits(requests_per_minute=10, tokens_per_minute=5000),
            (TENANT, "physics"): Limits(requests_per_minute=5, tokens_per_day=1000, token_budget=9000),
        }
    )
    with limited.admit(100) as hold:
        requests, tokens = hold.left()
    assert requests is not None and tokens is not None
    assert (requests.limit, requests.remaining, requests.reset_s) == (5, 4, 60)
    assert (tokens.limit, tokens.remaining, tokens.reset_s) == (1000, 900, DAY_S / 2)
    with limited.admit(0, who=caller("key-9", "bob", "biology")) as hold:
        assert hold.left() == (None, None)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (59, "59 s"),
        (60.5, "2 min"),
        (7979, "2 h 13 min"),
        (3600, "1 h 0 min"),
        (90000, "1 d 1 h"),
        (90060, "1 d 2 h"),
        (86399, "1 d 0 h"),
    ],
)
def test_a_wait_is_said_in_a_persons_units(seconds: float, words: str) -> None:
    assert gates.spoken(seconds) == words


def test_a_calendar_knows_leap_days_and_the_end_of_years() -> None:
    calendar = Calendar(datetime(2028, 2, 29, 23, 59, 59, tzinfo=UTC).timestamp())
    assert calendar.words == ("2028-02-29", "2028-02", "all")
    assert calendar.turn(calendar.ends[Period.DAY]) == (Period.DAY, Period.MONTH)
    assert calendar.words[:2] == ("2028-03-01", "2028-03")
    assert calendar.turn(datetime(2028, 12, 31, tzinfo=UTC).timestamp()) == (Period.DAY, Period.MONTH)
    assert calendar.ends[:2] == (datetime(2029, 1, 1, tzinfo=UTC).timestamp(),) * 2


def test_two_hundred_at_once_get_no_more_than_two_levels_allow() -> None:
    limited = Counter({(TENANT, "physics"): Limits(token_budget=1000), (KEY, "key-1"): Limits(spend_ceiling=0.0007)})
    with ExitStack() as running:
        admitted = 0
        for _ in range(200):
            try:
                running.enter_context(limited.admit(100, 100))
            except BudgetExhausted:
                continue
            admitted += 1
        assert admitted == 7  # by the key; the tenant's would have been ten
    assert limited.left() == {"token_budget": 1000}


# -- any order of events ----------------------------------------------------------------------------------------------

CALLERS = [caller(f"key-{k}", user, name) for k, (user, name) in enumerate([("ann", "a"), ("bob", "a"), ("ann", "b")])]
WHO = [(KEY, "key-0"), (KEY, "key-2"), (USER, "ann"), (USER, "bob"), (TENANT, "a"), (TENANT, "b"), (MODEL, "tiny")]

some = st.none() | st.integers(0, 300)
few = st.none() | st.integers(0, 5)
limits = st.builds(
    lambda requests, burst, **others: Limits(requests, None if requests is None else burst, **others),
    few,
    st.none() | st.integers(1, 4),
    tokens_per_minute=some,
    concurrent_requests=few,
    tokens_per_day=some,
    tokens_per_month=some,
    credits_per_day=st.none() | st.integers(0, 300).map(lambda n: n / 1e6),
    credits_per_month=st.none() | st.integers(0, 300).map(lambda n: n / 1e6),
    token_budget=some,
    spend_ceiling=st.none() | st.integers(0, 300).map(lambda n: n / 1e6),
)
events = st.one_of(
    st.tuples(st.just("admit"), st.sampled_from(CALLERS), st.sampled_from(["tiny", "large"]), st.integers(0, 100)),
    st.tuples(st.just("end"), st.integers(0, 20), st.floats(0, 1), st.booleans()),
    st.tuples(st.just("pass"), st.floats(0, 100) | st.floats(0, 3 * DAY_S)),
    st.tuples(st.just("set"), st.floats(-2 * DAY_S, 2 * DAY_S)),
    st.tuples(st.just("limit"), st.dictionaries(st.sampled_from(WHO), limits, max_size=4)),
)


def sane(limited: Counter, running: list[tuple[Hold, LiveKey, str, int]]) -> None:
    """What is held and in flight is what the open holds say; what leaves the minute leaves its sums."""
    for standing in limited.admission._standings.values():
        assert standing.running >= 0 and standing.tokens.held >= 0 and standing.credits.held >= 0
        assert standing.minute_requests == sum(g.requests for g in standing.minute)
        assert standing.minute_tokens == sum(g.tokens for g in standing.minute) >= 0
        mine = [n for hold, _, _, n in running if any(g.standing is standing for g in hold._limited.gates)]
        assert (standing.running, standing.tokens.held, standing.credits.held) == (len(mine), sum(mine), sum(mine))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(WHO), limits), st.lists(events, max_size=60))
def test_whatever_happens_no_limit_is_passed_and_what_is_held_is_what_runs(
    first: dict[tuple[Subject, str], Limits], script: list[tuple[Any, ...]]
) -> None:
    limited = Counter(first)
    said = first
    running: list[tuple[Hold, LiveKey, str, int]] = []
    for event in script:
        match event:
            case "admit", who, model, tokens:
                before = {each: limited.left(*each) for each in said}
                try:
                    running.append((limited.admission.admit(who, model, tokens, tokens), who, model, tokens))
                except (TooManyRequests, BudgetExhausted):
                    assert {each: limited.left(*each) for each in said} == before
                else:
                    own = [(KEY, who.id), (USER, who.user), (TENANT, who.tenant.name), (MODEL, model)]
                    for each in own:
                        for one in limited.admission.shown(*each):
                            assert one.used + one.held <= one.allowed + 1e-9 or (
                                tokens == 0 and "request" not in one.limit
                            )
            case "end", index, share, cut if running:
                hold, _, _, tokens = running.pop(index % len(running))
                with hold:
                    if not cut:
                        hold.used = hold.paid = int(tokens * share)
            case "pass", seconds:
                limited.later(seconds)
            case "set", seconds:
                words = limited.admission.periods
                believed = limited.admission._calendar.day_ends - 2 * DAY_S
                limited.wall += seconds
                later, earlier = max(words, limited.admission.periods), min(words, limited.admission.periods)
                assert limited.admission.periods == (later if limited.wall >= believed else earlier)
            case "limit", changed:
                said = changed
                limited.admission.limit(changed)
        sane(limited, running)
    for hold, *_ in running:
        with hold:
            pass
    sane(limited, [])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 50)), max_size=80), st.integers(1, 8), st.integers(1, 200))
def test_no_sixty_seconds_have_more_than_a_minute_may(script: list[tuple[float, int]], most: int, tokens: int) -> None:
    limited = tenant(requests_per_minute=most, tokens_per_minute=tokens)
    started: list[tuple[float, int]] = []
    for wait, needs in script:
        limited.later(wait)
        try:
            limited.use(needs)
        except TooManyRequests:
            continue
        started.append((limited.now, needs))
    for at, _ in started:
        within = [needs for other, needs in started if at <= other < at + WINDOW_S - GRAIN_S]
        assert len(within) <= most and sum(within) <= tokens
