"""What DeepSpeed relies on in the loop, shown without it: when it steps, and at which learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.training import recipes
from unmask.errors import SettingsError
from unmask.training.optim import learning_rate
from unmask.training.run import train


def test_the_last_micro_batch_takes_the_step_at_its_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed steps inside `backward` where `sync_gradients` is set, with the rate that the optimiser has then."""
    seen: list[tuple[bool, float]] = []
    backward = Accelerator.backward

    def recorded(self: Accelerator, loss: torch.Tensor, **options: Any) -> None:
        seen.append((self.sync_gradients, self._optimizers[0].param_groups[0]["lr"]))
        backward(self, loss, **options)

    monkeypatch.setattr(Accelerator, "backward", recorded)
    recipes.write_text(tmp_path)
    made = recipes.recipe(tmp_path, steps=3, batch_size=8, micro_batch_size=2, warmup_steps=2)
    train(made)
    expected = [
        (last, learning_rate(step, 3, made.training)) for step in range(3) for last in (False, False, False, True)
    ]
    assert seen == expected


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without a GPU")
def test_deepspeed_is_refused_where_accelerate_would_leave_it_out(tmp_path: Path) -> None:
    recipes.write_text(tmp_path)
    with pytest.raises(SettingsError, match=r"needs a GPU: .* Set training\.deepspeed_config=null"):
        train(recipes.recipe(tmp_path, deepspeed_config="ds.json"))
