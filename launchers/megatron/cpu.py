"""Let megatron-core 0.16 run on a machine without a GPU. Does nothing where there is one.

megatron-core says `torch.cuda` in places that have nothing to do with a GPU's speed. Nothing in torch is patched here,
because other libraries share it (a global patch once left transformers' rotary buffers uninitialised, silently).
Instead each megatron.core module that mentions cuda gets a stand-in under its own global name `torch`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch

# Imported by megatron only when a checkpoint is saved: imported here first, so that they get the stand-in too.
_LAZY = (
    "exchange_utils", "strategies.async_utils", "strategies.common", "strategies.filesystem_async",
    "strategies.fully_parallel", "strategies.state_dict_saver", "strategies.torch",
)  # fmt: skip
_FACTORIES = ("zeros", "ones", "empty", "tensor", "full", "arange")


class _StandIn(types.ModuleType):
    """A module with some names replaced; every other name is the original's."""

    def __init__(self, original: types.ModuleType, **replaced: Any) -> None:
        super().__init__(original.__name__)
        self.__dict__.update(replaced, _original=original)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)


def install() -> None:
    """Prepare every megatron.core module loaded so far. Call it after importing megatron; again is harmless."""
    if torch.cuda.is_available():
        return
    for name in _LAZY:
        importlib.import_module(f"megatron.core.dist_checkpointing.{name}")
    stand_in = _torch_without_cuda()
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and getattr(module, "torch", None) is torch and _mentions_cuda(module):
            module.torch = stand_in  # type: ignore[attr-defined]  # a module's global, replaced on purpose

    from megatron.core.optimizer import clip_grads, optimizer
    from megatron.core.tensor_parallel import random

    random._set_cuda_rng_state = _set_rng_state  # the original waits for a CUDA initialisation that never comes
    # The original insists on gradients of type torch.cuda.FloatTensor.
    clip_grads.clip_grad_by_total_norm_fp32 = optimizer.clip_grad_by_total_norm_fp32 = _clip


def adopt(model: torch.nn.Module) -> None:
    """Make this model's parameters, and no others, name their type as megatron's optimizers expect it."""
    if not torch.cuda.is_available():
        for parameter in model.parameters():
            parameter.__class__ = _Parameter


class _Parameter(torch.nn.Parameter):
    """megatron's optimizers sort parameters by the text of their type: 'torch.cuda.FloatTensor'."""

    def type(self, *args: Any, **kwargs: Any) -> Any:
        result = super().type(*args, **kwargs)
        return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result


def _torch_without_cuda() -> _StandIn:
    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    def get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.get_rng_state()

    state = {"get_rng_state": get_rng_state, "set_rng_state": _set_rng_state}
    cuda = _StandIn(
        torch.cuda, current_device=lambda: torch.device("cpu"), device_count=lambda: 1, set_device=nothing,
        synchronize=nothing, empty_cache=nothing, manual_seed=torch.manual_seed,
        random=types.SimpleNamespace(**state), **state,
    )  # fmt: skip
    return _StandIn(torch, cuda=cuda, **{name: _on_cpu(getattr(torch, name)) for name in _FACTORIES})


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return make


def _set_rng_state(new_state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.set_rng_state(new_state)


def _clip(
    parameters: Iterable[torch.Tensor] | torch.Tensor,
    max_norm: float,
    total_norm: float,
    use_decoupled_grad: bool = False,
) -> None:
    factor = max_norm / (total_norm + 1e-6)
    if factor < 1.0:
        listed = [parameters] if isinstance(parameters, torch.Tensor) else parameters
        torch._foreach_mul_([p.grad for p in listed if p.grad is not None], factor)


def _mentions_cuda(module: types.ModuleType) -> bool:
    try:
        return "cuda" in inspect.getsource(module)
    except (OSError, TypeError):  # a module without source
        return False
