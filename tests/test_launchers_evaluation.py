"""A promotion's steps: what is asked of them, what they wait for, what they call sane, and what they require."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from specs import convert, evaluate, folder_of, smoke

from launchers import claims, facts
from launchers.announce import announce
from launchers.evaluation import before
from launchers.evaluation.adoption import take_up
from launchers.evaluation.evaluate import in_words
from launchers.evaluation.promote import Asked, steps, submit
from launchers.evaluation.results import Requirement, Result, believed, of_harness, requirement, unmet
from launchers.evaluation.smoke import fault
from launchers.evaluation.tasks import digest
from launchers.launch import request_for
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobRequest, SchedulerError
from launchers.spec import ConvertSpec, EvaluateSpec, Promotion, SmokeSpec, SpecError, dump, load
from registry import clock, promotions, runs
from registry.db import Database
from registry.site import Site, load_site

NOW = "2026-01-01T00:00:00.000000Z"
TASKS = Path(__file__).parent / "tasks"
ACC = Result("next_word", "acc", "none", 0.75, 0.25, 4, True)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("piqa.acc>=0.7", Requirement("piqa", "acc", None, ">=", 0.7)),
        ("wiki.word_perplexity < 20", Requirement("wiki", "word_perplexity", None, "<", 20.0)),
        ("gsm8k.exact_match,strict-match>0", Requirement("gsm8k", "exact_match", "strict-match", ">", 0.0)),
        ("humaneval.pass@1>=0.3", Requirement("humaneval", "pass@1", None, ">=", 0.3)),
        ("humaneval.pass@1,create_test>=0.3", Requirement("humaneval", "pass@1", "create_test", ">=", 0.3)),
        ("mmlu.pro.acc<=1e-1", Requirement("mmlu.pro", "acc", None, "<=", 0.1)),
    ],
)
def test_a_requirement_is_read_as_it_is_written(text: str, read: Requirement) -> None:
    assert requirement(text) == read


@pytest.mark.parametrize(
    "text", ["piqa", "piqa.acc", "acc>=1", "piqa.acc>=much", "piqa.acc==1", "p.acc>=nan", ".acc>1"]
)
def test_what_is_no_requirement_is_refused_by_its_words(text: str) -> None:
    with pytest.raises(ValueError, match="is no requirement"):
        requirement(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("next_word.acc>=0.75", None),
        ("next_word.acc,none>0.7", None),
        ("next_word.acc>=0.8", "next_word.acc is 0.75, and >=0.8 is required"),
        ("next_word.acc<0.75", "next_word.acc is 0.75, and <0.75 is required"),
        ("other.acc>0", "other.acc was not measured: no task 'other'; there are: gsm8k, next_word"),
        ("next_word.f1>0", "next_word.f1 was not measured; of next_word there are: acc"),
        ("gsm8k.exact_match>0", "say which filter's is meant: exact_match,flexible, exact_match,strict"),
        ("gsm8k.exact_match,strict>0.1", None),
    ],
)
def test_a_requirement_that_does_not_hold_says_why(text: str, why: str | None) -> None:
    measured = [ACC, *(Result("gsm8k", "exact_match", which, 0.2) for which in ("strict", "flexible"))]
    found = unmet([requirement(text)], measured)
    assert found == [] if why is None else why in found[0]


def test_the_harness_own_results_become_numbers_with_their_spread() -> None:
    found = {
        "results": {
            "next_word": {"alias": "next_word", "sample_len": 4, "acc,none": 0.75, "acc_stderr,none": 0.25},
            "echo": {"alias": "echo", "exact_match,none": 0.0, "exact_match_stderr,none": "N/A", "ppl,none": "nan"},
        },
        "n-samples": {"next_word": {"original": 9, "effective": 4}},
        "higher_is_better": {"next_word": {"acc": True}},
    }
    measured = of_harness(found)
    assert measured == [ACC, Result("echo", "exact_match", "none", 0.0)]
    assert believed(json.loads(json.dumps([dataclasses.asdict(r) for r in measured]))) == measured
    assert in_words(ACC) == "next_word.acc: 0.75 ± 0.2500"


def test_a_metric_over_several_answers_is_measured_under_its_name() -> None:
    (one,) = of_harness({"results": {"humaneval": {"pass@1,create_test": 0.3}}})
    assert believed([dataclasses.asdict(one)]) == [one]
    assert unmet([requirement("humaneval.pass@1>=0.3")], [one]) == []


def test_a_name_that_no_table_could_show_is_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'a\\x1b' is no name of a task, metric or filter"):
        believed([{**dataclasses.asdict(ACC), "metric": "a\x1b"}])


@pytest.mark.parametrize(
    "told",
    [
        "much",
        [{"task": "t"}],
        [{**dataclasses.asdict(ACC), "value": float("inf")}],
        [{**dataclasses.asdict(ACC), "value": True}],
        [{**dataclasses.asdict(ACC), "task": "\x1b[2J"}],
        [{**dataclasses.asdict(ACC), "stderr": "0.1"}],
        [{**dataclasses.asdict(ACC), "examples": 1.5}],
        [dataclasses.asdict(ACC)] * 5001,
    ],
)
def test_results_that_a_job_cannot_have_measured_are_not_believed(told: object) -> None:
    with pytest.raises(ValueError, match=r"result|is no name|is no number|is not of type"):
        believed(told)


def answer(logprobs: list[Any], tokens: int = 2, text: object = "ok") -> dict[str, Any]:
    choice = {"text": text, "logprobs": {"token_logprobs": logprobs}}
    return {"choices": [choice], "usage": {"completion_tokens": tokens}}


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (answer([-0.1, 0.0]), None),
        (answer([], 0), "0 tokens"),
        (answer([-0.1, None]), "logprobs are"),
        (answer([-0.1, float("nan")]), "logprobs are"),
        (answer([-0.1]), "2 tokens have 1 logprobs"),
        (answer([-0.1, -0.1], text=None), "the text None"),
        ({"choices": []}, "the answer has no"),
        ({"choices": [{"text": "a", "logprobs": None}], "usage": {"completion_tokens": 1}}, "the answer has no"),
    ],
)
def test_an_answer_is_sane_or_it_is_said_what_is_wrong(given: dict[str, Any], wrong: str | None) -> None:
    found = fault(given)
    assert found is None if wrong is None else wrong in (found or "")


# The step before.


@pytest.fixture
def former(tmp_path: Path) -> RunFolder:
    return folder_of(convert(), tmp_path)


def begin(folder: RunFolder) -> None:
    announce(folder.announcements, "attempt-started", attempt="1.0", job_id="1")
    folder.rendezvous.mkdir(exist_ok=True)
    claims.show_alive(folder, "1.0")


def test_a_step_waits_until_the_one_before_has_completed(former: RunFolder) -> None:
    looks = iter([begin, lambda f: announce(f.announcements, "attempt-ended", exit_code=0, cause="", end="completed")])
    before.wait(former, sleep=lambda _: next(looks)(former) and None)
    assert next(looks, None) is None


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        (
            {"exit_code": 1, "cause": "the conversion ended", "end": "crashed"},
            "did not come to its end: the conversion",
        ),
        ({"exit_code": 0, "cause": "cancelled", "end": "cancelled"}, "did not come to its end: cancelled"),
        ({"exit_code": 0, "cause": "timeout", "end": "time-limit"}, "did not come to its end: timeout"),
    ],
)
def test_a_step_does_not_begin_after_one_that_did_not_come_to_its_end(
    former: RunFolder, ending: dict[str, Any], why: str
) -> None:
    begin(former)
    announce(former.announcements, "attempt-ended", attempt="1.0", **ending)
    with pytest.raises(before.NotReached, match=why):
        before.wait(former)


def test_a_step_does_not_wait_for_one_whose_supervisor_was_killed(former: RunFolder) -> None:
    begin(former)
    assert not before.ended(former)
    silent = time.time() - claims.SILENT_S - 5
    os.utime(former.alive("1.0"), (silent, silent))
    with pytest.raises(before.NotReached, match="fell silent"):
        before.wait(former)


def test_a_step_waits_only_so_long_for_the_one_before_to_begin(former: RunFolder) -> None:
    clocks = iter([0.0, 1.0, before.BEGIN_S + 1])
    with pytest.raises(before.NotReached, match="did not begin"):
        before.wait(former, clock=lambda: next(clocks), sleep=lambda _: None)


# What is asked for.


@pytest.fixture
def site(tmp_path: Path) -> Site:
    settings = (f"state_dir={tmp_path}/state", f"shared_dir={tmp_path}/shared", "defaults.serve.partition=gpu")
    return load_site(Path(__file__).parents[1] / "site-configs" / "laptop.toml", {}, settings)


def asked(**changed: Any) -> Asked:
    made = Asked(checkpoint_id="t-1/20", checkpoint="/c/20", model="chat", alias="prod", owner="ada", tasks_dir=TASKS)
    return dataclasses.replace(made, **changed)


def test_each_step_comes_after_the_one_before_and_carries_the_whole_promotion(site: Site) -> None:
    first, second, third = steps(site, asked(canary=10, require=("next_word.acc>0.1",)), NOW)
    assert isinstance(first, ConvertSpec) and isinstance(second, SmokeSpec) and isinstance(third, EvaluateSpec)
    runs = site.runs_dir.resolve()
    assert (second.after, third.after) == (str(runs / first.id), str(runs / second.id))
    assert second.model_path == third.model_path == str(runs / first.id / "model")
    assert first.promotion == second.promotion == third.promotion
    whole = first.promotion
    assert whole is not None and whole.steps == (first.id, second.id, third.id)
    assert (whole.source, whole.model, whole.alias, whole.canary) == ("t-1/20", "chat", "prod", 10)
    assert third.tasks_sha256 == digest(TASKS)
    assert first.alias is None  # moved by the promotion, and only at its end
    assert second.engine_args == site.environment("engine").args
    for spec in (first, second, third):
        folder = RunFolder(Path(site.shared_dir) / spec.id)
        folder.create()
        folder.spec.write_text(dump(spec))
        assert load(folder.spec) == spec


def test_sbatch_options_are_for_the_jobs_with_an_engine_and_the_account_is_everybodys(site: Site) -> None:
    wanted = {"account": "lab", "gpus_per_node": 1, "time_limit_s": 600, "options": ["--constraint=h100"]}
    first, second, third = steps(site, asked(resources=wanted), NOW)
    assert (first.resources.account, first.resources.gpus_per_node, first.resources.options) == ("lab", 0, ())
    for spec in (second, third):
        assert (spec.resources.account, spec.resources.gpus_per_node, spec.resources.partition) == ("lab", 1, "gpu")
        assert spec.resources.time_limit_s == 600
        assert spec.resources.options == ("--constraint=h100", "--kill-on-invalid-dep=yes")


def test_a_conversion_has_the_time_and_the_memory_that_are_asked_for_it(site: Site) -> None:
    more = {"time_limit_s": 7200, "mem_gb": 64.0}
    first, second, _ = steps(site, asked(converting=more, resources={"account": "lab", "time_limit_s": 600}), NOW)
    assert (first.resources.account, first.resources.time_limit_s, first.resources.mem_gb) == ("lab", 7200, 64.0)
    assert (second.resources.time_limit_s, second.resources.mem_gb) == (600, site.defaults.serve.mem_gb)


def test_without_tasks_nothing_is_evaluated(site: Site) -> None:
    assert [spec.kind for spec in steps(site, asked(tasks_dir=None), NOW)] == ["convert", "smoke"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"tasks_dir": None, "require": ("a.b>1",)}, "say --tasks DIR"),
        ({"tasks_dir": Path(__file__).parent / "golden"}, "there is no task"),
        ({"require": ("acc",)}, "is no requirement"),
        ({"alias": "3"}, "a number after '@'"),
        ({"resources": {"nodes": 2}}, "must be 1"),
        ({"resources": {"options": ["--dependency=afterok:1"]}}, "depend on each other"),
    ],
)
def test_a_mistake_is_said_before_anything_is_submitted(site: Site, changed: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        steps(site, asked(**changed), NOW)
    assert not site.runs_dir.exists()


class Jobs:
    """A scheduler that takes so many jobs, and no more."""

    cluster = "c"

    def __init__(self, most: int) -> None:
        self.most, self.requests, self.cancelled = most, list[JobRequest](), list[str]()

    def script(self, request: JobRequest) -> str:
        return ""

    def submit(self, request: JobRequest) -> JobRef:
        if len(self.requests) == self.most:
            raise SchedulerError("QOSMaxSubmitJobPerUserLimit")
        self.requests.append(request)
        return JobRef(self.cluster, str(len(self.requests)), clock.parse(NOW))

    def cancel(self, ref: JobRef) -> None:
        self.cancelled.append(ref.job_id)


def test_jobs_are_submitted_each_after_the_one_before(site: Site) -> None:
    jobs = Jobs(3)
    submit(steps(site, asked(), NOW), site, jobs)  # type: ignore[arg-type]  # as much of a scheduler as it needs
    assert [[ref.job_id for ref in request.after] for request in jobs.requests] == [[], ["1"], ["2"]]


def test_steps_whose_last_is_refused_are_cancelled(site: Site) -> None:
    jobs = Jobs(2)
    with pytest.raises(SchedulerError, match="QOSMaxSubmit"):
        submit(steps(site, asked(), NOW), site, jobs)  # type: ignore[arg-type]  # as much of a scheduler as it needs
    assert jobs.cancelled == ["2", "1"]


def test_a_promotion_in_a_spec_is_read_strictly(tmp_path: Path) -> None:
    whole = Promotion(id="p", source="t-1/20", model="chat", alias="prod", steps=("convert-1", "smoke-1"))
    folder = folder_of(smoke(promotion=whole, after="/runs/convert-1"), tmp_path)
    assert load(folder.spec) == smoke(promotion=whole, after="/runs/convert-1")
    document = json.loads(folder.spec.read_text())
    document["promotion"]["canary"] = "ten"
    folder.spec.write_text(json.dumps(document))
    with pytest.raises(SpecError, match=r"promotion\.canary: 'ten' is not of type"):
        load(folder.spec)
    other = folder_of(evaluate(), tmp_path)
    assert load(other.spec) == evaluate()


def test_the_modules_of_both_environments_are_loaded_once_each(tmp_path: Path) -> None:
    both = {
        field: dataclasses.replace(evaluate().harness, modules=modules)
        for field, modules in (("environment", ("cuda", "vllm")), ("harness", ("cuda", "lm-eval")))
    }
    assert request_for(evaluate(**both), RunFolder(tmp_path)).modules == ("cuda", "vllm", "lm-eval")


# What is announced.


def told(db: Database, runs_dir: Path, spec: SmokeSpec | EvaluateSpec, kind: str, **what: Any) -> dict[str, Any]:
    """What the registry has of a step that says this."""
    assert spec.promotion is not None
    folder = folder_of(spec, runs_dir)
    announce(folder.announcements, kind, **what)
    (run,) = (run for run in spec.promotion.steps if run == spec.id)
    runs.adopt(db, run, kind=spec.kind, name="x", owner="ada", folder=str(folder.root), created_at=NOW)
    take_up(db, spec, "ada")
    facts.ingest(db, folder, spec, lambda steps: None)
    return next(step.said for step in promotions.get(db, "p").steps if step.run == run)


WHOLE = Promotion(id="p", source="t-1/20", model="chat", alias="prod", steps=("convert-1", "smoke-1", "evaluate-1"))


def test_what_a_step_found_out_is_kept_with_its_promotion(registry: Database, tmp_path: Path) -> None:
    smoked = {"start_s": 2.5, "prompts": 3, "completion_tokens": 48}
    assert told(registry, tmp_path, smoke(promotion=WHOLE), "model-generated", **smoked) == smoked
    measured = {"results": [dataclasses.asdict(ACC)], "unmet": [], "tasks_sha256": "0" * 64}
    assert told(registry, tmp_path, evaluate(promotion=WHOLE), "model-evaluated", **measured) == measured


@pytest.mark.parametrize(
    "forged", [{"results": [{"task": "t"}], "unmet": [], "tasks_sha256": ""}, {"results": []}, {"results": 7}]
)
def test_results_that_cannot_be_are_set_aside(registry: Database, tmp_path: Path, forged: dict[str, Any]) -> None:
    assert told(registry, tmp_path, evaluate(promotion=WHOLE), "model-evaluated", **forged) == {}


def test_a_run_that_says_what_cannot_be_is_no_step_and_stops_nobody(registry: Database) -> None:
    take_up(registry, smoke(promotion=dataclasses.replace(WHOLE, alias="7")), "ada")
    take_up(registry, smoke(), "ada")
    assert promotions.everything(registry) == []


def test_the_digest_of_tasks_changes_with_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: a")
    first = digest(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_text("")
    assert digest(tmp_path) == first
    (tmp_path / "a.jsonl").write_text("{}")
    assert digest(tmp_path) != first


@pytest.mark.parametrize("beside", [".git/index", ".ipynb_checkpoints/a.yaml", ".a.yaml.swp", "__pycache__/a.pyc"])
def test_what_programs_keep_beside_tasks_is_no_task(tmp_path: Path, beside: str) -> None:
    (tmp_path / "a.yaml").write_text("task: a")
    first = digest(tmp_path)
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).write_text("")
    assert digest(tmp_path) == first


def test_tasks_are_also_what_they_link_to(tmp_path: Path) -> None:
    tasks, data = tmp_path / ".tasks", tmp_path / "data"
    tasks.mkdir(), data.mkdir()
    (tasks / "a.yaml").write_text("task: a")
    (tasks / "data").symlink_to(data)
    first = digest(tasks)
    (data / "a.jsonl").write_text("{}")
    second = digest(tasks)
    (data / "a.jsonl").write_text("[]")
    assert len({first, second, digest(tasks)}) == 3


def test_links_that_lead_back_are_followed_once(tmp_path: Path) -> None:
    for here, there in (("a", "b"), ("b", "a")):
        (tmp_path / here).mkdir()
        (tmp_path / here / "x.yaml").write_text(here)
        (tmp_path / here / "other").symlink_to(tmp_path / there)
        (tmp_path / here / "back").symlink_to("..")
    first = digest(tmp_path)
    (tmp_path / "b" / "x.yaml").write_text("c")
    assert digest(tmp_path) != first
