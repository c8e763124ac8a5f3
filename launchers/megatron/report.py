"""What a run says while it trains: a line per iteration for programs, a sentence for people, TensorBoard's files."""

from __future__ import annotations

import os
import time

from launchers.megatron.events import Events
from launchers.megatron.flops import flops_per_token, utilisation
from launchers.megatron.metrics import Metrics
from launchers.megatron.progress import Progress
from launchers.megatron.ranks import Ranks
from launchers.megatron.recipe import Recipe
from launchers.run_folder import RunFolder


class Report:
    """Speaks on the one rank that knows the loss; every rank may call it."""

    def __init__(
        self, folder: RunFolder, recipe: Recipe, vocab: int, ranks: Ranks, progress: Progress, started: float
    ) -> None:
        self.metrics, self.progress = Metrics(folder.metrics, ranks.has_loss), progress
        self._folder, self._recipe, self._ranks, self._started = folder, recipe, ranks, started
        self._events: Events | None = None
        self._flops = flops_per_token(recipe, vocab)
        # A site states what its GPUs do in bf16, which `auto` means on them; a share of it says nothing of fp32.
        bf16 = ranks.device.type == "cuda" and recipe.train.precision != "fp32"
        self._peak_tflops = float(os.environ.get("HEADGATE_PEAK_TFLOPS", "0")) if bf16 else 0.0
        self._pace = 0.0  # seconds per iteration, smoothed
        self.losses: tuple[float, float] | None = None  # this attempt's first and last

    @property
    def elapsed_s(self) -> float:
        return round(time.monotonic() - self._started, 3)

    def begin(self, iteration: int) -> None:
        """Iterations are told from here on."""
        self._events = Events(self._folder.tensorboard, self._ranks.has_loss, iteration)
        self.progress.phase("training", iteration=iteration, iterations=self._recipe.train.iterations)

    def iteration(self, now: int, loss: float, grad_norm: float, lr: float, seconds: float) -> None:
        assert self._events
        t = self._recipe.train
        self._pace = seconds if not self._pace else 0.9 * self._pace + 0.1 * seconds
        eta = (t.iterations - now) * self._pace
        tokens = t.global_batch * self._recipe.model.seq_length
        speed = tokens / seconds
        peak = self._peak_tflops
        mfu = utilisation(speed, self._flops, self._ranks.world, peak) if peak else None
        self.losses = (self.losses[0] if self.losses else loss, loss)
        self.metrics.emit(
            f"iteration {now:>{len(str(t.iterations))}}/{t.iterations}  loss {loss:.4f}  grad norm {grad_norm:.3f}  "
            f"lr {lr:.2e}  {speed:,.0f} tokens/s  " + (f"MFU {mfu:.1%}  " if mfu else "") + f"{eta:.0f} s left",
            iteration=now, iterations=t.iterations, loss=loss, grad_norm=grad_norm, lr=lr, tokens=now * tokens,
            tokens_per_s=round(speed, 1), seconds=round(seconds, 4), eta_s=round(eta, 1), elapsed_s=self.elapsed_s,
            **({"mfu": round(mfu, 4)} if mfu else {}),
        )  # fmt: skip
        self._events.scalars(now, **{"train/loss": loss, "train/grad_norm": grad_norm, "train/lr": lr})
        self._events.scalars(now, **{"speed/tokens_per_s": speed, "speed/mfu": mfu})
        self.progress.at(iteration=now)

    def validation(self, now: int, loss: float) -> None:
        self.metrics.emit(f"iteration {now}: validation loss {loss:.4f}", validation_loss=loss, iteration=now)
        if self._events:
            self._events.scalars(now, **{"validation/loss": loss})

    def end(self, iteration: int, sentence: str, *, done: bool) -> None:
        """The run's last word: whoever reads the metrics' last line knows whether anything is left to train."""
        first, last = self.losses or (None, None)
        if self.losses:
            sentence += f": loss {first:.4f} -> {last:.4f}"
        stage = "done" if done else "stopped"
        self.metrics.emit(sentence, stage=stage, first_loss=first, last_loss=last, iterations=iteration,
                          elapsed_s=self.elapsed_s)  # fmt: skip
        if self._events:
            self._events.close()
        self.progress.phase("done" if done else "stopped", iteration=iteration)
