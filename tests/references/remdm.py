"""ReMDM (Wang, Schiff, Sahoo, Kuleshov, arXiv 2503.00307): masked diffusion that reopens revealed tokens.

Time runs from t = 1 (all masked) to 0; alpha(t) is the probability that a token is visible. A step from t to s < t:
    sigma_max = min(1, (1 - alpha_s) / alpha_t), and 1 where alpha_t = 0
    a visible token is masked again with probability sigma, else it stays
    a masked token is revealed with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)
Each position decides for itself. For 0 <= sigma <= sigma_max the probability of being visible at s is alpha_s
whatever sigma is, so a network trained as usual serves; sigma = 0 is MDLM's ancestral sampler. Strategies (section
4.1): cap sigma = min(eta, sigma_max); rescale sigma = eta sigma_max; conf sigma_i = softmax_i(-psi) sigma_max over
the visible tokens, psi = the probability of the token when it was last revealed. Section 4.2: loop, alpha is held at
alpha_on while t_off < t <= t_on and only there sigma = eta. The authors use eta 0.008 (cap), 0.015 (rescale), and
for loop eta 0.02, t_on 0.55, t_off 0.05, alpha_on 0.9, all at 1024 steps.

Grid of the authors' code: t_i = 1 - i (1 - eps) / steps, eps = 1e-5, alpha(t) = 1 - t; then the masks that are left
are filled with the argmax by one more forward. With eps = 0 the last step has sigma_max = 0 and reveals everything.
Batch 1, plain Python float64; nothing here shares code with the library.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from tests.references.candidates import Rules, proposals
from tests.references.llada import LogitsFn, argmax, rows_of

Alpha = Callable[[float], float]

STRATEGIES = ("none", "cap", "rescale", "conf", "loop")


class Reopened(NamedTuple):
    """`revealed[step]` and `reopened[step]`: positions, left to right; `forwards` counts network evaluations."""

    canvas: list[int]
    revealed: list[list[int]]
    reopened: list[list[int]]
    forwards: int


class Loop(NamedTuple):
    """The times and the share of visible tokens of the loop strategy; t_off < t_on."""

    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9


def times(steps: int, eps: float) -> list[float]:
    """t_0 = 1 > t_1 > ... > t_steps = eps, evenly spaced."""
    return [1.0 - index * (1.0 - eps) / steps for index in range(steps)] + [eps]


def linear_alpha(t: float) -> float:
    return 1.0 - t


def loop_alpha(t: float, loop: Loop) -> float:
    """alpha of the loop strategy: linear to alpha_on at t_on, constant until t_off, linear to 1 at 0."""
    if t > loop.t_on:
        return loop.alpha_on * (1.0 - t) / (1.0 - loop.t_on)
    if t > loop.t_off:
        return loop.alpha_on
    return 1.0 - (1.0 - loop.alpha_on) * t / loop.t_off


def published_loop_alphas(t: float, s: float, loop: Loop) -> tuple[float, float]:
    """(alpha_t, alpha_s) of the authors' code, which extends the phase of t to s.

    Equal to `loop_alpha` unless a step crosses t_on or t_off; there it overshoots alpha_on, and the marginals drift.
    """
    if t > loop.t_on:
        return loop.alpha_on * (1.0 - t) / (1.0 - loop.t_on), loop.alpha_on * (1.0 - s) / (1.0 - loop.t_on)
    if t > loop.t_off:
        return loop.alpha_on, loop.alpha_on
    return loop_alpha(t, loop), loop_alpha(s, loop)


def sigma_max(alpha_t: float, alpha_s: float) -> float:
    return 1.0 if alpha_t <= 0.0 else min(1.0, (1.0 - alpha_s) / alpha_t)


def sigma(strategy: str, eta: float, t: float, alpha_t: float, alpha_s: float, loop: Loop) -> float:
    """sigma_t of the strategies that treat all positions alike; `loop` is capped at sigma_max, too."""
    if strategy == "none":
        return 0.0
    if strategy == "cap":
        return min(eta, sigma_max(alpha_t, alpha_s))
    if strategy == "rescale":
        return eta * sigma_max(alpha_t, alpha_s)
    if strategy == "loop":
        return min(eta, sigma_max(alpha_t, alpha_s)) if loop.t_off < t <= loop.t_on else 0.0
    raise ValueError(strategy)


def conf_sigmas(psi: dict[int, float], alpha_t: float, alpha_s: float) -> dict[int, float]:
    """sigma_i of the visible positions: softmax of -psi over them, times sigma_max.

    They add up to sigma_max, so a step reopens at most one token in expectation. A masked position has psi = +inf, so
    sigma 0: it is revealed with MDLM's probability. The marginals are then not those of alpha: from P(visible at t) =
    alpha_t follows P(visible at s) = alpha_s - sigma_max P(any is visible) / length.
    """
    total = math.fsum(math.exp(-value) for value in psi.values())
    return {i: math.exp(-value) / total * sigma_max(alpha_t, alpha_s) for i, value in psi.items()}


def reveal_probability(alpha_t: float, alpha_s: float, sigma_t: float) -> float:
    return (alpha_s - (1.0 - sigma_t) * alpha_t) / (1.0 - alpha_t)


def remdm(
    logits_fn: LogitsFn,
    prompt: list[int],
    gen_length: int,
    steps: int,
    mask_id: int,
    rules: Rules,
    strategy: str,
    *,
    eta: float = 0.0,
    eps: float = 1e-5,
    alpha: Alpha = linear_alpha,
    loop: Loop = Loop(),  # noqa: B008 (a NamedTuple is immutable)
    published_loop: bool = False,
) -> Reopened:
    """[prompt | masks], `steps` forwards, and one more if masks are left; the prompt is never reopened.

    A visible position is reopened when uniform(step, position) < sigma, a masked one revealed when uniform(step,
    position) < the probability above, both on the state before the step; `rules.noise` draws the token (the authors
    draw at temperature 1 after top-p). psi is the probability of the token under `rules.confidence` (`filtered` in
    the authors' code). `alpha` serves all strategies but loop. `rules.policy` is ignored.
    """
    if strategy not in STRATEGIES or rules.uniform is None:
        raise ValueError(f"{strategy} with uniform={rules.uniform}")
    uniform = rules.uniform
    rules = rules._replace(policy="low_confidence")
    canvas = list(prompt) + [mask_id] * gen_length
    masked = list(range(len(prompt), len(canvas)))
    psi: dict[int, float] = {}  # of the visible generated positions
    all_revealed: list[list[int]] = []
    all_reopened: list[list[int]] = []
    grid = times(steps, eps)
    for step in range(steps):
        t, s = grid[step], grid[step + 1]
        alpha_t, alpha_s = alpha(t), alpha(s)
        if strategy == "loop":
            alpha_t, alpha_s = loop_alpha(t, loop), loop_alpha(s, loop)
            if published_loop:
                alpha_t, alpha_s = published_loop_alphas(t, s, loop)
        if strategy == "conf":
            sigmas, sigma_masked = conf_sigmas(psi, alpha_t, alpha_s), 0.0
        else:
            sigma_masked = sigma(strategy, eta, t, alpha_t, alpha_s, loop)
            sigmas = dict.fromkeys(psi, sigma_masked)
        rows = rows_of(logits_fn(list(canvas)), rules.excluded)
        chosen, sure = proposals(dict(enumerate(rows)), masked, step, rules)
        chance = reveal_probability(alpha_t, alpha_s, sigma_masked)
        revealed = [i for i in masked if uniform(step, i) < chance]
        reopened = [i for i in sorted(psi) if uniform(step, i) < sigmas[i]]
        for i in revealed:
            canvas[i], psi[i] = chosen[i], sure[i]
        for i in reopened:
            canvas[i] = mask_id
            del psi[i]
        masked = [i for i in range(len(prompt), len(canvas)) if i not in psi]
        all_revealed.append(revealed)
        all_reopened.append(reopened)
    if masked:
        rows = rows_of(logits_fn(list(canvas)), rules.excluded)
        for i in masked:
            canvas[i] = argmax(rows[i])
        all_revealed.append(masked)
        all_reopened.append([])
    return Reopened(canvas, all_revealed, all_reopened, len(all_revealed))
