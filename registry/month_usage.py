"""What was used in a month, by whom and of which model: sums of the ledger's days, never its single events."""

from __future__ import annotations

from dataclasses import dataclass

from registry.db import Database, rows


@dataclass(frozen=True, slots=True)
class Used:
    tenant: str
    user: str
    model: str
    requests: int
    cut: int  # of the requests, those that did not end normally
    prompt_tokens: int
    cached_tokens: int  # of the prompts'
    completion_tokens: int
    reasoning_tokens: int  # of the completions'
    microcredits: int


def used(db: Database, month: str, tenant: str | None) -> list[Used]:
    """In order of tenant, user and model. `month`: as "2026-11"; `tenant`: None for everybody."""
    found = rows(
        db,
        """SELECT tenant, user, model, sum(requests), sum(cut), sum(prompt_tokens), sum(cached_tokens),
               sum(completion_tokens), sum(reasoning_tokens), sum(microcredits)
           FROM daily WHERE day BETWEEN ? AND ? AND tenant = coalesce(?, tenant) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3""",
        f"{month}-01",
        f"{month}-31",
        tenant,
    )
    return [Used(*r) for r in found]
