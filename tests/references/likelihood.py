"""Exact likelihood bounds on toys that can be enumerated, and closed forms of the masking schedules.

Everything is in nats and float64. Nothing here shares code with the library.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

SCHEDULES = ("linear", "cosine", "cosine_squared", "polynomial")

CrossEntropy = Callable[[tuple[bool, ...]], list[float]]
Predictor = Callable[[list[int], tuple[bool, ...]], Tensor]


def masked_cross_entropy(cross_entropy: CrossEntropy, masked: tuple[bool, ...]) -> float:
    """CE_S: the sum of the cross-entropies over the masked positions only."""
    values = cross_entropy(masked)
    return math.fsum(value for value, hidden in zip(values, masked, strict=True) if hidden)


def exact_elbo(tokens: list[int], cross_entropy: CrossEntropy) -> float:
    """Negative ELBO of masked diffusion: the sum over non-empty S of CE_S / (|S| C(L, |S|)).

    Follows from the continuous-time bound (MDLM, MD4, RADD) because the integral over p of
    p^(m-1) (1-p)^(L-m) is 1 / (m C(L, m)). Positive, in nats, of the whole sequence.
    """
    length = len(tokens)
    terms: list[float] = []
    for masked in itertools.product([False, True], repeat=length):
        size = sum(masked)
        if size > 0:
            terms.append(masked_cross_entropy(cross_entropy, masked) / (size * math.comb(length, size)))
    return math.fsum(terms)


def any_order_nll(tokens: list[int], cross_entropy: CrossEntropy) -> float:
    """Mean over all L! orders of the chain rule (masked diffusion = any-order autoregression, RADD)."""
    length = len(tokens)
    totals: list[float] = []
    for order in itertools.permutations(range(length)):
        terms: list[float] = []
        for place, position in enumerate(order):
            hidden = set(order[place:])
            terms.append(cross_entropy(tuple(i in hidden for i in range(length)))[position])
        totals.append(math.fsum(terms))
    return math.fsum(totals) / math.factorial(length)


def continuous_elbo(
    name: str, tokens: list[int], cross_entropy: CrossEntropy, power: float = 1.0, points: int = 20000
) -> float:
    """Negative ELBO as the time integral of w(t) E[CE of the masked tokens], midpoint rule (MDLM, MD4)."""
    length = len(tokens)
    by_size = [0.0] * (length + 1)
    for masked in itertools.product([False, True], repeat=length):
        by_size[sum(masked)] += masked_cross_entropy(cross_entropy, masked)
    terms: list[float] = []
    for point in range(points):
        t = (point + 0.5) / points
        p = masked_share(name, t, power)
        expected = math.fsum(by_size[m] * p**m * (1.0 - p) ** (length - m) for m in range(1, length + 1))
        terms.append(weight(name, t, power) * expected / points)
    return math.fsum(terms)


def bayes_predictor(joint: Tensor) -> Predictor:
    """The perfect denoiser of a joint law over V^L sequences (a tensor of shape [V] * L).

    The returned function maps (tokens, masked) to log-probabilities [L, V]: row i is the posterior marginal
    p(x_i | visible tokens). The row of a visible position is certain of its token.
    """
    law = joint.to(torch.float64) / joint.to(torch.float64).sum()
    length, vocabulary = law.dim(), law.shape[0]

    def predict(tokens: list[int], masked: tuple[bool, ...]) -> Tensor:
        posterior = torch.zeros(length, vocabulary, dtype=torch.float64)
        for sequence in itertools.product(range(vocabulary), repeat=length):
            if all(masked[i] or sequence[i] == tokens[i] for i in range(length)):
                for i in range(length):
                    posterior[i, sequence[i]] += law[sequence]
        return (posterior / posterior.sum(dim=1, keepdim=True)).log()

    return predict


def exact_nelbo_bayes(joint: Tensor, tokens: list[int]) -> float:
    """Negative ELBO of `tokens` under the perfect denoiser; must be exactly -log p(tokens)."""
    predict = bayes_predictor(joint)

    def cross_entropy(masked: tuple[bool, ...]) -> list[float]:
        log_probabilities = predict(tokens, masked)
        return [-float(log_probabilities[i, token]) for i, token in enumerate(tokens)]

    return exact_elbo(tokens, cross_entropy)


def masked_share(name: str, t: float, power: float = 1.0) -> float:
    """p(t) = 1 - alpha(t), the probability that a token is masked at time t."""
    if name == "linear":
        return t
    if name == "cosine":
        return math.cos(math.pi / 2.0 * (1.0 - t))
    if name == "cosine_squared":
        return math.sin(math.pi / 2.0 * t) ** 2
    if name == "polynomial":
        return t**power
    raise ValueError(name)


def alpha(name: str, t: float, power: float = 1.0) -> float:
    """Probability that a token is still visible at time t.

    linear 1-t; cosine (MaskGIT, MD4) 1-cos(pi/2 (1-t)); cosine_squared (Zhang and Syed) cos^2(pi/2 t);
    polynomial 1-t^k.
    """
    if name == "linear":
        return 1.0 - t
    if name == "cosine":
        return 1.0 - math.cos(math.pi / 2.0 * (1.0 - t))
    if name == "cosine_squared":
        return math.cos(math.pi / 2.0 * t) ** 2
    if name == "polynomial":
        return 1.0 - t**power
    raise ValueError(name)


def weight(name: str, t: float, power: float = 1.0) -> float:
    """ELBO weight w(t) = -alpha'(t) / (1 - alpha(t)), for t > 0 (MDLM, MD4)."""
    if name == "linear":
        return 1.0 / t
    if name == "cosine":
        return math.pi / 2.0 * math.tan(math.pi / 2.0 * (1.0 - t))
    if name == "cosine_squared":
        return math.pi / math.tan(math.pi / 2.0 * t)
    if name == "polynomial":
        return power / t
    raise ValueError(name)


def inverse_masked_share(name: str, share: float, power: float = 1.0) -> float:
    """The time t at which p(t) = share, by bisection; the ends p(0) = 0 and p(1) = 1 are exact."""
    if share <= 0.0:
        return 0.0
    if share >= 1.0:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2.0
        if masked_share(name, middle, power) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def count_law(name: str, n: int, power: float = 1.0) -> list[float]:
    """P(m) for m = 1..n (entry m-1): P(m) = t(m/n) - t((m-1)/n). Linear gives 1/n each (LLaDA, Eq. 6)."""
    times = [inverse_masked_share(name, m / n, power) for m in range(n + 1)]
    return [times[m] - times[m - 1] for m in range(1, n + 1)]


def uniform_count_elbo(name: str, n: int, power: float = 1.0) -> float:
    """Expected count-based loss per token when every token costs 1 nat; must be exactly 1."""
    law = count_law(name, n, power)
    return math.fsum(law[m - 1] * (1.0 / (m * law[m - 1])) * m / n for m in range(1, n + 1))


def count_elbo(name: str, tokens: list[int], cross_entropy: CrossEntropy, power: float = 1.0) -> float:
    """Expectation of the count-based estimator, per token: m ~ P, m random positions, CE_S / (m P(m)) / n."""
    n = len(tokens)
    law = count_law(name, n, power)
    terms: list[float] = []
    for masked in itertools.product([False, True], repeat=n):
        m = sum(masked)
        if m > 0:
            probability = law[m - 1] / math.comb(n, m)
            row_weight = 1.0 / (m * law[m - 1])
            terms.append(probability * row_weight * masked_cross_entropy(cross_entropy, masked) / n)
    return math.fsum(terms)


def main() -> None:
    """Self-check: the Bayes denoiser's bound is the log-likelihood itself, for every sequence of a toy."""
    joint = torch.rand([3, 3, 3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joint = joint / joint.sum()
    worst = 0.0
    for sequence in itertools.product(range(3), repeat=3):
        exact = -math.log(float(joint[sequence]))
        worst = max(worst, abs(exact_nelbo_bayes(joint, list(sequence)) - exact))
    print(f"largest |NELBO + log p(x)| over 27 sequences: {worst:.2e}")
    if worst > 1e-12:
        raise SystemExit("the bound of the perfect denoiser is not the log-likelihood")


if __name__ == "__main__":
    main()
