"""May this request run now? Every limit is checked together, and debited together or not at all.

Up to four subjects count a request: its key, its user, its tenant, and the model. That is the deployment, the adapter
or the external model that serves: a call to an endpoint counts for the target that was chosen for it, and when that
fails for the one that is asked next, which may be limited, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

from gateway import gates
from gateway.gates import Gate, Now, Shown
from gateway.rate_headers import Left
from gateway.windows import Calendar, Grain, Period, Standing
from registry.keys import LiveKey
from registry.ledger import Used
from registry.limits import Limits, Subject, user_name

FOUND_LIMIT = 20_000  # keys times models whose limits are remembered

Who = tuple[Subject, str]
Debit = tuple[Standing, Grain]  # whose, and what it counts in


@dataclass(frozen=True, slots=True)
class Limited:
    """What limits one key's calls of one model."""

    gates: tuple[Gate, ...] = ()
    tokens: bool = False  # whether any limit is on tokens
    credits: bool = False


UNLIMITED = Limited()


class Hold:
    """What is set aside for one request. Leaving the block gives it back, less what `used` and `paid` were set to."""

    __slots__ = ("_admission", "_before", "_debits", "_limited", "_model", "microcredits", "paid", "tokens", "used")

    def __init__(self, admission: Admission, limited: Limited, tokens: int, microcredits: int) -> None:
        self._admission = admission
        self._limited = limited
        self._debits: list[Debit] = []  # of the caller's key, user and tenant
        self._model: Debit | None = None
        self._before = (0, 0)  # what was used and paid when the model became the one that serves
        self.tokens = tokens
        self.microcredits = microcredits
        self.used = 0  # tokens
        self.paid = 0  # micro-credits

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._debits or self._model is not None:
            self._admission.settle(self)

    def move(self, caller: LiveKey, model: str, asked: str) -> None:
        """Another model is to serve: what is still held of the one before is given back to that.

        Raises TooManyRequests or BudgetExhausted where the new one's own limits have no room; then no model is debited.
        """
        self._admission.move(self, caller, model, asked)

    def left(self) -> tuple[Left | None, Left | None]:
        """Of the requests and of the tokens that the caller may still use now; None where they are not limited."""
        return self._admission.left(self._limited.gates) if self._limited.gates else (None, None)


class Admission:
    """`used` is what was used so far, from the ledger, of this calendar's `periods`.

    `clock` is monotonic and `wall` Unix time, in seconds.
    """

    def __init__(self, used: Used, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._calendar = Calendar(wall())
        self._used = used
        self._limits: Mapping[Who, Limits] = {}
        self._standings: dict[Who, Standing] = {}
        self._gates: dict[Who, Gate] = {}
        self._found: dict[tuple[str, str], Limited] = {}  # by the key's id and the model

    @property
    def periods(self) -> tuple[str, str, str]:
        """What the ledger is to be asked for: this day, this month, and all."""
        self._now()
        return self._calendar.words

    def settled(self, used: Used) -> None:
        """What the ledger says was used: another gateway may have settled some of it, or somebody taken some back.

        It may lack what was settled here a moment ago, so that nothing is used less but for what was taken back.
        """
        self._now()
        before, self._used = self._used.taken_back, used
        for (subject, name), standing in self._standings.items():
            for period, word in zip(Period, self._calendar.words, strict=True):
                who = (word, subject, name)
                back, known = used.taken_back.get(who, (0, 0)), before.get(who, (0, 0))
                # A roll-up makes it less again.
                new = (max(0, back[0] - known[0]), max(0, back[1] - known[1]))
                standing.at_least(period, used.totals.get(who, (0, 0)), new)

    def limit(self, limits: Mapping[Who, Limits]) -> bool:
        """What the registry says now. Whether it limits anybody who was not limited before.

        What those have used is known as of the last `settled`, which should come again soon; their requests that are
        running count once they are in the ledger.
        """
        if limits == self._limits:
            return False
        now = self._now().monotonic
        new = limits.keys() - self._standings.keys()
        kept = {who: s for who, s in self._standings.items() if who in limits or s.matters(now)}
        self._limits = limits
        self._standings = kept | {who: Standing() for who in new}
        self._gates = {who: gates.gate(*who, limited, self._standings[who]) for who, limited in limits.items()}
        self._found.clear()
        self.settled(self._used)
        return bool(new)

    def limits(self, caller: LiveKey, model: str) -> Limited:
        """`model`: what is to serve first."""
        found = self._found.get((caller.id, model))
        return self._look(caller, model) if found is None else found

    def admit(self, caller: LiveKey, model: str, tokens: int, microcredits: int, asked: str | None = None) -> Hold:
        """Raises TooManyRequests or BudgetExhausted; then nothing was debited.

        Tokens and micro-credits are what the request may use at most; it is told of `asked`, where the client knows
        the model by another name.
        """
        limited = self.limits(caller, model)
        hold = Hold(self, limited, tokens, microcredits)
        if limited.gates:
            self._debit(hold, limited.gates, asked or model)
        return hold

    def _debit(self, hold: Hold, of: tuple[Gate, ...], asked: str) -> None:
        tokens, microcredits = hold.tokens, hold.microcredits
        self._turn(self._wall())
        now = self._clock()
        for gate in of:
            by = gates.refuses(gate, tokens, microcredits, now)
            if by is not None:
                raise gates.refusal(gate, by, tokens, microcredits, self._now(), asked)
        for gate in of:
            standing = gate.standing
            if gate.burst is not None:
                standing.take(now, gate.burst, gate.rate)
            debit = standing, standing.start(now, tokens, microcredits)
            if gate.subject is Subject.MODEL:
                hold._model = debit
            else:
                hold._debits.append(debit)

    def settle(self, hold: Hold) -> None:
        """Only Hold calls this."""
        self._turn(self._wall())
        now = self._clock()
        tokens, microcredits, used, paid = hold.tokens, hold.microcredits, hold.used, hold.paid
        for standing, grain in hold._debits:
            standing.settle(now, grain, tokens, microcredits, used, paid)
        self._settle_model(hold, now)

    def move(self, hold: Hold, caller: LiveKey, model: str, asked: str) -> None:
        """Only Hold calls this."""
        self._turn(self._wall())
        self._settle_model(hold, self._clock())
        hold._before = hold.used, hold.paid
        hold._limited = self.limits(caller, model)
        self._debit(hold, tuple(g for g in hold._limited.gates if g.subject is Subject.MODEL), asked)

    def _settle_model(self, hold: Hold, now: float) -> None:
        if hold._model is not None:
            standing, grain = hold._model
            used, paid = hold._before
            standing.settle(now, grain, hold.tokens, hold.microcredits, hold.used - used, hold.paid - paid)
            hold._model = None

    def left(self, of: tuple[Gate, ...]) -> tuple[Left | None, Left | None]:
        return gates.left(of, self._now())

    def shown(self, subject: Subject, name: str) -> list[Shown]:
        """What is left of each limit of a subject; empty for one without."""
        gate = self._gates.get((subject, name))
        return [] if gate is None else gates.shown(gate, self._now())

    def _look(self, caller: LiveKey, model: str) -> Limited:
        who = (
            (Subject.KEY, caller.counts_as),
            (Subject.USER, user_name(caller.tenant.name, caller.user)),
            (Subject.TENANT, caller.tenant.name),
            (Subject.MODEL, model),
        )
        of = tuple(gate for gate in map(self._gates.get, who) if gate is not None)
        limited = UNLIMITED
        if of:
            limited = Limited(of, any(g.counts_tokens for g in of), any(g.credits for g in of))
        if len(self._found) >= FOUND_LIMIT:
            self._found.clear()
        self._found[caller.id, model] = limited
        return limited

    def _now(self) -> Now:
        wall = self._wall()
        self._turn(wall)
        return Now(self._clock(), wall, self._calendar)

    def _turn(self, wall: float) -> None:
        if over := self._calendar.turn(wall):
            for period in over:
                for standing in self._standings.values():
                    standing.over(period)
            self.settled(self._used)  # it may be a day that was before
