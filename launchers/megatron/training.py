"""The training loop: the same for GPUs (nccl, bf16) and CPUs (gloo, fp32), one rank or many."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func

from launchers.megatron import cpu, data, manifest, model, optimizer, samples, writer
from launchers.megatron.checkpoint import Checkpoints, State
from launchers.megatron.corpus import DataError
from launchers.megatron.metrics import Metrics
from launchers.megatron.ranks import Ranks, connect, join
from launchers.megatron.recipe import Recipe
from launchers.megatron.stop import Stop
from launchers.run_folder import RunFolder

WAIT_FOR_DATA_S = 24 * 3600  # preparing much text takes long; should rank 0 die over it, waiting ends at once


def run(folder: RunFolder, recipe: Recipe, dataset_dir: Path, stop: Stop, started: float) -> None:
    """Train until the recipe's last iteration, or until asked to stop; leave a complete checkpoint.

    Raises DataError or CheckpointError for what a person must change.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # megatron's tensor parallelism relies on this order
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    cpu.install()
    writer.install(asynchronous=recipe.checkpoint.asynchronous)
    ranks = connect(recipe.train.timeout_s)
    dataset = _dataset(folder, recipe, dataset_dir, ranks)
    join(ranks, recipe.parallel, recipe.train.seed, recipe.train.timeout_s)
    try:
        _run(folder, recipe, dataset, ranks, stop, started)
    finally:
        dist.destroy_process_group()


def _run(folder: RunFolder, recipe: Recipe, dataset: data.Dataset, ranks: Ranks, stop: Stop, started: float) -> None:
    metrics = Metrics(folder.metrics, ranks.has_loss)
    attempt = int(os.environ.get("HEADGATE_ATTEMPT", "1"))
    metrics.emit(
        f"data: {dataset.documents:,} documents, {dataset.tokens:,} tokens, vocabulary {dataset.vocab:,} "
        f"({'prepared before, reused' if dataset.reused else 'prepared now'}: {dataset.path})",
        stage="data", attempt=attempt, reused=dataset.reused, documents=dataset.documents, tokens=dataset.tokens,
        vocab=dataset.vocab,
    )  # fmt: skip
    checkpoints = Checkpoints(folder, recipe, dataset, ranks, metrics)
    resume = _newest(folder, ranks)
    if resume and manifest.read(resume).facts["iteration"] >= recipe.train.iterations:
        checkpoints.announce_missed(resume)
        metrics.emit(f"nothing to do: {resume.name} is the recipe's last iteration", stage="done",
                     iterations=recipe.train.iterations, first_loss=None, last_loss=None)  # fmt: skip
        return

    trainer = Trainer(recipe, dataset, folder.root / "samples", ranks)
    if resume:
        checkpoints.announce_missed(resume)
        checkpoints.load(trainer.state, resume)
    count = model.parameters(trainer.state.model.module, ranks.device)
    metrics.emit(
        f"model: {count:,} parameters, {trainer.dtype} on {ranks.world} x {ranks.device.type}, attempt {attempt}, "
        + (f"continues after iteration {trainer.state.iteration}" if resume else "from the beginning"),
        stage="model", attempt=attempt, parameters=count, ranks=ranks.world, device=ranks.device.type,
        precision=str(trainer.dtype).removeprefix("torch."), resumed_from=trainer.state.iteration if resume else None,
    )  # fmt: skip
    _train(trainer, checkpoints, metrics, stop, started)


def _train(trainer: Trainer, checkpoints: Checkpoints, metrics: Metrics, stop: Stop, started: float) -> None:
    recipe, state = trainer.recipe, trainer.state
    last, every = recipe.train.iterations, recipe.checkpoint.interval
    losses: list[float] = []
    pace = 0.0  # seconds per iteration, smoothed
    stopping = False
    while state.iteration < last and not stopping:
        began = time.monotonic()
        loss, grad_norm = trainer.step()
        took = time.monotonic() - began
        pace = took if not pace else 0.9 * pace + 0.1 * took
        losses.append(loss)
        _report(trainer, metrics, loss, grad_norm, took, (last - state.iteration) * pace, time.monotonic() - started)
        if recipe.evaluation.interval and state.iteration % recipe.evaluation.interval == 0 and state.iteration < last:
            _evaluate(trainer, metrics)
        if every and state.iteration % every == 0:
            checkpoints.save(state)
        checkpoints.settle(wait=False)
        stopping = trainer.ranks.any(stop.requested)
    if checkpoints.saved != state.iteration:
        checkpoints.save(state)
    checkpoints.settle()
    if not stopping:
        _evaluate(trainer, metrics)
    finished = state.iteration >= last
    metrics.emit(
        f"{'done' if finished else 'stopped as asked, saved,'} after iteration {state.iteration} of {last}: "
        f"loss {losses[0]:.4f} -> {losses[-1]:.4f}",
        stage="done" if finished else "stopped", first_loss=losses[0], last_loss=losses[-1],
        iterations=state.iteration, elapsed_s=round(time.monotonic() - started, 3),
    )  # fmt: skip


class Trainer:
    """A model, its optimizer and its samples on this rank. All ranks call `step` and `evaluate` together."""

    def __init__(self, recipe: Recipe, dataset: data.Dataset, index: Path, ranks: Ranks) -> None:
        self.recipe, self.ranks = recipe, ranks
        self.dtype = model.precision(recipe.train.precision, ranks.device)
        settings = model.config(recipe.model, recipe.parallel, self.dtype)
        bare = model.build(recipe.model, dataset.vocab, settings, ranks.device)
        wrapped = DistributedDataParallel(
            settings,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=recipe.parallel.distributed_optimizer,
                check_for_nan_in_grad=True,
            ),
            bare,
        )
        self.state = State(wrapped, *optimizer.build(recipe, wrapped, self.dtype))
        settings.finalize_model_grads_func = finalize_model_grads
        settings.grad_scale_func = self.state.optimizer.scale_loss
        self._train, self._valid = samples.build(recipe, dataset, index, ranks)
        self._batches: Iterator[samples.Batch] | None = None

    def step(self) -> tuple[float, float]:
        """One iteration: (loss, gradient norm). The loss is NaN on ranks that do not see it."""
        state, t = self.state, self.recipe.train
        if self._batches is None:  # where to begin is known once a checkpoint was loaded
            self._batches = samples.batches(self._train, self.recipe, self.ranks, state.iteration * t.global_batch)
        state.model.train()
        state.model.zero_grad_buffer()
        state.optimizer.zero_grad()
        loss = self._pass(self._batches, forward_only=False)
        _updated, grad_norm, _zeros = state.optimizer.step()
        state.schedule.step(increment=1)
        state.iteration += 1
        return loss, float(grad_norm or 0.0)

    def evaluate(self) -> float:
        """Mean loss over the recipe's number of validation batches."""
        self.state.model.eval()
        batches = samples.batches(self._valid, self.recipe, self.ranks, 0)
        with torch.no_grad():
            losses = [self._pass(batches, forward_only=True) for _ in range(self.recipe.evaluation.iterations)]
        return sum(losses) / len(losses)

    @property
    def lr(self) -> float:
        return float(self.state.optimizer.param_groups[0]["lr"])

    def _pass(self, batches: Iterator[samples.Batch], *, forward_only: bool) -> float:
        t = self.recipe.train
        rounds = t.global_batch // (t.micro_batch * self.ranks.copies)
        reports = get_forward_backward_func()(
            forward_step_func=_forward, data_iterator=batches, model=[self.state.model], num_microbatches=rounds,
            seq_length=self.recipe.model.seq_length, micro_batch_size=t.micro_batch, forward_only=forward_only,
        )  # fmt: skip
        return float(sum(r["loss"] for r in reports) / rounds) if reports else float("nan")


def _forward(batches: Iterator[samples.Batch], wrapped: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
    batch = next(batches)
    output = wrapped(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return output, partial(_mean_loss, batch["loss_mask"])


def _mean_loss(mask: torch.Tensor, per_token: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    kept = mask.view(-1).float()
    loss = (per_token.float().view(-1) * kept).sum() / kept.sum()
    everywhere = loss.detach().clone()
    dist.all_reduce(everywhere, group=parallel_state.get_data_parallel_group())
    return loss, {"loss": everywhere / parallel_state.get_data_parallel_world_size()}


def _report(
    trainer: Trainer, metrics: Metrics, loss: float, grad_norm: float, took: float, eta: float, elapsed: float
) -> None:
    t, now = trainer.recipe.train, trainer.state.iteration
    speed = t.global_batch * trainer.recipe.model.seq_length / took
    metrics.emit(
        f"iteration {now:>{len(str(t.iterations))}}/{t.iterations}  loss {loss:.4f}  grad norm {grad_norm:.3f}  "
        f"lr {trainer.lr:.2e}  {speed:,.0f} tokens/s  {eta:.0f} s left",
        iteration=now, iterations=t.iterations, loss=loss, grad_norm=grad_norm, lr=trainer.lr,
        tokens_per_s=round(speed, 1), eta_s=round(eta, 1), elapsed_s=round(elapsed, 3),
    )  # fmt: skip


def _evaluate(trainer: Trainer, metrics: Metrics) -> None:
    if trainer.recipe.evaluation.iterations:
        loss = trainer.evaluate()
        now = trainer.state.iteration
        metrics.emit(f"iteration {now}: validation loss {loss:.4f}", validation_loss=loss, iteration=now)


def _newest(folder: RunFolder, ranks: Ranks) -> Path | None:
    """Where to continue. Rank 0 looks, so that all continue from the same place."""
    found: list[str | None] = [None]
    if ranks.first:
        newest = manifest.newest_complete(folder.checkpoints, report=lambda e: print(f"passed over: {e}", flush=True))
        found[0] = newest.name if newest else None
    dist.broadcast_object_list(found, src=0, device=ranks.device)
    return folder.checkpoints / found[0] if found[0] else None


def _dataset(folder: RunFolder, recipe: Recipe, dataset_dir: Path, ranks: Ranks) -> data.Dataset:
    """The run's dataset. Rank 0 prepares it and says where it is; the others wait.

    A run keeps to the dataset it began with, even if the text behind it has changed since: an iteration number would
    otherwise mean other samples after a restart.
    """
    if ranks.first:
        note = folder.root / "dataset.json"
        begun = Path(json.loads(note.read_text(encoding="utf-8"))["path"]) if note.exists() else None
        dataset = (begun and data.find(begun)) or data.prepare(recipe.data, dataset_dir)
        if begun and dataset.path.name != begun.name:
            raise DataError(f"this run began with {begun}, which is gone, and its text has changed since")
        temporary = note.with_suffix(".partial")
        temporary.write_text(json.dumps({"path": str(dataset.path)}) + "\n", encoding="utf-8")
        temporary.rename(note)
        ranks.store.set("dataset", json.dumps({"path": str(dataset.path), "reused": dataset.reused}))
        return dataset
    try:
        ranks.store.wait(["dataset"], timedelta(seconds=WAIT_FOR_DATA_S))
    except (dist.DistNetworkError, dist.DistStoreError) as e:
        raise DataError(f"rank {ranks.rank}: rank 0 ended before the data was ready") from e
    said = json.loads(ranks.store.get("dataset"))
    found = data.find(Path(said["path"]), reused=said["reused"])
    if not found:
        raise DataError(
            f"rank {ranks.rank}: {said['path']} is not visible here; dataset_dir must be on a shared filesystem"
        )
    return found
