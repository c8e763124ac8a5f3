"""The program behind benchmarks/training.py. It runs in the training environment, in which there is no control plane.

Both loops train the same shape in fp32 with Adam, on as many threads, with batches of the same size out of the same
tokens, and take turns. Ours is the whole of what a run does for an iteration: samples, model, optimizer, metrics,
TensorBoard, progress, the agreement on requests. The plain loop is what one would write by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import LlamaForCausalLM

from benchmarks.figures import interleaved, show
from launchers.megatron import cpu, data, llama, quiet, training, writer
from launchers.megatron.checkpoint import Checkpoints
from launchers.megatron.progress import Progress
from launchers.megatron.ranks import Ranks, connect, join
from launchers.megatron.recipe import Recipe, from_dict
from launchers.megatron.report import Report
from launchers.megatron.requests import Requests
from launchers.megatron.stop import Stop, Switches
from launchers.run_folder import RunFolder

RECIPE: dict[str, Any] = {
    "model": {"hidden": 256, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 688, "seq_length": 256},
    "data": {"text": ["{stdlib}/**/*.py"], "vocab_size": 4096, "max_mb": 3.0},
    "train": {
        "iterations": 100_000, "micro_batch": 4, "global_batch": 8, "lr": 1e-3, "warmup": 10, "precision": "fp32",
    },
}  # fmt: skip
PLAIN = "plain loop, Hugging Face Llama"


class Ours:
    def __init__(self, root: Path, recipe: Recipe, dataset: data.Dataset, ranks: Ranks) -> None:
        self.folder = RunFolder(root / f"run-{recipe.checkpoint.asynchronous}")
        self.folder.create()
        self.folder.checkpoints.mkdir()
        progress = Progress(self.folder.progress, True, "1.0")
        self.report = Report(self.folder, recipe, dataset.vocab, ranks, progress, time.monotonic())
        self.requests = Requests(ranks, Stop(), Switches(self.folder.switches))
        self.checkpoints = Checkpoints(self.folder, recipe, dataset, ranks, self.report.metrics, progress)
        self.trainer = training.Trainer(recipe, dataset, self.folder.samples, ranks)
        self.report.begin(0)

    def steps(self, number: int) -> None:
        for _ in range(number):
            training.advance(self.trainer, self.checkpoints, self.requests, self.report)

    def save(self) -> None:
        self.checkpoints.save(self.trainer.state)

    def saves(self) -> list[dict[str, Any]]:
        """What the metrics say of each checkpoint."""
        return [m for line in open(self.folder.metrics) if "checkpoint" in (m := json.loads(line))]


class Plain:
    def __init__(self, recipe: Recipe, dataset: data.Dataset) -> None:
        t = recipe.train
        self.recipe = recipe
        self.model = LlamaForCausalLM(llama.config(recipe.model, dataset.vocab, bos=0, eos=0, pad=1))
        self.model.config.use_cache = False
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=t.lr, betas=(0.9, 0.95), weight_decay=t.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 0.1, total_iters=t.warmup)
        self.tokens = numpy.memmap(dataset.parts[0].path / "text.bin", dtype=numpy.uint16, mode="r")
        self.draw = numpy.random.default_rng(0)

    def steps(self, number: int) -> None:
        t, length = self.recipe.train, self.recipe.model.seq_length
        rounds = t.global_batch // t.micro_batch
        for _ in range(number):
            for _ in range(rounds):
                starts = self.draw.integers(0, len(self.tokens) - length - 1, t.micro_batch)
                rows = numpy.stack([self.tokens[at : at + length] for at in starts]).astype(numpy.int64)
                batch = torch.from_numpy(rows)
                loss = self.model(input_ids=batch, labels=batch).loss / rounds
                loss.backward()
                float(loss)  # a loop tells its loss
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), t.grad_clip)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()


def speeds(ours: Ours, plain: Plain, steps: int, rounds: int) -> None:
    t, m = ours.trainer.recipe.train, ours.trainer.recipe.model
    loops: dict[str, Callable[[], None]] = {"ours": lambda: ours.steps(steps), PLAIN: lambda: plain.steps(steps)}
    with _silently():
        costs = interleaved(loops, rounds)
    tokens = steps * t.global_batch * m.seq_length
    threads = torch.get_num_threads()
    parameters = sum(p.numel() for p in plain.model.parameters())
    what = f"training {parameters / 1e6:.1f} million parameters on {threads} thread{'s' if threads > 1 else ''}"
    show(f"{what}, of CPU time", tokens / costs["ours"].cpu_s, "tokens/CPU-s", PLAIN, tokens / costs[PLAIN].cpu_s)
    show(f"{what}, of wall time", tokens / costs["ours"].wall_s, "tokens/s", PLAIN, tokens / costs[PLAIN].wall_s)


def stops(background: Ours, inline: Ours, rounds: int) -> None:
    """What a checkpoint costs training, written in the background and written inline, in turns."""
    with _silently():
        for _ in range(rounds + 1):
            for run in (background, inline):
                run.steps(1)
                run.save()
                while run.checkpoints.writing:
                    run.steps(1)
                run.steps(1)
    counted = [run.saves()[1:] for run in (background, inline)]
    size = counted[0][0]["bytes"] / 1e6
    for figure, key in (("training stands still for", "blocked_s"), ("is complete after", "total_s")):
        ours, theirs = (statistics.median(save[key] for save in saves) for saves in counted)
        show(f"a checkpoint of {size:.0f} MB {figure}", ours, "s", "asynchronous = false", theirs)


def _silently() -> contextlib.AbstractContextManager[Any]:
    """What a run prints costs it what it costs, but is not shown."""
    return contextlib.redirect_stdout(open(os.devnull, "w"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="iterations of a round")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    quiet.known_messages()
    torch.set_num_threads(asked.threads)
    cpu.install()
    writer.install()
    recipe = from_dict(RECIPE)
    ranks = connect(60)
    join(ranks, recipe.parallel, 1, 60)
    with _silently():
        dataset = data.prepare(recipe.data, asked.root)
        ours = Ours(asked.root, recipe, dataset, ranks)
        inline = Ours(
            asked.root, replace(recipe, checkpoint=replace(recipe.checkpoint, asynchronous=False)), dataset, ranks
        )
    speeds(ours, Plain(recipe, dataset), asked.steps, asked.rounds)
    stops(ours, inline, asked.rounds)
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
