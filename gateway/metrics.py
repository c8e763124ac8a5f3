"""What is counted, for /metrics. Counting is a few dict and list increments; the page is made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Labels = tuple[str, ...]


class Metrics:
    def finished(
        self,
        deployment: str,  # a known one's name (or an external model's), else "": never a client's own words
        kind: str,
        status: int,  # HTTP
        outcome: str,  # the ledger's Outcome, or the error's code
        tenant: str,  # "" where no key was recognised
        prompt_tokens: int,
        completion_tokens: int,
        queued_s: float,
        first_token_s: float | None,  # None: no generated output was sent
        total_s: float,
    ) -> None:
        """Once for each request, answered or refused."""
        raise NotImplementedError

    def retried(self, deployment: str, why: str) -> None:
        """`why` is an error's code: a word of ours, never a text."""
        raise NotImplementedError

    def ejected(self, fault: str) -> None:
        raise NotImplementedError

    def watch(self, name: str, text: str, labels: Labels, read: Callable[[], Mapping[Labels, float]]) -> None:
        """A gauge that is read at each scrape: {label values: value}. `name` without the prefix."""
        raise NotImplementedError
