"""`headgate checkpoints`, `verify` and `prune`, and who keeps a checkpoint from being pruned."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from specs import convert as convert_spec
from specs import train as train_spec
from told_runs import RECIPE, ToldRun, invoke, ok, site_of

from cli import checkpoints as checkpoints_command
from cli import convert, pins, prune, record, train
from cli import runs as cli_runs
from launchers import announce, facts
from launchers.megatron.stop import Switches
from launchers.run_folder import RunFolder
from launchers.scheduler import SchedulerError, SchedulerUnavailable
from registry import aliases, checkpoints, deployments, lineage, models, runs
from registry.db import Database, NotFound
from registry.deployments import DeploymentState
from registry.site import Site


@pytest.fixture
def run(tmp_path: Path) -> ToldRun:
    made = ToldRun(tmp_path)
    made.saves(10, 20, 30, 40)
    (made.folder.checkpoints / "iter_0000050").mkdir()  # being written
    return made


def left(run: ToldRun) -> list[int]:
    return sorted(int(p.name.removeprefix("iter_")) for p in run.folder.checkpoints.iterdir())


def test_a_runs_checkpoints_are_listed_by_its_folder_alone(tmp_path: Path, run: ToldRun) -> None:
    rows = json.loads(ok(tmp_path, "checkpoints", run.id, "--json"))
    assert [(r["iteration"], r["state"]) for r in rows] == [
        *((i, "complete") for i in (10, 20, 30, 40)),
        (50, "not complete"),
    ]
    assert rows[0]["bytes"] == len(b"weights")
    assert "not complete" in ok(tmp_path, "checkpoints", "pretrain")


def test_whole_checkpoints_are_verified_and_an_unfinished_one_is_no_damage(tmp_path: Path, run: ToldRun) -> None:
    printed = ok(tmp_path, "verify", "pretrain")
    assert f"{run.id}/40: whole: 1 file, 7 bytes" in printed and f"{run.id}/50: not complete" in printed
    done = invoke(tmp_path, "verify", "pretrain/50")
    assert done.exit_code == 1 and "it has no manifest.json" in done.output


@pytest.mark.parametrize(
    ("content", "words"), [(b"weight", "6 bytes, the manifest promises 7"), (b"WEIGHTS", "damaged")]
)
def test_a_damaged_file_is_named(tmp_path: Path, run: ToldRun, content: bytes, words: str) -> None:
    victim = run.folder.checkpoints / "iter_0000020" / "shard.distcp"
    victim.write_bytes(content)
    for asked in ("pretrain", "pretrain/20"):
        done = invoke(tmp_path, "verify", asked)
        assert done.exit_code == 1
        assert str(victim) in done.output and words in done.output
    assert invoke(tmp_path, "verify", "pretrain/30").exit_code == 0
    done = invoke(tmp_path, "verify", "pretrain/33")
    assert done.exit_code == 1 and "there is no checkpoint 'pretrain/33'" in done.output


def test_a_file_name_in_a_manifest_does_not_steer_the_terminal(tmp_path: Path, run: ToldRun) -> None:
    newest = run.folder.checkpoints / "iter_0000040"  # which is all that prune reads
    stated, shard = newest / "manifest.json", newest / "\x1b[2J\ashard"
    stated.write_text(stated.read_text().replace("shard.distcp", "\\u001b[2J\\u0007shard"))
    (newest / "shard.distcp").rename(shard)
    shard.write_bytes(b"WEIGHTS")
    for words in (("verify", "pretrain"), ("prune", "pretrain", "--keep-last", "1", "--dry-run")):
        printed = invoke(tmp_path, *words, color=True).output
        assert "shard: damaged" in printed
        assert "\x1b" not in printed and "\a" not in printed


def test_without_a_controller_nothing_is_deleted_unless_that_is_said(tmp_path: Path, run: ToldRun) -> None:
    done = invoke(tmp_path, "prune", "pretrain")
    assert done.exit_code == 1 and "say --offline" in done.output
    assert left(run) == [10, 20, 30, 40, 50]


def test_pruning_says_first_what_would_go_and_then_deletes_that(tmp_path: Path, run: ToldRun) -> None:
    printed = ok(tmp_path, "prune", "pretrain", "--dry-run")  # the recipe keeps the last two
    assert f"{run.id}/10: 7 bytes\n{run.id}/20: 7 bytes\n2 checkpoints, 14 bytes would be deleted\n" == printed
    assert left(run) == [10, 20, 30, 40, 50]
    assert "2 checkpoints, 14 bytes deleted" in ok(tmp_path, "prune", "pretrain", "--offline")
    assert left(run) == [30, 40, 50]
    assert ok(tmp_path, "prune", "pretrain", "--offline") == "nothing to delete\n"


def test_what_is_pinned_or_gone_on_from_or_a_multiple_stays(tmp_path: Path, run: ToldRun) -> None:
    (run.folder.switches / "keep-iter_0000010").touch()
    run.begins(0, "40.0", saved=20)
    said = json.loads(ok(tmp_path, "prune", "pretrain", "--keep-last", "1", "--dry-run", "--json"))
    assert [p["iteration"] for p in said["pruned"]] == [30]
    printed = ok(tmp_path, "prune", "pretrain", "--keep-last", "1", "--keep-every", "30", "--dry-run")
    assert printed.splitlines() == [
        f"{run.id}/10: stays: pinned by switches/keep-iter_0000010",
        f"{run.id}/20: stays: the last attempt went on from it",
        "nothing to delete",
    ]


def test_what_training_really_went_on_from_stays_although_its_supervisor_named_another(
    tmp_path: Path, run: ToldRun
) -> None:
    run.begins(0, "40.0", saved=30)
    run.trains(10, 1, 21, 22)  # 30 was damaged
    printed = ok(tmp_path, "prune", "pretrain", "--keep-last", "1", "--offline")
    assert f"{run.id}/20: stays: the last attempt went on from it" in printed
    assert left(run) == [20, 30, 40, 50]


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_damaged_newest_checkpoint_does_not_count_among_those_that_stay(
    tmp_path: Path, run: ToldRun, dry: tuple[str, ...]
) -> None:
    (run.folder.checkpoints / "iter_0000040" / "shard.distcp").write_bytes(b"WEIGHTS")
    done = invoke(tmp_path, "prune", "pretrain", "--keep-last", "1", "--offline", *dry)
    assert done.exit_code == 0 and "damaged" in done.stderr and "it does not count" in done.stderr
    assert f"{run.id}/10: 7 bytes\n{run.id}/20: 7 bytes\n2 checkpoints" in done.stdout
    assert left(run) == ([10, 20, 30, 40, 50] if dry else [30, 40, 50])


class Registry:
    """A controller that knows the run, and what else it is told of; `asked` for each run in turn."""

    def __init__(self, run: ToldRun, monkeypatch: pytest.MonkeyPatch) -> None:
        self.completed: set[str] = set()
        self.users: dict[int, list[str]] = {}
        self.run, self.asked = run.id, list[str]()
        for module in (cli_runs, checkpoints_command, prune):
            monkeypatch.setattr(module, "registered", self.registered)

    def registered(self, site: Site, name: str) -> dict[str, Any] | None:
        self.asked.append(name)
        if name == self.run:
            branches = [{"checkpoint": {"iteration": i}, "users": users} for i, users in self.users.items()]
            return {"run": {"id": self.run, "state": "running"}, "checkpoints": branches}
        found = next((run for run in self.completed if run == name or run.startswith(f"{name}-")), None)
        return None if found is None else {"run": {"id": found, "state": "completed"}, "checkpoints": []}


PUBLISH = "publish-demo-20260101-000000-abcd"


def test_a_pin_that_was_outlived_is_neither_listed_nor_heeded(
    tmp_path: Path, run: ToldRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(run, monkeypatch)
    pins.pin(run.folder.checkpoints / "iter_0000010", PUBLISH)
    pins.path_of(run.folder.checkpoints / "iter_0000020").write_text("publish-demo\n")  # a person's word, no run's id

    def listed() -> list[list[str]]:
        return [r["used_by"] for r in json.loads(ok(tmp_path, "checkpoints", "pretrain", "--json"))]

    assert listed() == [["a pin"], ["a pin"], [], [], []]
    registry.completed = {PUBLISH}
    assert listed() == [[], ["a pin"], [], [], []]
    printed = ok(tmp_path, "prune", "pretrain", "--keep-last", "2")
    assert f"{run.id}/10: 7 bytes\n{run.id}/20: stays: pinned" in printed
    assert left(run) == [20, 30, 40, 50] and [p.name for p in run.folder.switches.iterdir()] == ["keep-iter_0000020"]


def test_what_comes_while_the_newest_checkpoint_is_read_counts(
    tmp_path: Path, run: ToldRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(run, monkeypatch)
    pins.pin(run.folder.checkpoints / "iter_0000020", PUBLISH)
    whole = prune.without_damaged_end

    def slow(complete: Sequence[record.Checkpoint]) -> tuple[list[record.Checkpoint], list[str]]:
        (run.folder.switches / "keep-iter_0000010").touch()
        registry.completed, registry.users = {PUBLISH}, {20: ["alias demo@latest"]}
        registry.asked.clear()
        return whole(complete)

    monkeypatch.setattr(prune, "without_damaged_end", slow)
    printed = ok(tmp_path, "prune", "pretrain", "--keep-last", "1")
    assert registry.asked == [PUBLISH, run.id]  # in the other order, what completes in between would be missed
    assert f"{run.id}/10: stays: pinned" in printed and f"{run.id}/20: stays: alias demo@latest" in printed
    assert left(run) == [10, 20, 40, 50]


def test_a_pin_that_comes_while_others_are_deleted_keeps_its_checkpoint(
    tmp_path: Path, run: ToldRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(run, monkeypatch)
    registry.completed = {PUBLISH}
    pins.pin(run.folder.checkpoints / "iter_0000030", PUBLISH)
    delete = prune.delete

    def slow(folder: RunFolder, checkpoint: record.Checkpoint) -> None:
        delete(folder, checkpoint)
        (run.folder.switches / "keep-iter_0000020").touch()
        pins.pin(run.folder.checkpoints / "iter_0000030", "another-run")

    monkeypatch.setattr(prune, "delete", slow)
    printed = ok(tmp_path, "prune", "pretrain", "--keep-last", "1")
    assert f"{run.id}/20: stays: pinned" in printed and f"{run.id}/30: stays: pinned" in printed
    assert "1 checkpoint, 7 bytes deleted" in printed and left(run) == [20, 30, 40, 50]


def test_whoever_may_not_see_the_pins_sees_checkpoints_without_them_and_is_told_which_directory(
    tmp_path: Path, run: ToldRun
) -> None:
    run.folder.switches.rmdir()
    run.folder.switches.touch()  # no more to be listed than somebody else's directory is, by root neither
    rows = json.loads(ok(tmp_path, "checkpoints", "pretrain", "--json"))
    assert [r["used_by"] for r in rows] == [[]] * 5
    done = invoke(tmp_path, "prune", "pretrain", "--dry-run")
    assert done.exit_code == 1
    assert f"{run.folder.switches}: Not a directory, so which checkpoints are needed cannot be told" in done.output


def test_where_every_checkpoint_is_damaged_none_is_deleted(tmp_path: Path, run: ToldRun) -> None:
    for shard in run.folder.checkpoints.glob("*/shard.distcp"):
        shard.write_bytes(b"WEIGHTS")
    done = invoke(tmp_path, "prune", "pretrain", "--keep-last", "1", "--offline")
    assert done.stdout == "nothing to delete\n"
    assert left(run) == [10, 20, 30, 40, 50]


def test_a_checkpoint_is_never_half_deleted_to_those_who_look(run: ToldRun) -> None:
    path = run.folder.checkpoints / "iter_0000010"
    (checkpoint,) = [c for c in record.checkpoints(run.folder) if c.path == str(path)]
    prune.delete(run.folder, checkpoint)
    prune.delete(run.folder, checkpoint)  # by somebody else at the same time
    assert not list(run.folder.checkpoints.glob("*iter_0000010*"))
    (name,) = announce.names(run.folder.announcements)
    said = announce.read(run.folder.announcements / name, path.parent.stat().st_uid)
    assert (said.kind, said.facts) == (
        "checkpoint-pruned",
        {"iteration": 10, "path": "checkpoints/iter_0000010"},
    )


def test_a_pin_is_a_file_among_the_runs_switches(tmp_path: Path, run: ToldRun) -> None:
    pins.pin(run.folder.checkpoints / "iter_0000010", "publish-1")
    assert "a pin" in ok(tmp_path, "checkpoints", "pretrain")
    assert f"{run.id}/10: stays: pinned" in ok(tmp_path, "prune", "pretrain", "--dry-run")
    pins.pin(tmp_path / "nowhere" / "checkpoints" / "iter_0000010", "publish-1")  # whoever may not, has not


def test_a_pin_is_outlived_when_all_the_runs_it_was_made_for_have_completed(run: ToldRun) -> None:
    first, second, third, fourth = (run.folder.checkpoints / f"iter_00000{n}0" for n in (1, 2, 3, 4))
    for made_for in ("publish-1", "publish-2"):
        pins.pin(first, made_for)
    pins.pin(second, "publish-2")
    pins.path_of(third).touch()  # a person's, who does not say for how long
    pins.pin(third, "publish-2")
    pins.path_of(fourth).symlink_to(pins.path_of(second))
    assert not pins.pin(fourth, "publish-2")
    assert pins.outlived(run.folder, {"publish-1"}.__contains__) == {}
    assert pins.outlived(run.folder, {"publish-2"}.__contains__) == {20: ["publish-2"]}
    assert pins.outlived(run.folder, {"publish-1", "publish-2"}.__contains__).keys() == {10, 20}


def test_a_pin_appears_whole_is_the_groups_and_ends_with_the_last_run_it_names(run: ToldRun) -> None:
    checkpoint = run.folder.checkpoints / "iter_0000010"
    path, before = pins.path_of(checkpoint), os.umask(0o022)
    try:
        assert pins.pin(checkpoint, "t0", "t1") and pins.pin(checkpoint, "other") and pins.pin(checkpoint, "t2")
        assert (path.read_text(), path.stat().st_mode & 0o777) == ("t0\nt1\nother\nt2\n", 0o660)
        pins.unpin(checkpoint, "t0", "t1", "t2")
        assert (path.read_text(), path.stat().st_mode & 0o777) == ("other\n", 0o660)
    finally:
        os.umask(before)
    pins.unpin(checkpoint, "other")
    path.touch()
    pins.unpin(checkpoint, "other")  # a person's
    assert [p.name for p in run.folder.switches.iterdir()] == [path.name]


def test_a_pin_is_never_seen_empty(run: ToldRun, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, seen = run.folder.checkpoints / "iter_0000010", list[set[int]]()
    link = os.link

    def slow(whole: str, path: Path) -> None:
        seen.append(Switches(run.folder.switches).pinned())
        link(whole, path)
        assert path.read_text() == "publish-1\n"
        raise OSError("the file system went away")

    monkeypatch.setattr(pins.os, "link", slow)
    assert not pins.pin(checkpoint, "publish-1")
    assert seen == [set()]
    assert [p.name for p in run.folder.switches.iterdir()] == ["keep-iter_0000010"]


def test_what_could_not_be_pinned_is_said_where_something_could_prune_it(
    tmp_path: Path, run: ToldRun, capsys: pytest.CaptureFixture[str]
) -> None:
    source = run.folder.checkpoints / "iter_0000010"
    pins.path_of(source).symlink_to(tmp_path / "elsewhere")
    copied = tmp_path / "copies" / "iter_0000010"
    for checkpoint in (source, copied):
        with pins.sources_pinned([convert_spec(checkpoint=str(checkpoint), model="")]):
            pass
    said = capsys.readouterr().err
    assert f"{source} is not pinned" in said and f"its owner may make {pins.path_of(source)}" in said
    assert str(copied) not in said
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["convert", "train"])
def test_what_a_submitted_job_will_read_is_pinned_before_it_can_wait_and_not_when_it_is_refused(
    kind: str, tmp_path: Path, run: ToldRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(run.folder.checkpoints / "iter_0000010")
    spec = (
        convert_spec("c-20260101-000000-abcd", checkpoint=source, model="")
        if kind == "convert"
        else train_spec("t-20260101-000000-abcd", recipe={**RECIPE, "init": {"checkpoint": source}})
    )
    pinned: list[set[int]] = []

    def submitted(error: SchedulerError) -> set[int]:
        def full(*_: object) -> None:
            pinned.append(Switches(run.folder.switches).pinned())
            raise error

        monkeypatch.setattr(train, "launch", full)
        with pytest.raises(click.ClickException, match="no room"):
            train.submit(site_of(tmp_path), spec)
        return Switches(run.folder.switches).pinned()

    assert submitted(SchedulerError("no room")) == set()
    assert submitted(SchedulerUnavailable("no room, or no answer")) == {10}
    assert pinned == [{10}, {10}]
    pins.pin(Path(source), "another-run")
    assert submitted(SchedulerError("no room")) == {10}
    assert pins.path_of(Path(source)).read_text() == "another-run\n"


def test_a_run_that_begins_with_nothing_pins_nothing(run: ToldRun, tmp_path: Path) -> None:
    model = tmp_path / "llama"
    made_of_nothing = (
        train_spec(recipe=RECIPE),
        train_spec(recipe={**RECIPE, "init": {"hugging_face": str(model), "checkpoint": None}}),
        convert_spec(direction="from-hf", checkpoint=str(run.folder.checkpoints / "iter_0000010")),
    )
    with pins.sources_pinned(made_of_nothing):
        assert Switches(run.folder.switches).pinned() == set()


def test_without_a_controller_the_newest_checkpoint_is_the_one_of_the_highest_number(
    tmp_path: Path, run: ToldRun
) -> None:
    run.saves(9_999_999, 10_000_000)
    site = site_of(tmp_path)
    assert train.find_checkpoint(site, "pretrain")["id"] == f"{run.id}/10000000"
    for ref in ("pretrain/20", "pretrain/0000020"):
        assert train.find_checkpoint(site, ref)["id"] == f"{run.id}/20"
    for ref in ("pretrain/21", "pretrain/50", "pretrain/last", "pretrain/²"):
        with pytest.raises(click.ClickException, match="no complete checkpoint is called"):
            train.find_checkpoint(site, ref)


def test_what_is_read_for_one_run_does_not_grow_with_other_runs(registry: Database) -> None:
    def statements() -> int:
        seen: list[str] = []
        registry.conn.set_trace_callback(seen.append)
        lineage.of_run(registry, "r-0")
        registry.conn.set_trace_callback(None)
        return len(seen)

    counts = []
    for i in range(4):
        runs.adopt(registry, f"r-{i}", kind="train", name="r", owner="ada", folder=f"/r-{i}", created_at="2026-01-01")
        checkpoints.add(registry, f"r-{i}", "ada", iteration=1, path=f"/r-{i}/1", size=5, manifest_sha256="0" * 64)
        models.register(registry, "demo", "ada", f"/m-{i}", checkpoint=f"r-{i}/1")
        counts.append(statements())
    assert counts == [counts[0]] * 4


def test_a_run_leads_to_its_checkpoints_models_aliases_and_deployments(registry: Database) -> None:
    runs.adopt(registry, "r-1", kind="train", name="r", owner="ada", folder="/r-1", created_at="2026-01-01")
    for iteration in (200, 100):
        checkpoints.add(
            registry, "r-1", "ada", iteration=iteration, path=f"/r-1/{iteration}", size=5, manifest_sha256="0" * 64
        )
    for path in ("/m1", "/m2"):
        models.register(registry, "demo", "ada", path, checkpoint="r-1/100")
    aliases.move(registry, "demo", "latest", 2, "ada", "")
    deployments.create(
        registry,
        "chat",
        "ada",
        model="demo",
        version=1,
        model_path="/m1",
        min_replicas=1,
        max_replicas=1,
        request={},
        by="ada",
        why="served",
    )

    def branches() -> tuple[lineage.Branch, ...]:
        return lineage.of_run(registry, "r-1").checkpoints

    first, second = branches()
    assert [m.model for m in first.models] == ["demo@1", "demo@2"]
    assert first.users == ("alias demo@latest", "deployment chat")
    assert (second.checkpoint.iteration, second.models, second.users) == (200, (), ())
    for state in (DeploymentState.STOPPING, DeploymentState.STOPPED):
        deployments.set_state(registry, "chat", state, None)
    assert branches()[0].users == ("alias demo@latest",)
    with pytest.raises(NotFound):
        lineage.of_run(registry, "r-2")


# -- convert ----------------------------------------------------------------------------------------------------------

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128, "vocab_size": 512,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False,
}  # fmt: skip


def test_what_is_converted_into_what_follows_from_the_source(tmp_path: Path, run: ToldRun) -> None:
    site = site_of(tmp_path)
    spec = convert.spec_for(site, "pretrain/20", {"cpus_per_task": 3})
    assert (spec.direction, spec.checkpoint_id, spec.model) == ("to-hf", f"{run.id}/20", "")
    assert spec.checkpoint == str(run.folder.checkpoints / "iter_0000020")
    assert spec.name == "convert-pretrain" and spec.resources.cpus_per_task == 3
    spec = convert.spec_for(site, str(run.folder.checkpoints / "iter_0000010"), {})
    assert (spec.direction, spec.checkpoint_id, spec.name) == ("to-hf", "", "convert-iter_0000010")
    model = tmp_path / "My Llama!"
    model.mkdir()
    with pytest.raises(ValueError, match=r"no model \(config.json\) and no checkpoint \(manifest.json\)"):
        convert.spec_for(site, str(model), {})
    (model / "config.json").write_text(json.dumps(LLAMA))
    spec = convert.spec_for(site, str(model), {})
    assert (spec.direction, spec.checkpoint, spec.name) == ("from-hf", str(model), "convert-my-llama")
    (model / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="model_type = null cannot be trained here"):
        convert.spec_for(site, str(model), {})
    (model / "config.json").write_text(json.dumps(LLAMA | {"hidden_act": "gelu"}))
    with pytest.raises(ValueError, match="gelu"):
        convert.spec_for(site, str(model), {})


def test_a_source_that_the_system_does_not_let_one_look_at_is_named(tmp_path: Path) -> None:
    done = invoke(tmp_path, "convert", "x" * 300)  # somebody else's directory would do, but not for root
    assert done.exit_code == 1 and done.output.endswith("/manifest.json: File name too long\n")


def test_a_conversion_for_its_own_sake_registers_no_model(registry: Database, tmp_path: Path) -> None:
    spec = convert_spec("convert-20260101-000000-abcd", model="")
    told = ToldRun(tmp_path, spec)
    runs.adopt(
        registry, spec.id, kind="convert", name="c", owner="ada", folder=str(told.folder.root), created_at="2026-01-01"
    )
    told.says(0, "model-converted", path="model", parameters=1, bytes=1, max_logit_difference=0.0)
    assert facts.ingest(registry, told.folder, spec, lambda steps: None) == 1
    assert models.everything(registry) == []
