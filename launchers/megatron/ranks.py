"""Where this process stands among the others, and how they agree."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from launchers.megatron.recipe import Parallel


class RankLost(RuntimeError):
    """Another rank is gone."""


@dataclass(frozen=True, slots=True)
class Ranks:
    rank: int
    world: int
    device: torch.device
    store: dist.Store  # rank 0 holds it: when rank 0 is gone, waiting on it fails at once

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which copy of the model this rank computes for."""
        return parallel_state.get_data_parallel_rank()

    @property
    def copies(self) -> int:
        return parallel_state.get_data_parallel_world_size()

    @property
    def has_loss(self) -> bool:
        """True on exactly one rank: it knows the loss, so it writes the metrics."""
        return (
            parallel_state.is_pipeline_last_stage()
            and parallel_state.get_tensor_model_parallel_rank() == 0
            and self.data_rank == 0
        )

    def any(self, *mine: bool) -> tuple[bool, ...]:
        """For each of these, whether any rank says yes; the same answers on all. One exchange for all of them."""
        said = torch.tensor(mine, dtype=torch.uint8, device=self.device)
        dist.all_reduce(said, op=dist.ReduceOp.MAX)
        return tuple(bool(answer) for answer in said.tolist())


def connect(timeout_s: float) -> Ranks:
    """Find the other ranks. No process group yet: one may take long to prepare data while the others wait."""
    # As the supervisor set them; a lone process needs none of the variables.
    rank, world, local = (
        int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    if torch.cuda.is_available():
        local %= torch.cuda.device_count()  # of all GPUs this task's own, or the only one that it is shown
        torch.cuda.set_device(local)
        device = torch.device("cuda", local)
    else:
        device = torch.device("cpu")
    if world == 1:
        return Ranks(rank, world, device, dist.HashStore())
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, rank == 0, timedelta(seconds=timeout_s)
    )
    return Ranks(rank, world, device, store)


def join(ranks: Ranks, parallel: Parallel, seed: int, timeout_s: float) -> None:
    """Make the process groups of this layout: nccl between GPUs, gloo between CPUs."""
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    store = dist.PrefixStore("groups", ranks.store)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=timeout)
    parallel_state.initialize_model_parallel(
        parallel.tensor, parallel.pipeline, distributed_timeout_minutes=max(1, round(timeout_s / 60))
    )
    # Of its own for each stage: those after the first would all begin with the same weights.
    seed += 100 * parallel_state.get_pipeline_model_parallel_rank()
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
