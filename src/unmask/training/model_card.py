"""The README of a trained model."""

from __future__ import annotations

import math

from unmask.runs import STEP, RunFolder, environment, metrics_lines
from unmask.settings.recipe import Recipe
from unmask.training import lineage


def model_card(recipe: Recipe, run: RunFolder) -> str:
    """A model card in the hub's format: what it is, how it was trained, how good it is, how to use it."""
    method = recipe.objective.method
    packages = ", ".join(f"{name} {version}" for name, version in environment()["packages"].items())
    base = recipe.model.from_pretrained
    origin = f"continued from `{base}`" if base else "trained from scratch"
    if recipe.adapter.rank is not None:
        origin = f"a LoRA adapter of rank {recipe.adapter.rank} on `{base}`, trained"
    is_chat = recipe.data.format == "chat"
    prompt = '[{"role": "user", "content": "Who are you?"}]' if is_chat else "None"
    held_out = "text" if recipe.data.format == "text" else "answers (each with the token that ends it)"
    return f"""---
library_name: unmask
pipeline_tag: text-generation
tags: [unmask, {method}]
---

# {recipe.name}

A `{method}` language model, {origin} with Unmask.

```python
from unmask import DiffusionLM, SamplingParams

lm = DiffusionLM.from_pretrained("{run.final}")
print(lm.generate({prompt}, SamplingParams(max_new_tokens=64))[0].text)
```

## Held-out {held_out}

{_scores(run)}

Data: {", ".join(recipe.data.train)}; `unmask evaluate {run.root}` measures it again.

## Recipe

```yaml
{lineage.to_yaml(recipe).rstrip()}
```

Versions: {packages}.
"""


def _scores(run: RunFolder) -> str:
    lines = list(metrics_lines(run.metrics))
    damaged = [line.where for line in lines if line.damage is not None]
    missing = f"\n\nDamaged records were passed over: {', '.join(damaged)}." if damaged else ""
    scored = [line.values for line in lines if math.isfinite(line.values.get("eval/bits_per_byte", math.nan))]
    source = run.checkpoint("best") or run.checkpoint("latest")
    if source is not None and (match := STEP.fullmatch(source.name)):  # the score of this model, and of no other
        scored = [record for record in scored if record["step"] == int(match[1])]
    if not scored:
        return f"None was held out.{missing}"
    best = min(scored, key=lambda record: record["eval/bits_per_byte"])
    return (
        "| step | bits per byte | standard error | nats per token |\n|---|---|---|---|\n"
        f"| {best['step']} | {best['eval/bits_per_byte']:.4f} | {best['eval/stderr']:.4f} "
        f"| {best['eval/nats_per_token']:.4f} |{missing}"
    )
