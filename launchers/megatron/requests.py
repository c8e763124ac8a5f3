"""What is asked of a run, as its ranks learn of it: while they train, and before, while rank 0 prepares data."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from launchers.megatron.progress import Progress
from launchers.megatron.ranks import RankLost, Ranks
from launchers.megatron.stop import LOOK_EVERY_S, Asked, Stop, Stopped, Switches

LEAVE_S = 10.0  # for the other ranks to hear that the run ends


class Requests:
    """What is asked of a run that trains, as all ranks agree between two iterations."""

    def __init__(self, ranks: Ranks, stop: Stop, switches: Switches) -> None:
        self._ranks, self._stop, self._switches = ranks, stop, switches

    def agree(self, *more: bool) -> tuple[Any, ...]:
        """(Asked, and for each of `more` whether it holds on any rank): the same on all ranks, in one exchange."""
        switched = (self._ranks.first and self._switches.on(name) for name in ("stop", "save", "kill"))
        said = self._ranks.any(self._stop.requested, *switched, *more)
        return Asked(*said[:4]), *said[4:]

    def stop_now(self) -> None:
        """Raises Stopped, on all ranks, when the run shall end: there is nothing to save yet."""
        if self.agree()[0].ends:
            raise Stopped

    def taken(self, *names: str) -> None:
        """These switches were honoured."""
        if self._ranks.first:
            self._switches.turn_off(*names)


class Early:
    """Requests while data are prepared: there is no process group yet, only the store that rank 0 holds."""

    def __init__(self, ranks: Ranks, stop: Stop, switches: Switches, progress: Progress) -> None:
        self._ranks, self._stop, self._switches, self._progress = ranks, stop, switches, progress

    def prepared(self, documents: int) -> None:
        """On rank 0: so many documents are done. Raises Stopped when the run shall end."""
        self._progress.at(documents=documents)
        asked = self._stop.requested or self._switches.on("stop") or self._switches.on("kill")
        if asked or self._ranks.store.check(["stop"]):
            raise Stopped

    def tell(self, said: str) -> None:
        """On rank 0: the data are ready."""
        self._ranks.store.set("data", said)

    def leave(self) -> None:
        """On rank 0, whose store ends with it: tell the others that the run ends, and let them hear it."""
        self.tell("")
        until = time.monotonic() + LEAVE_S
        while self._ranks.store.add("heard", 0) < self._ranks.world - 1 and time.monotonic() < until:
            time.sleep(0.05)

    def wait(self) -> str:
        """On the others: what rank 0 tells. Raises Stopped when the run ends, RankLost when rank 0 did."""
        store = self._ranks.store
        try:
            while not self._told():
                if self._stop.requested:
                    store.set("stop", "")
            said = store.get("data").decode()
            store.add("heard", 1)
        except dist.DistNetworkError as e:
            raise RankLost(f"rank {self._ranks.rank}: rank 0 ended before the data was ready") from e
        if not said:
            raise Stopped
        return said

    def _told(self) -> bool:
        try:
            self._ranks.store.wait(["data"], timedelta(seconds=LOOK_EVERY_S))
        except dist.DistStoreError:  # not yet; preparing much text takes long
            return False
        return True
