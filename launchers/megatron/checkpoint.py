"""Save and load everything a run needs to continue exactly: weights, optimizer, schedule, random state, position.

The tensors go through megatron's dist_checkpointing, so another number of ranks or another layout can load them. Next
to them stand the recipe and the tokenizer: a checkpoint directory can be converted with nothing else at hand. It
exists when its manifest does, and only then is it the latest, and announced.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from launchers import announce
from launchers.megatron import manifest, model, optimizer, shelf
from launchers.megatron.data import Dataset
from launchers.megatron.manifest import CheckpointError
from launchers.megatron.metrics import Metrics
from launchers.megatron.progress import Progress
from launchers.megatron.ranks import Ranks
from launchers.megatron.recipe import Recipe, RecipeError, to_dict
from launchers.megatron.stop import Switches
from launchers.megatron.writer import Writing
from launchers.retention import surplus
from launchers.run_folder import RunFolder

RECIPE, TOKENIZER = "recipe.json", "tokenizer"


@dataclass
class State:
    """What a checkpoint holds; the sample position follows from the iteration and the recipe."""

    model: Any  # DistributedDataParallel around GPTModel
    optimizer: Any
    schedule: Any
    iteration: int = 0


@dataclass(slots=True)
class _Save:
    """A checkpoint that is being written. Seconds by the steady clock."""

    path: Path
    iteration: int
    writing: Writing
    began: float
    blocked_s: float


class Checkpoints:
    """The checkpoints of one run. Every method is called by all ranks together.

    A save stops training while the state is copied. Each rank then writes, and sums up, its own files in a thread;
    once all have, `settle` lets rank 0 write the manifest, for which it needs to read only the few small files left.
    """

    def __init__(
        self, folder: RunFolder, recipe: Recipe, dataset: Dataset, ranks: Ranks, metrics: Metrics, progress: Progress
    ) -> None:
        self._folder, self._recipe, self._dataset = folder, recipe, dataset
        self._ranks, self._metrics, self._progress = ranks, metrics, progress
        self._precision = str(model.precision(recipe.train.precision, ranks.device)).removeprefix("torch.")
        # Planned once: what stands where in a checkpoint does not change while a process lives.
        self._strategy = TorchDistSaveShardedStrategy("torch_dist", 1, cached_metadata=True)
        self._checked = False
        self._save: _Save | None = None
        self._behind = ThreadPoolExecutor(1, "deleting")  # rank 0 deletes while training goes on
        self._in_haste = False
        self._damaged: set[int] = set()  # they have a manifest, and do not keep its promise
        self._loaded: set[int] = set()
        self.saved: int | None = None  # the newest iteration that was saved or loaded

    @property
    def writing(self) -> bool:
        """Whether this rank still writes."""
        return self._save is not None and not self._save.writing.done

    def newest(self) -> Path | None:
        """Where to continue: the newest checkpoint that is whole. Rank 0 looks, and clears unfinished ones away."""
        found: list[str | None] = [None]
        if self._ranks.first:
            home = self._folder.checkpoints
            home.mkdir(exist_ok=True)
            newest = manifest.newest_complete(home, report=lambda problem: print(f"passed over: {problem}", flush=True))
            for left in shelf.remains(home):
                self._behind.submit(shelf.delete, [left])
            whole = [i for i, path in manifest.directories(home).items() if path == newest]
            # A damaged one stays, to be looked at, until training comes to its iteration again.
            self._damaged = {i for i in shelf.complete(home) if i > max(whole, default=-1)}
            found[0] = newest.name if newest else None
            self._progress.at(saved=max(whole, default=None))
            shelf.note_latest(home, found[0])
        dist.broadcast_object_list(found, src=0, device=self._ranks.device)
        return self._folder.checkpoints / found[0] if found[0] else None

    def save(self, state: State) -> None:
        """Save `state`; in the background when the recipe says so, but never two at a time."""
        self._progress.phase("saving")
        self.settle()
        began = time.monotonic()
        path = self._folder.checkpoints / manifest.name_of(state.iteration)
        if self._ranks.first:
            if in_the_way := shelf.set_aside(path):
                self._behind.submit(shelf.delete, [in_the_way])
            path.mkdir()
        dist.barrier()
        layout = _layout()
        request = dist_checkpointing.save(
            _sharded(state, layout, loading=False),
            str(path),
            self._strategy,
            validate_access_integrity=not self._checked,
            async_sharded_save=True,
            content_metadata={k: v for k, v in layout.items() if k != "dp_cp_group"},
        )
        self._checked = True
        background = self._recipe.checkpoint.asynchronous
        writing = Writing(request, path, partial(self._beside, path), background=background)
        self._save = _Save(path, state.iteration, writing, began, time.monotonic() - began)
        self.saved = state.iteration
        if not background:
            self.settle()
        self._progress.phase("training")

    def settle(self) -> None:
        """Complete the checkpoint that is being written, if one is. Waits until every rank has written its part."""
        if self._save is None:
            return
        began = time.monotonic()
        save, self._save = self._save, None
        save.writing.wait()
        sealed = self._sealed(save.writing)
        for finish in save.writing.request.finalize_fns:  # megatron's own metadata
            finish()
        size = [0]
        if self._ranks.first:
            done = manifest.write(
                save.path, "checkpoint", sealed=sealed, iteration=save.iteration, run=self._folder.id,
                parallel=_parallel(self._recipe), distributed_optimizer=self._recipe.parallel.distributed_optimizer,
                ranks=self._ranks.world, precision=self._precision, vocab=self._dataset.vocab,
            )  # fmt: skip
            shelf.note_latest(self._folder.checkpoints, save.path.name)
            self._announce(save.path, done)
            self._damaged.discard(save.iteration)
            self._behind.submit(self._prune)
            size = [done.bytes]
        dist.broadcast_object_list(size, src=0, device=self._ranks.device)
        now = time.monotonic()
        total, blocked = now - save.began, save.blocked_s + now - began
        self._progress.at(saved=save.iteration, save_s=round(total, 3))
        self._metrics.emit(
            f"checkpoint {save.path.name}: complete after {total:.2f} s, training stood still for {blocked:.2f} s",
            checkpoint=save.iteration,
            blocked_s=round(blocked, 3),
            total_s=round(total, 3),
            bytes=size[0],
        )

    def close(self, *, in_haste: bool) -> None:
        """Wait until what was to be deleted is; in haste, leave to the next attempt what has not been begun."""
        self._in_haste = in_haste
        self._behind.shutdown(wait=not in_haste, cancel_futures=in_haste)

    def load(self, state: State, path: Path) -> None:
        """Continue from a complete checkpoint of this run. Raises RecipeError when it has another kind of optimizer."""
        mine, facts = self._recipe.parallel.distributed_optimizer, manifest.read(path).facts
        if facts.get("distributed_optimizer", mine) != mine:
            raise RecipeError(
                f"parallel.distributed_optimizer = {str(mine).lower()}: {path} was saved with the other one, and a run "
                "keeps to it"
            )
        layout = _layout()
        wanted = _sharded(state, layout, loading=True)
        if facts["parallel"] != _parallel(self._recipe):
            del wanted["rng"]  # kept per (pipeline, tensor) rank, so it has no meaning in another layout
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's deprecations inside its own checkpoint reader
            loaded = dist_checkpointing.load(wanted, str(path))
        state.model.module.load_state_dict(loaded["model"])
        state.optimizer.load_state_dict(loaded["optimizer"])
        state.schedule.load_state_dict(loaded["schedule"])
        state.iteration = self.saved = int(loaded["iteration"])
        self._loaded = {state.iteration}
        optimizer.set_steps(state.optimizer, state.iteration)
        if self._ranks.first:
            self._behind.submit(self._prune)  # what the attempt before had no time for
        if "rng" in loaded:
            _set_random_state(loaded["rng"][0])

    def announce_missed(self, path: Path) -> None:
        """State a complete checkpoint that an earlier attempt had no time left to announce."""
        if self._ranks.first:
            for name in announce.names(self._folder.announcements):
                if name.endswith("-checkpoint.json"):
                    said = json.loads((self._folder.announcements / name).read_text(encoding="utf-8"))
                    if said.get("path") == self._relative(path):
                        return
            self._announce(path, manifest.read(path))

    def _beside(self, path: Path) -> list[Path]:
        """What makes a checkpoint usable with nothing else at hand. Written by rank 0, next to the tensors."""
        if not self._ranks.first:
            return []
        recipe, tokenizer = path / RECIPE, path / TOKENIZER
        recipe.write_text(json.dumps(to_dict(self._recipe), indent=1) + "\n", encoding="utf-8")
        shutil.copytree(self._dataset.tokenizer, tokenizer)
        return [recipe, *(p for p in tokenizer.rglob("*") if p.is_file())]

    def _sealed(self, mine: Writing) -> list[manifest.File]:
        """The files of all ranks. Raises CheckpointError on every rank when one could not write."""
        told: list[tuple[str, list[manifest.File]]] = [("", [])] * self._ranks.world
        dist.all_gather_object(told, (mine.error, mine.files))
        for rank, (error, _files) in enumerate(told):
            if error:
                raise CheckpointError(f"rank {rank} could not write its part of a checkpoint: {error}")
        return [file for _error, files in told for file in files]

    def _prune(self) -> None:
        """Delete what the recipe does not want kept. In a thread of rank 0."""
        home, wanted = self._folder.checkpoints, self._recipe.checkpoint
        try:
            unwanted = surplus(
                (i for i in shelf.complete(home) if i not in self._damaged),
                keep_last=wanted.keep_last, keep_every=wanted.keep_every,
                pinned=Switches(self._folder.switches).pinned(), in_use=self._loaded,
            )  # fmt: skip
            for iteration in unwanted:
                if self._in_haste:
                    return
                path = home / manifest.name_of(iteration)
                if going := shelf.set_aside(path):
                    facts = {"iteration": iteration, "path": self._relative(path)}
                    announce.announce(self._folder.announcements, "checkpoint-pruned", **facts)
                    shelf.delete([going])
        except OSError as e:  # training does not end over it
            print(f"checkpoints that may go were not all deleted: {e}", flush=True)

    def _announce(self, path: Path, done: manifest.Manifest) -> None:
        announce.announce(
            self._folder.announcements,
            "checkpoint",
            iteration=done.facts["iteration"],
            path=self._relative(path),
            bytes=done.bytes,
            manifest_sha256=manifest.sha256(path / manifest.NAME),
        )

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._folder.root).as_posix()


def load_weights(gpt: Any, path: Path) -> None:
    """Fill a bare model from a checkpoint saved by any number of ranks in any layout."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = dist_checkpointing.load({"model": gpt.sharded_state_dict(metadata=_layout())}, str(path))
    gpt.load_state_dict(loaded["model"])


def save_weights(gpt: Any, path: Path) -> None:
    """The counterpart: a bare model's weights into an empty directory."""
    layout = _layout()
    content = {k: v for k, v in layout.items() if k != "dp_cp_group"}
    dist_checkpointing.save({"model": gpt.sharded_state_dict(metadata=layout)}, str(path), content_metadata=content)


def _parallel(recipe: Recipe) -> dict[str, int]:
    return {"tensor": recipe.parallel.tensor, "pipeline": recipe.parallel.pipeline}


def _layout() -> dict[str, Any]:
    """How megatron is to name the shards: so that another number of ranks can find them."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        # True gathers the optimizer's shards through gloo, in the memory of the first of the ranks that share them.
        # Otherwise nccl gathers them on every GPU, which has no room for the whole optimizer.
        "distrib_optim_fully_reshardable_mem_efficient": True,
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _sharded(state: State, layout: dict[str, Any], *, loading: bool) -> dict[str, Any]:
    sharded: dict[str, Any] = {
        "model": state.model.module.sharded_state_dict(metadata=layout),
        "checkpoint_version": 3.0,
        "iteration": state.iteration,
    }
    if loading:
        optimizer.make_room(state.optimizer)
    sharded["optimizer"] = state.optimizer.sharded_state_dict(sharded, is_loading=loading, metadata=layout)
    if sharded["optimizer"].get("param_state", sharded) is None:
        del sharded["optimizer"]["param_state"]  # gathered elsewhere; megatron would warn that the ranks disagree
    sharded["schedule"] = state.schedule.state_dict()
    sharded["rng"] = ShardedObject(
        "rng",
        [_random_state()],
        (
            parallel_state.get_pipeline_model_parallel_world_size(),
            parallel_state.get_tensor_model_parallel_world_size(),
        ),
        (parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_tensor_model_parallel_rank()),
        replica_id=parallel_state.get_data_parallel_rank(),
    )
    return sharded


def _random_state() -> dict[str, Any]:
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def _set_random_state(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["cpu"])
    if torch.cuda.is_available() and saved["cuda"] is not None:
        torch.cuda.set_rng_state(saved["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(saved["tracker"])
