"""Dream-7B's `diffusion_generate`, batch 1, plain Python float64.

Differs from the original in three ways: the number revealed counts the masks of this row (the original averages over
the batch), the mask and other `excluded` ids are never drawn, and it stops as soon as no mask is left (the original
evaluates all `steps`). Nothing here shares code with the library.
"""

import math

from tests.references.candidates import Rules, proposals, shifted
from tests.references.llada import LogitsFn, Result, best_first, rows_of

POLICIES = {"origin": "low_confidence", "maskgit_plus": "low_confidence", "topk_margin": "margin", "entropy": "entropy"}

# What `diffusion_generate` does: top-p before top-k, and the confidence of the distribution that is drawn from. At
# temperature 0 the filters do not change the token, but they still raise the confidence.
PUBLISHED = Rules(filters="top_p_first", confidence="filtered")


def times(steps: int, eps: float) -> list[float]:
    """t_0 = 1 > t_1 > ... > t_steps = eps, evenly spaced."""
    return [1.0 - index * (1.0 - eps) / steps for index in range(steps)] + [eps]


def reveal_count(masked: int, t: float, s: float, last: bool) -> int:
    """int(masked (1 - s/t)), all at the last step. The hair lets exact integers survive floating point.

    With eps > 0 the share is a little below 1 / (steps left), so that a step may reveal nothing.
    """
    return masked if last else math.floor(masked * (1.0 - s / t) + 1e-9)


def ranked_by_draw(sure: dict[int, float], alg_temp: float, step: int, rules: Rules) -> list[int]:
    """Positions in the order of drawing without replacement from softmax(confidence / alg_temp).

    Gumbel-top-k: by falling confidence / alg_temp - log(-log u), u = uniform(step, position), over masked positions.
    """
    if rules.uniform is None:
        raise ValueError("alg_temp needs uniform")
    keys = {i: c / alg_temp - math.log(-math.log(rules.uniform(step, i))) for i, c in sure.items()}
    return best_first(keys)


def diffusion_generate(
    logits_fn: LogitsFn,
    prompt: list[int],
    max_new_tokens: int,
    steps: int,
    mask_id: int,
    rules: Rules = PUBLISHED,
    *,
    alg: str = "origin",
    alg_temp: float = 0.0,
    eps: float = 1e-3,
    logit_shift: bool = True,
    at_least_one: bool = False,
) -> Result:
    """[prompt | masks], the whole canvas visible, `steps` forwards.

    `alg` `origin`: each mask is revealed when uniform(step, position) < 1 - s/t, all at the last step. `maskgit_plus`
    (probability of the token), `topk_margin` (p1 - p2), `entropy` (sum p log p; the original adds 1e-10 inside the
    log): the best `reveal_count`, or a draw of as many under `alg_temp`. `rules.policy` is ignored. `at_least_one`
    lifts a count of 0 to 1. Steps count from 0; an `origin` step is traced left to right.
    """
    network = shifted(logits_fn) if logit_shift else logits_fn
    rules = rules._replace(policy=POLICIES[alg])
    canvas = list(prompt) + [mask_id] * max_new_tokens
    remaining = list(range(len(prompt), len(canvas)))
    grid = times(steps, eps)
    trace: list[list[int]] = []
    for step in range(steps):
        if not remaining:
            break
        t, s, last = grid[step], grid[step + 1], step == steps - 1
        rows = rows_of(network(list(canvas)), rules.excluded)
        chosen, sure = proposals(dict(enumerate(rows)), remaining, step, rules)
        if alg == "origin":
            if rules.uniform is None:
                raise ValueError("alg origin needs uniform")
            revealed = [i for i in remaining if last or rules.uniform(step, i) < 1.0 - s / t]
        else:
            count = max(reveal_count(len(remaining), t, s, last), int(at_least_one))
            ranked = best_first(sure) if alg_temp == 0 else ranked_by_draw(sure, alg_temp, step, rules)
            revealed = ranked[:count]
        for position in revealed:
            canvas[position] = chosen[position]
        remaining = [i for i in remaining if i not in revealed]
        trace.append(revealed)
    return Result(canvas, trace, len(trace))
