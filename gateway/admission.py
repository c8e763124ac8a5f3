"""May this request run now? Every limit is checked together, and debited together or not at all.

Up to four subjects count a request: its key, its user, its tenant, and the model. That is the deployment, the adapter
or the external model that is to serve first: a call to an endpoint counts for the target that was chosen for it, and
goes on counting there when a fallback serves it after all (the ledger books it to the one that did).
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
from registry.limits import Limits, Subject, user_name

FOUND_LIMIT = 20_000  # keys times models whose limits are remembered

Who = tuple[Subject, str]
Debit = tuple[Standing, Grain]  # whose, and what it counts in
Totals = Mapping[tuple[str, str, str], tuple[int, int]]  # as registry.ledger.totals has it


@dataclass(frozen=True, slots=True)
class Limited:
    """What limits one key's calls of one model."""

    gates: tuple[Gate, ...] = ()
    tokens: bool = False  # whether any limit is on tokens
    credits: bool = False


UNLIMITED = Limited()


class Hold:
    """What is set aside for one request. Leaving the block gives it back, less what `used` and `paid` were set to."""

    __slots__ = ("_admission", "_debits", "_limited", "microcredits", "paid", "tokens", "used")

    def __init__(
        self, admission: Admission, limited: Limited, debits: list[Debit], tokens: int, microcredits: int
    ) -> None:
        self._admission = admission
        self._limited = limited
        self._debits = debits  # one for each gate
        self.tokens = tokens
        self.microcredits = microcredits
        self.used = 0  # tokens
        self.paid = 0  # micro-credits

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._debits:
            self._admission.settle(self, self._debits)

    def left(self) -> tuple[Left | None, Left | None]:
        """Of the requests and of the tokens that the caller may still use now; None where they are not limited."""
        return self._admission.left(self._limited.gates) if self._debits else (None, None)


class Admission:
    """`totals` is what was used so far, from the ledger, of this calendar's `periods`.

    `clock` is monotonic and `wall` Unix time, in seconds.
    """

    def __init__(self, totals: Totals, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._calendar = Calendar(wall())
        self._totals = totals
        self._limits: Mapping[Who, Limits] = {}
        self._standings: dict[Who, Standing] = {}
        self._gates: dict[Who, Gate] = {}
        self._found: dict[tuple[str, str], Limited] = {}  # by the key's id and the model

    @property
    def periods(self) -> tuple[str, str, str]:
        """What the ledger is to be asked for: this day, this month, and all."""
        self._now()
        return self._calendar.words

    def settled(self, totals: Totals) -> None:
        """What the ledger says was used: another gateway may have settled some of it. Nothing is ever used less."""
        self._now()
        self._totals = totals
        for (subject, name), standing in self._standings.items():
            for period, word in zip(Period, self._calendar.words, strict=True):
                standing.at_least(period, *totals.get((word, subject, name), (0, 0)))

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
        self.settled(self._totals)
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
        if not limited.gates:
            return Hold(self, limited, [], tokens, microcredits)
        self._turn(self._wall())
        now = self._clock()
        for gate in limited.gates:
            by = gates.refuses(gate, tokens, microcredits, now)
            if by is not None:
                raise gates.refusal(gate, by, tokens, microcredits, self._now(), asked or model)
        debits: list[Debit] = []
        for gate in limited.gates:
            standing = gate.standing
            if gate.burst is not None:
                standing.take(now, gate.burst, gate.rate)
            debits.append((standing, standing.start(now, tokens, microcredits)))
        return Hold(self, limited, debits, tokens, microcredits)

    def settle(self, hold: Hold, debits: list[Debit]) -> None:
        """Only Hold calls this."""
        self._turn(self._wall())
        now = self._clock()
        tokens, microcredits, used, paid = hold.tokens, hold.microcredits, hold.used, hold.paid
        for standing, grain in debits:
            standing.settle(now, grain, tokens, microcredits, used, paid)

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
        for period in self._calendar.turn(wall):
            for standing in self._standings.values():
                standing.over(period)
