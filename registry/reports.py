"""What was used, by whom, and what is left: the gateway's ledger beside the scheduler's books. Read-only."""

from __future__ import annotations

from dataclasses import dataclass

from registry import accounting, ledger, limits, tenants
from registry.db import Database


@dataclass(frozen=True, slots=True)
class TokenRow:
    tenant: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    credits: float


@dataclass(frozen=True, slots=True)
class QuotaRow:
    """`token_budget` and `tokens_left` are None for a tenant without a budget."""

    tenant: str
    account: str | None
    requests_per_minute: int | None
    token_budget: int | None
    tokens_used: int
    tokens_left: int | None


@dataclass(frozen=True, slots=True)
class JobRow:
    job: str
    cluster: str
    purpose: str
    subject: str
    owner: str
    partition: str | None
    account: str | None
    state: str
    elapsed_s: int
    cpus: int
    gpus: int
    cpu_seconds: int
    gpu_seconds: int
    settled: bool


@dataclass(frozen=True, slots=True)
class UsageReport:
    tokens: list[TokenRow]
    quota: list[QuotaRow]
    jobs: list[JobRow]
    ledger_problems: list[str]  # empty: every posting sums to zero and the totals agree
    scheduler_error: str | None  # why `jobs` are only as they were last known, if they are


def usage(registry: Database, ledger_db: Database, scheduler_error: str | None = None) -> UsageReport:
    tokens = [
        TokenRow(
            tenant=r.tenant,
            model=r.model,
            requests=r.requests,
            prompt_tokens=r.prompt_tokens,
            completion_tokens=r.completion_tokens,
            credits=r.microcredits / 1e6,
        )
        for r in ledger.usage_by_tenant_and_model(ledger_db)
    ]
    quota = []
    used_by = ledger.tokens_by_tenant(ledger_db)
    for tenant in tenants.everyone(registry):
        used = used_by.get(tenant.name, 0)
        limited = limits.of(registry, limits.Subject.TENANT, tenant.name)
        left = None if limited.token_budget is None else max(0, limited.token_budget - used)
        quota.append(
            QuotaRow(tenant.name, tenant.account, limited.requests_per_minute, limited.token_budget, used, left)
        )
    jobs = [
        JobRow(
            job=j.job_id,
            cluster=j.cluster,
            purpose=j.purpose,
            subject=j.subject,
            owner=j.owner,
            partition=j.partition,
            account=j.account,
            state=j.state,
            elapsed_s=j.elapsed_s,
            cpus=j.cpus,
            gpus=j.gpus,
            cpu_seconds=j.cpu_seconds,
            gpu_seconds=j.gpu_seconds,
            settled=j.settled,
        )
        for j in accounting.everything(registry)
    ]
    return UsageReport(tokens, quota, jobs, ledger.check(ledger_db), scheduler_error)
