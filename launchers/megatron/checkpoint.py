"""Save and load everything a run needs to continue exactly: weights, optimizer, schedule, random state, position.

The tensors go through megatron's dist_checkpointing, so another number of ranks or another layout can load them. Next
to them stand the recipe and the tokenizer: a checkpoint directory can be converted with nothing else at hand. It
exists when its manifest does, and only then is it announced.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

from launchers import announce
from launchers.megatron import manifest, model, optimizer
from launchers.megatron.data import Dataset
from launchers.megatron.metrics import Metrics
from launchers.megatron.ranks import Ranks
from launchers.megatron.recipe import Recipe, to_dict
from launchers.run_folder import RunFolder

RECIPE, TOKENIZER = "recipe.json", "tokenizer"


@dataclass
class State:
    """What a checkpoint holds; the sample position follows from the iteration and the recipe."""

    model: Any  # DistributedDataParallel around GPTModel
    optimizer: Any
    schedule: Any
    iteration: int = 0


class Checkpoints:
    """The checkpoints of one run. Every method is called by all ranks together."""

    def __init__(self, folder: RunFolder, recipe: Recipe, dataset: Dataset, ranks: Ranks, metrics: Metrics) -> None:
        self._folder, self._recipe, self._dataset = folder, recipe, dataset
        self._ranks, self._metrics = ranks, metrics
        self._precision = str(model.precision(recipe.train.precision, ranks.device)).removeprefix("torch.")
        self._writing = AsyncCallsQueue()
        self.saved = -1  # the newest iteration that was saved or loaded

    def save(self, state: State) -> None:
        """Save `state`; asynchronously when the recipe says so, but never two at a time."""
        started = time.monotonic()
        self.settle()
        iteration = state.iteration
        path = self._folder.checkpoints / f"iter_{iteration:07d}"
        if self._ranks.first:
            shutil.rmtree(path, ignore_errors=True)  # left half-written by an earlier attempt
            path.mkdir(parents=True)
        dist.barrier()
        layout = _layout()
        request = dist_checkpointing.save(
            _sharded(state, layout, loading=False),
            str(path),
            async_sharded_save=self._recipe.checkpoint.asynchronous,
            content_metadata={k: v for k, v in layout.items() if k != "dp_cp_group"},
        )
        self.saved = iteration
        if request is None:
            self._complete(path, iteration, started)
        else:
            blocked = time.monotonic() - started
            request.add_finalize_fn(lambda: self._complete(path, iteration, started, blocked))
            self._writing.schedule_async_request(request)

    def settle(self, wait: bool = True) -> None:
        """Complete what is being written in the background: all of it, or (`wait` off) what is done by now."""
        self._writing.maybe_finalize_async_calls(blocking=wait)

    def load(self, state: State, path: Path) -> None:
        """Continue from a complete checkpoint of this run."""
        layout = _layout()
        wanted = _sharded(state, layout, loading=True)
        if manifest.read(path).facts["parallel"] != _parallel(self._recipe):
            del wanted["rng"]  # kept per (pipeline, tensor) rank, so it has no meaning in another layout
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's deprecations inside its own checkpoint reader
            loaded = dist_checkpointing.load(wanted, str(path))
        state.model.module.load_state_dict(loaded["model"])
        state.optimizer.load_state_dict(loaded["optimizer"])
        state.schedule.load_state_dict(loaded["schedule"])
        state.iteration = self.saved = int(loaded["iteration"])
        optimizer.set_steps(state.optimizer, state.iteration)
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

    def _complete(self, path: Path, iteration: int, started: float, blocked: float | None = None) -> None:
        if self._ranks.first:
            (path / RECIPE).write_text(json.dumps(to_dict(self._recipe), indent=1) + "\n", encoding="utf-8")
            shutil.copytree(self._dataset.tokenizer, path / TOKENIZER)
            done = manifest.write(
                path,
                "checkpoint",
                iteration=iteration,
                run=self._folder.id,
                parallel=_parallel(self._recipe),
                ranks=self._ranks.world,
                precision=self._precision,
            )
            self._announce(path, done)
        dist.barrier()
        took = time.monotonic() - started
        block = took if blocked is None else blocked
        self._metrics.emit(
            f"checkpoint {path.name}: complete after {took:.2f} s, training stood still for {block:.2f} s",
            checkpoint=iteration,
            block_s=round(block, 3),
            save_s=round(took, 3),
        )

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


def _parallel(recipe: Recipe) -> dict[str, int]:
    return {"tensor": recipe.parallel.tensor, "pipeline": recipe.parallel.pipeline}


def _layout() -> dict[str, Any]:
    """How megatron is to name the shards: so that another number of ranks can find them."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        # True gathers the optimizer's shards through gloo. nccl is quicker, but that code fails without a GPU.
        "distrib_optim_fully_reshardable_mem_efficient": not torch.cuda.is_available(),
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
