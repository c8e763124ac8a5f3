"""Adam and its schedule, and what it takes to load its state back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from launchers.megatron.recipe import Recipe


def build(recipe: Recipe, model: Any, dtype: torch.dtype) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """The optimizer of a DDP-wrapped model, and its schedule, which counts iterations."""
    t = recipe.train
    wsd = t.schedule == "wsd"
    last = t.iterations - 1 if wsd else t.iterations  # megatron counts from 0; a wsd's last iteration has min_lr
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam", lr=t.lr, min_lr=t.min_lr, weight_decay=t.weight_decay, adam_beta1=t.beta1,
            adam_beta2=t.beta2, adam_eps=t.eps, clip_grad=t.grad_clip, bf16=dtype is torch.bfloat16, params_dtype=dtype,
            use_distributed_optimizer=recipe.parallel.distributed_optimizer,
        ),
        [model],
    )  # fmt: skip
    schedule = OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=t.lr, min_lr=t.min_lr, lr_warmup_steps=t.warmup, lr_decay_steps=last,
        lr_decay_style="WSD" if wsd else t.schedule, wsd_decay_steps=t.decay or None,
        lr_wsd_decay_style="linear", start_wd=t.weight_decay, end_wd=t.weight_decay, wd_incr_steps=t.iterations,
        wd_incr_style="constant", use_checkpoint_opt_param_scheduler=False,
    )  # fmt: skip
    return optimizer, schedule


def make_room(optimizer: MegatronOptimizer) -> None:
    """Before loading: give the distributed optimizer's Adam the state that it only makes at its first step.

    megatron expects Adam of TransformerEngine or Apex here. torch's own keeps one step count per parameter, which
    the checkpoint format leaves out, and which loading would look for.
    """
    for part in _torch_adam_parts(optimizer):
        for group in part.optimizer.param_groups:
            for p in group["params"]:
                if not part.optimizer.state[p]:
                    moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                    part.optimizer.state[p] = {"step": torch.tensor(0.0), **moments}
        part._set_main_param_and_optimizer_states = _keeping_step(part)


def set_steps(optimizer: MegatronOptimizer, iteration: int) -> None:
    """After loading: continue Adam's bias correction where it stopped. Each parameter has a counter of its own:
    with a shared one a single step would count once per parameter, and train wrongly without an error."""
    for part in _torch_adam_parts(optimizer):
        for state in part.optimizer.state.values():
            state["step"] = torch.tensor(float(iteration))


def _torch_adam_parts(optimizer: MegatronOptimizer) -> Iterator[Any]:
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(part, DistributedOptimizer) and isinstance(part.optimizer, torch.optim.Optimizer):
            module = type(part.optimizer).__module__
            if module.startswith("torch."):
                yield part


def _keeping_step(part: Any) -> Any:
    original = type(part)._set_main_param_and_optimizer_states

    def set_states(model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        group, order = part.model_param_group_index_map[model_param]
        state = part.optimizer.state[part.optimizer.param_groups[group]["params"][order]]
        original(part, model_param, {"step": state["step"], **tensors})

    return set_states
