"""`headgate diff`: what differs between two runs, and an exit status that says whether anything does."""

from __future__ import annotations

import json
from pathlib import Path

from specs import train
from told_runs import RECIPE, ToldRun, invoke

from launchers.spec import Resources

FIRST, SECOND = "first-20260101-000000-abcd", "second-20260102-000000-abcd"


def pair(root: Path) -> tuple[ToldRun, ToldRun]:
    """Two runs that differ in nothing but their ids."""
    made = tuple(ToldRun(root, train(run_id, recipe=RECIPE)) for run_id in (FIRST, SECOND))
    for run in made:
        package = run.folder.code / "launchers"
        package.mkdir(parents=True)
        (package / "loop.py").write_text("one\ntwo\nthree\n")
    return made[0], made[1]


def test_runs_that_were_asked_alike_do_not_differ(tmp_path: Path) -> None:
    pair(tmp_path)
    done = invoke(tmp_path, "diff", "first", "second")
    assert (done.exit_code, done.output) == (0, "")


def test_settings_are_named_by_their_dotted_keys_with_both_values(tmp_path: Path) -> None:
    changed = RECIPE | {"train": {"iterations": 200, "lr": 1e-3, "seed": 7}}
    ToldRun(tmp_path, train(FIRST, recipe=RECIPE))
    ToldRun(tmp_path, train(SECOND, recipe=changed, resources=Resources(nodes=2, partition="gpu")))
    done = invoke(tmp_path, "diff", "first", "second")
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        f"--- {FIRST}",
        f"+++ {SECOND}",
        "resources.partition: - -> gpu",
        "resources.nodes: 1 -> 2",
        "recipe.train.iterations: 100 -> 200",
        "recipe.train.weight_decay: 0.0 -> -",
        "recipe.train.seed: - -> 7",
    ]


def test_changed_code_is_shown_as_a_unified_diff_or_counted(tmp_path: Path) -> None:
    _, second = pair(tmp_path)
    package = second.folder.code / "launchers"
    (package / "loop.py").write_text("one\n2\nthree\nfour\n")
    (package / "new.py").write_text("new\n")
    done = invoke(tmp_path, "diff", "first", "second")
    assert done.exit_code == 1
    assert "--- code/launchers/loop.py\n+++ code/launchers/loop.py\n@@ -1,3 +1,4 @@\n one\n-two\n+2\n three\n+four" in (
        done.output
    )
    assert "--- /dev/null\n+++ code/launchers/new.py" in done.output
    done = invoke(tmp_path, "diff", "--stat", "first", "second")
    assert done.output.splitlines()[2:] == ["code/launchers/loop.py: +2 -1", "code/launchers/new.py: +1 -0"]
    said = json.loads(invoke(tmp_path, "diff", "--json", "first", "second").output)
    assert said["settings"] == [] and said["files"][0] == {"path": "code/launchers/loop.py", "added": 2, "removed": 1}


def test_what_is_no_text_or_too_long_only_differs_and_links_are_not_followed(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    for run, byte in ((first, b"a"), (second, b"b")):
        (run.folder.code / "weights.bin").write_bytes(b"\0" + byte)
        (run.folder.code / "long.txt").write_bytes(byte * (1 << 20 | 1))
        (run.folder.code / "same.txt").write_bytes(b"c" * (1 << 20 | 1))
        (run.folder.code / "link").symlink_to(f"/etc/{byte.decode()}")
    done = invoke(tmp_path, "diff", "first", "second")
    assert done.output.splitlines()[2:] == ["code/long.txt: differs", "code/weights.bin: differs"]


def test_trouble_is_neither_the_same_nor_different(tmp_path: Path) -> None:
    pair(tmp_path)
    done = invoke(tmp_path, "diff", "first", "third")
    assert done.exit_code == 2 and "no run called 'third'" in done.output
