"""`headgate show`: a run's folder as one screen, and the sums on it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from told_runs import BEGAN, ToldRun, invoke, ok, restarted

from cli import metrics, record, screen, timing
from cli.curve import curve
from cli.metrics import Training
from cli.table import printable, table


def line_with(printed: str, words: str) -> str:
    (line,) = [line for line in printed.splitlines() if words in line]
    return line


def test_one_screen_tells_of_a_run_that_was_restarted(tmp_path: Path) -> None:
    run = restarted(tmp_path)
    run.ends(160, "40.1", "time-limit")
    run.judged(161, "40.1", "time-limit", "restart", "it goes on from iteration 60")
    printed = ok(tmp_path, "show", "pretrain")
    assert printed.startswith(f"{run.id}  pending: time-limit; it goes on from iteration 60\n")
    assert "no controller does" in printed
    assert "asked       1 node x 1 task x 1 CPU, for up to 1d" in printed
    assert "train: iterations 100, lr 0.001, weight_decay 0\n" in printed
    assert "iteration 60/100  loss 7.4000  validation 7.5000 (at 60)" in printed
    assert "ETA" not in printed  # it does not run
    assert line_with(printed, "preempted").split()[:3] == ["1", "40", "g1"]
    assert "1-30 (10 again)" in line_with(printed, "preempted")
    assert "21-60" in line_with(printed, " g2 ")
    assert "2 complete, 14 bytes; newest: iteration 50" in printed
    assert "1 restart cost 1m, 10s of it for iterations computed in vain" in printed
    assert str(run.folder.root) in printed
    assert "7.4 ┤" in printed and "└──" in printed


def test_programs_get_the_same_as_json(tmp_path: Path) -> None:
    run = restarted(tmp_path)
    run.ends(160, "40.1", "completed")
    run.judged(160, "40.1", "completed", "stop", "the run is complete")
    said = json.loads(ok(tmp_path, "show", run.id, "--json"))
    assert (said["run"]["state"], said["run"]["iteration"], said["registry"]) == ("completed", 60, False)
    first, second = said["attempts"]
    assert (first["cause"], first["lost_s"], first["computed_in_vain"]) == ("preempted", 80.0, 10)
    assert (second["first_iteration"], second["last_iteration"], second["lost_s"]) == (21, 60, None)
    assert said["time"]["wall"] == 160
    assert said["time"]["productive"] == 60 and said["time"]["lost"] == 10
    assert said["time"]["effective_training_time_ratio"] == pytest.approx(60 / 160)
    assert said["time"]["suggested_interval"]["save_costs_s"] == 0.5


def test_a_run_that_has_not_begun_is_shown_with_what_was_asked(tmp_path: Path) -> None:
    ToldRun(tmp_path)
    printed = ok(tmp_path, "show", "pretrain")
    assert "  pending\n" in printed and "asked " in printed
    assert "attempt" not in printed and "time   " not in printed


def test_what_a_job_wrote_does_not_steer_the_terminal(tmp_path: Path) -> None:
    run = ToldRun(tmp_path)
    run.begins(0, "40.0")
    run.ends(1, "40.0", "crashed", "\x1b[2Jgone\a", exit_code=1, judged=False)
    printed = ok(tmp_path, "show", "pretrain")
    assert "gone" in printed and "\x1b" not in printed and "\a" not in printed


def test_a_tables_cell_neither_steers_the_terminal_nor_breaks_its_line(tmp_path: Path) -> None:
    assert table([{"cause": "\x1b[2Jgone\nand\tmore"}], ("cause",)).splitlines()[1] == "�[2Jgone and more"
    assert table([{"used_by": ["a\x07", "b"]}], ("used_by",)).splitlines()[1] == "a�,b"
    run = ToldRun(tmp_path)
    run.begins(0, "40.0")
    run.ends(1, "40.0", "crashed", "\x1b[2Jgone\a", exit_code=1, judged=False)
    printed = ok(tmp_path, "runs")
    assert "gone" in printed and "\x1b" not in printed and "\a" not in printed


def test_tabs_are_shown_as_they_are() -> None:
    assert printable("-\told\n+\tnew\r") == "-\told\n+\tnew�"


def test_lines_of_metrics_that_nobody_can_believe_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        '{"iteration": 1, "loss": 5.0, "seconds": 2, "at": 10}',
        '{"iteration": "2", "loss": 5.0}',
        '{"iteration": 1e400, "loss": 5.0}',
        '{"iteration": -1, "loss": 5.0}',
        '{"iteration": 2, "loss": "low"}',
        "[1, 2]",
        '{"iteration": 3, "lo',
        '{"iteration": 2, "loss": NaN, "seconds": Infinity, "at": "noon"}',
        '{"checkpoint": 2, "blocked_s": -1, "total_s": 1}',
        '{"stage": "model", "attempt": 2, "resumed_from": [1]}',
    ]
    path.write_text("\n".join(lines) + "\n" + '{"iteration": 4, "loss": 1.0}')  # not written to its end yet
    told = metrics.read(path)
    assert [life.number for life in told.lives] == [1, 2]
    assert [(s.iteration, s.seconds) for s in told.lives[0].steps] == [(1, 2.0), (2, 0.0)]
    assert math.isnan(told.lives[0].steps[1].loss) and told.saves == []
    assert metrics.newest_step(path) == {"iteration": 4, "loss": 1.0}


def test_a_link_in_place_of_metrics_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('{"iteration": 1, "loss": 5.0}\n')
    (tmp_path / "metrics.jsonl").symlink_to("secret")
    assert metrics.read(tmp_path / "metrics.jsonl") == Training()
    assert metrics.newest_step(tmp_path / "metrics.jsonl") is None


def test_losses_that_were_computed_again_count_once_as_they_were_last(tmp_path: Path) -> None:
    run = ToldRun(tmp_path)
    run.trains(0, 1, 1, 30)
    run.trains(100, 2, 21, 25)
    run.trains(200, 3, 11, 40)
    told = metrics.read(run.folder.metrics)
    assert [i for i, _ in told.losses] == list(range(1, 41))
    assert [len(life.steps) for life in metrics.kept(told.lives)] == [10, 0, 30]


def test_validation_that_was_computed_again_counts_once_as_it_was_last(tmp_path: Path) -> None:
    run = ToldRun(tmp_path)
    run.trains(0, 1, 1, 30)
    for iteration, loss in ((10, 9.0), (20, 8.0), (30, 7.0)):
        run.metric(31, iteration=iteration, validation_loss=loss)
    run.trains(100, 2, 21, 25)
    assert metrics.read(run.folder.metrics).validation == [(10, 9.0), (20, 8.0)]
    run.metric(130, iteration=30, validation_loss=6.0)
    run.metric(131, iteration=20, validation_loss=5.0)
    assert metrics.read(run.folder.metrics).validation == [(10, 9.0), (20, 5.0), (30, 6.0)]


def test_a_suggested_interval_needs_a_measured_save(tmp_path: Path) -> None:
    run = ToldRun(tmp_path)
    run.trains(0, 1, 1, 30)
    assert timing.suggestion(metrics.read(run.folder.metrics), 3600) is None
    run.metric(30, checkpoint=30, blocked_s=2.0, total_s=5.0)
    suggested, cost_s = timing.suggestion(metrics.read(run.folder.metrics), 3600) or pytest.fail("none")
    assert cost_s == 2.0
    assert suggested.seconds == pytest.approx((2 * 2 * 3600) ** 0.5, rel=0.02)  # Young
    assert suggested.iterations == 100  # of one second each, and there are no more


def test_an_attempt_that_saved_before_it_ended_is_no_failure(tmp_path: Path) -> None:
    run = ToldRun(tmp_path)
    run.begins(0, "40.0")
    run.trains(10, 1, 1, 30)
    run.ends(50, "40.0", "time-limit")
    run.begins(100, "40.1", saved=30)
    run.trains(110, 2, 31, 40)
    run.ends(150, "40.1", "crashed", exit_code=1)
    attempts = record.story(run.folder).attempts
    training = metrics.read(run.folder.metrics)
    of = timing.stretches(attempts, training, BEGAN + 200)
    assert timing.between_failures(attempts, of, BEGAN + 200) == (100.0, 1)
    assert of[1].lost_s == 70  # from the end of iteration 30 until iteration 31 was computed


def test_a_curve_is_as_wide_as_it_may_be_and_marks_restarts() -> None:
    lines = curve([(i, 10.0 - i) for i in range(1, 11)], width=40, height=4, marks=[5])
    assert len(lines) == 6 and max(map(len, lines)) == 40
    assert lines[0].startswith("9 ┤█") and lines[3].startswith("0 ┤")
    assert "^" in lines[5] and lines[5].endswith("10")
    heights = [sum("▁▂▃▄▅▆▇█".find(line[3 + c : 4 + c] or " ") + 1 for line in lines[:4]) for c in range(37)]
    assert heights == sorted(heights, reverse=True) and heights[0] == 32


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, 2.0), (1, 3.0)], [(1, math.nan), (2, 2.0)], [(1, 1e300)] * 2])
def test_what_cannot_be_drawn_is_no_curve(points: list[tuple[int, float]]) -> None:
    assert curve(points) == []


def test_a_flat_curve_with_gaps_is_drawn() -> None:
    lines = curve([(0, 3.0), (1000, 3.0), (2000, math.inf)], width=30, height=3)
    assert lines[2] == "3 ┤" + "▁" * 27


def test_a_recipe_is_told_by_what_it_says_itself() -> None:
    recipe = {
        "kind": "pretrain",
        "model": {"hidden": 64, "rope_base": 10_000.0, "init_std": 0.01},
        "data": {"text": ["a.txt", "b"], "sources": [{"text": ["c"], "weight": 2.0}]},
        "checkpoint": {"asynchronous": False, "interval": 0},
        "restart": {"max_attempts": 100},
    }
    assert screen.recipe_lines(recipe) == [
        "kind: pretrain",
        "model: hidden 64, init_std 0.01",
        "data: text a.txt b, sources (text c, weight 2)",
        "checkpoint: asynchronous no",
    ]


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (1, "1 byte"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (1 << 41, "2.0 TiB")]
)
def test_sizes_are_said_in_words(count: int, words: str) -> None:
    assert screen.size(count) == words


def test_a_run_that_there_is_not_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    done = invoke(tmp_path, "show", "nothing")
    assert done.exit_code == 1
    assert f"no run called 'nothing' has left a folder in {tmp_path}/runs" in done.output
