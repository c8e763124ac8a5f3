"""How much of its GPUs' peak a run uses."""

from __future__ import annotations

import pytest

from launchers.megatron.flops import utilisation


def test_a_run_at_half_of_all_its_gpus_peak_has_half_the_utilisation() -> None:
    # 8 GPUs of 1,000 TFLOPS; a model of 6 GFLOP per token would need 1,333,333 tokens/s for all of it.
    assert utilisation(666_667, 6e9, 8, 1000.0) == pytest.approx(0.5, rel=1e-6)
