"""`headgate show --plot`: a picture of the losses."""

from __future__ import annotations

from pathlib import Path

from told_runs import ToldRun, invoke, ok, restarted


def test_the_losses_become_a_picture(tmp_path: Path) -> None:
    restarted(tmp_path)
    picture = tmp_path / "loss.png"
    assert str(picture) in ok(tmp_path, "show", "pretrain", "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    ok(tmp_path, "show", "pretrain", "--plot", str(tmp_path / "loss.svg"))
    text = (tmp_path / "loss.svg").read_text()
    assert "<svg" in text


def test_an_ending_that_is_no_picture_is_refused_with_those_that_are(tmp_path: Path) -> None:
    restarted(tmp_path)
    done = invoke(tmp_path, "show", "pretrain", "--plot", str(tmp_path / "loss.txt"))
    assert done.exit_code == 1
    assert "'txt' is no kind of picture" in done.output and "png" in done.output and "svg" in done.output
    done = invoke(tmp_path, "show", "pretrain", "--plot", str(tmp_path / "nowhere" / "loss.png"))
    assert done.exit_code == 1 and "No such file or directory" in done.output


def test_without_a_loss_there_is_nothing_to_draw(tmp_path: Path) -> None:
    ToldRun(tmp_path)
    done = invoke(tmp_path, "show", "pretrain", "--plot", str(tmp_path / "loss.png"))
    assert done.exit_code == 1 and "nothing to draw" in done.output
    assert not (tmp_path / "loss.png").exists()
