"""The training loop: the same for GPUs (nccl, bf16) and CPUs (gloo, fp32), one rank or many."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
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
from launchers.megatron.flops import parameters
from launchers.megatron.metrics import Metrics
from launchers.megatron.progress import Progress
from launchers.megatron.ranks import Ranks, connect, join
from launchers.megatron.recipe import Recipe
from launchers.megatron.report import Report
from launchers.megatron.requests import Early, Requests
from launchers.megatron.stop import Asked, Stop, Stopped, Switches
from launchers.run_folder import RunFolder


def run(folder: RunFolder, recipe: Recipe, dataset_dir: Path, stop: Stop, started: float) -> None:
    """Train until the recipe's last iteration, or until asked to stop; leave a complete checkpoint.

    Raises DataError or RecipeError for what a person must change, CheckpointError for a checkpoint of this run that
    cannot be written or read, which may pass.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # megatron's tensor parallelism relies on this order
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    cpu.install()
    writer.install()
    first = os.environ.get("RANK", "0") == "0"
    progress = Progress(folder.progress, first, os.environ.get("HEADGATE_ATTEMPT_NAME", ""))
    switches = Switches(folder.switches)
    ranks = connect(recipe.train.timeout_s)
    try:
        progress.phase("data", iterations=recipe.train.iterations)
        dataset = _dataset(folder, recipe, dataset_dir, ranks, Early(ranks, stop, switches, progress))
        join(ranks, recipe.parallel, recipe.train.seed, recipe.train.timeout_s)
        _run(folder, recipe, dataset, ranks, Requests(ranks, stop, switches), progress, started)
    except Stopped:
        Metrics(folder.metrics, ranks.first).emit(
            "stopped as asked before the first iteration", stage="stopped", first_loss=None, last_loss=None
        )
        progress.phase("stopped")
        switches.turn_off("stop", "kill")
    # All ranks arrive here together. One that fails alone must not: nccl would have it wait for the others, and they
    # for it; it exits instead, and says why.
    if dist.is_initialized():
        dist.destroy_process_group()


def _run(
    folder: RunFolder, recipe: Recipe, dataset: data.Dataset, ranks: Ranks, requests: Requests, progress: Progress,
    started: float,
) -> None:  # fmt: skip
    report = Report(folder, recipe, dataset.vocab, ranks, progress, started)
    attempt = int(os.environ.get("HEADGATE_ATTEMPT", "1"))
    report.metrics.emit(
        f"data: {dataset.documents:,} documents, {dataset.tokens:,} tokens, vocabulary {dataset.vocab:,} "
        f"({'prepared before, reused' if dataset.reused else 'prepared now'}: {dataset.where})",
        stage="data", attempt=attempt, reused=dataset.reused, documents=dataset.documents, tokens=dataset.tokens,
        vocab=dataset.vocab,
    )  # fmt: skip
    progress.phase("loading")
    checkpoints = Checkpoints(folder, recipe, dataset, ranks, report.metrics, progress)
    resume = checkpoints.newest()
    if resume:
        checkpoints.announce_missed(resume)
        iteration = manifest.read(resume).facts["iteration"]
        if iteration >= recipe.train.iterations:
            report.end(iteration, f"nothing to do: {resume.name} is the recipe's last iteration", done=True)
            return
    requests.stop_now()

    trainer = Trainer(recipe, dataset, folder.samples, ranks)
    if resume:
        checkpoints.load(trainer.state, resume)
    elif recipe.init:
        from launchers.megatron import start  # transformers' models: only for a run that begins with one

        sentence, facts = start.begin(recipe, dataset, trainer.state, ranks)
        report.metrics.emit(sentence, stage="weights", attempt=attempt, **facts)
    count = parameters(recipe.model, dataset.vocab)
    report.metrics.emit(
        f"model: {count:,} parameters, {trainer.dtype} on {ranks.world} x {ranks.device.type}, attempt {attempt}, "
        + (f"continues after iteration {trainer.state.iteration}" if resume else "from the beginning"),
        stage="model", attempt=attempt, parameters=count, ranks=ranks.world, device=ranks.device.type,
        precision=str(trainer.dtype).removeprefix("torch."), resumed_from=trainer.state.iteration if resume else None,
    )  # fmt: skip
    requests.stop_now()
    done = _train(trainer, checkpoints, requests, report)
    checkpoints.close(in_haste=not done)


def _train(trainer: Trainer, checkpoints: Checkpoints, requests: Requests, report: Report) -> bool:
    """Until the last iteration, or until asked to stop. Returns whether nothing is left to train."""
    recipe, state = trainer.recipe, trainer.state
    last, save_every, evaluate_every = recipe.train.iterations, recipe.checkpoint.interval, recipe.evaluation.interval
    asked = Asked()
    report.begin(state.iteration)
    while state.iteration < last and not asked.ends:
        asked = advance(trainer, checkpoints, requests, report)
        if not asked.kill and (asked.save or (save_every and state.iteration % save_every == 0)):
            requests.taken("save")
            checkpoints.save(state)
        if evaluate_every and state.iteration % evaluate_every == 0 and state.iteration < last and not asked.ends:
            asked = _evaluate(trainer, checkpoints, requests, report)
    if checkpoints.saved != state.iteration and not asked.kill:
        checkpoints.save(state)
    report.progress.phase("saving")
    checkpoints.settle()
    done = state.iteration >= last and not asked.kill
    if done and not asked.ends:
        _evaluate(trainer, checkpoints, requests, report)
    how = "done" if done else f"stopped, as asked by {asked.words}, and {'not ' if asked.kill else ''}saved"
    report.end(state.iteration, f"{how}, after iteration {state.iteration} of {last}", done=done)
    requests.taken("stop", "kill")
    return done


def advance(trainer: Trainer, checkpoints: Checkpoints, requests: Requests, report: Report) -> Asked:
    """One iteration, and all that goes with each; what is asked after it."""
    began = time.monotonic()
    loss, grad_norm = trainer.step()
    if trainer.ranks.device.type == "cuda":
        torch.cuda.synchronize()  # or the optimizer's kernels would still run, and count for the next iteration
    report.iteration(trainer.state.iteration, loss, grad_norm, trainer.lr, time.monotonic() - began)
    return _attend(checkpoints, requests)


def _attend(checkpoints: Checkpoints, requests: Requests) -> Asked:
    """What is asked by now. A checkpoint that every rank has written is completed."""
    asked, writing = requests.agree(checkpoints.writing)
    if not writing:
        checkpoints.settle()
    return asked


def _evaluate(trainer: Trainer, checkpoints: Checkpoints, requests: Requests, report: Report) -> Asked:
    """Tell the validation loss, unless something more urgent is asked meanwhile: that is returned."""
    asked = Asked()
    if trainer.recipe.evaluation.iterations:
        report.progress.phase("evaluating")
        losses = []
        for loss in trainer.evaluate():
            losses.append(loss)
            report.progress.at()
            asked = _attend(checkpoints, requests)
            if asked.ends:
                return asked
        report.validation(trainer.state.iteration, sum(losses) / len(losses))
        report.progress.phase("training")
    return asked


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
        self.lr = 0.0  # of the last iteration

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
        self.lr = float(state.optimizer.param_groups[0]["lr"])  # the schedule goes on to the next iteration's
        state.schedule.step(increment=1)
        state.iteration += 1
        return loss, float(grad_norm or 0.0)

    def evaluate(self) -> Iterator[float]:
        """The losses of the recipe's number of validation batches."""
        self.state.model.eval()
        batches = samples.batches(self._valid, self.recipe, self.ranks, 0)
        for _ in range(self.recipe.evaluation.iterations):
            with torch.no_grad():
                loss = self._pass(batches, forward_only=True)
            yield loss

    def _pass(self, batches: Iterator[samples.Batch], *, forward_only: bool) -> float:
        t = self.recipe.train
        rounds = t.global_batch // (t.micro_batch * self.ranks.copies)
        reports = get_forward_backward_func()(
            forward_step_func=_forward, data_iterator=batches, model=[self.state.model], num_microbatches=rounds,
            seq_length=self.recipe.model.seq_length, micro_batch_size=t.micro_batch, forward_only=forward_only,
        )  # fmt: skip
        if not reports:
            return float("nan")
        total = torch.stack([report["loss"] for report in reports]).sum()
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return float(total) / (rounds * self.ranks.copies)


def _forward(batches: Iterator[samples.Batch], wrapped: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
    batch = next(batches)
    output = wrapped(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return output, partial(_mean_loss, batch["loss_mask"])


def _mean_loss(mask: torch.Tensor, per_token: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    kept = mask.view(-1).float()
    loss = (per_token.float().view(-1) * kept).sum() / kept.sum().clamp(min=1)  # a sample may be nothing but padding
    return loss, {"loss": loss.detach().clone()}  # megatron goes on to divide the loss in place


def _dataset(folder: RunFolder, recipe: Recipe, dataset_dir: Path, ranks: Ranks, early: Early) -> data.Dataset:
    """The run's dataset. Rank 0 prepares it and says where it is; the others wait.

    A run keeps to the dataset it began with, even if the text behind it has changed since: an iteration number would
    otherwise mean other samples after a restart.
    """
    if ranks.first:
        note = folder.dataset
        begun = json.loads(note.read_text(encoding="utf-8")) if note.exists() else None
        try:
            dataset = (begun and data.find(begun)) or data.prepare(recipe.data, dataset_dir, early.prepared)
        except Stopped:
            early.leave()
            raise
        if begun and dataset.note()["parts"] != begun["parts"]:
            raise DataError(f"this run began with {_where(begun)}, which is gone, and its text has changed since")
        temporary = note.with_suffix(".partial")
        temporary.write_text(json.dumps(dataset.note()) + "\n", encoding="utf-8")
        temporary.rename(note)
        early.tell(json.dumps(dataset.note()))
        return dataset
    said = json.loads(early.wait())
    found = data.find(said, reused=said["reused"])
    if not found:
        raise DataError(
            f"rank {ranks.rank}: {said['tokenizer']} or {_where(said)} is not whole here; dataset_dir must be on a "
            "filesystem that all ranks share"
        )
    return found


def _where(note: dict[str, Any]) -> str:
    """The directories of a dataset, by its note."""
    return ", ".join(part["path"] for part in note["parts"])
