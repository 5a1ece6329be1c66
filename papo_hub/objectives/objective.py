"""An algorithm is data: a tuple of terms. An objective is that tuple with its weights.

    PAPO-G   surrogate + β·KL_ref - γ·KL_prcp + η1·H[π] + η2·H[π_mask]     mean over completions of their token means
    PAPO-D   surrogate            - γ·KL_prcp + η1·H[π] + η2·H[π_mask]     mean over all tokens

written as a loss (the paper maximises the negative). Without the perception and entropy terms PAPO-G is GRPO and PAPO-D
is DAPO. A term whose weight is 0 is not computed at all, so the equality holds bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from papo_hub.objectives import reduce, terms
from papo_hub.objectives.shaping import top_tokens


class Counts(NamedTuple):
    """Denominators of one whole update: over all its micro-batches and processes."""

    tokens: Tensor | float
    sequences: Tensor | float


@dataclass(frozen=True)
class Logprobs:
    """What the terms read of one micro-batch. All (B, T), except advantages and perception_weights (B,)."""

    policy: Tensor  # with gradient
    old: Tensor
    advantages: Tensor
    completion_mask: Tensor
    reference: Tensor | None = None
    masked: Tensor | None = None  # with gradient where they are live, without where frozen
    noisy: Tensor | None = None  # likewise
    sampled: Tensor | None = None  # in the engine that sampled, where that is not the policy
    token_weights: Tensor | None = None  # of the advantage, a token; None: 1
    perception_weights: Tensor | None = None  # of the perception KL, a completion; None: 1
    # Over the whole vocabulary, where the estimator is exact; None: estimated from the log-probs above.
    divergence: Tensor | None = None  # of the clean view from the masked one
    entropy: Tensor | None = None
    masked_entropy: Tensor | None = None


@dataclass(frozen=True)
class Weights:
    """The numbers of an objective. `gamma` may follow a schedule; the etas are then scaled by the same factor."""

    gamma: float = 0.0
    eta_clean: float = 0.0
    eta_masked: float = 0.0
    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float = 0.3
    delta: float | None = 3.0  # the dual clip
    estimator: str = "k3"  # of the divergence, where it is sampled
    robustness: float = 0.0
    perception_top_p: float = 1.0  # share of a completion's tokens whose perception KL counts: the largest
    perception_clip: float | None = None  # nats: what is above it counts as this, without gradient
    importance_correction: bool = True  # tokens count by old / sampled, where another engine than the policy sampled

    def discounted(self, gamma: float) -> Weights:
        """The weights at the moment when the schedule stands at `gamma`."""
        factor = gamma / self.gamma if self.gamma else 1.0
        return replace(self, gamma=gamma, eta_clean=self.eta_clean * factor, eta_masked=self.eta_masked * factor)


@dataclass(frozen=True)
class Term:
    """One summand of the loss: sign · weight · reduction(values).

    Attributes:
        name: under which it is logged.
        values: (Logprobs, Weights) → (B, T).
        reduction: "token" or "sequence".
        weight: the field of `Weights` that scales it, and the recipe's key; None: 1.
        sign: -1 for what is rewarded.
        symbol: what the values are, in LaTeX, for model cards; "" for the surrogate.
        live: whether nothing comes of it where the log-probs of the other views are frozen.
    """

    name: str
    values: Callable[[Logprobs, Weights], Tensor]
    reduction: str
    weight: str | None = None
    sign: int = 1
    symbol: str = ""
    live: bool = False

    def scale(self, weights: Weights) -> float:
        return self.sign * (1.0 if self.weight is None else getattr(weights, self.weight))


def _advantages(x: Logprobs, w: Weights) -> Tensor:
    """(B,), or (B, T) where tokens weigh differently."""
    advantages = x.advantages if x.token_weights is None else x.advantages[:, None] * x.token_weights
    if x.sampled is None or not w.importance_correction:
        return advantages
    weights = terms.importance_weights(x.old, x.sampled)
    return weights * (advantages if advantages.ndim == 2 else advantages[:, None])


def _surrogate(x: Logprobs, w: Weights) -> Tensor:
    return terms.clipped_surrogate(x.policy, x.old, _advantages(x, w), w.epsilon, w.epsilon_high, w.delta)


def _reference_kl(x: Logprobs, w: Weights) -> Tensor:
    return terms.reference_kl(x.policy, x.reference)


def _divergence(x: Logprobs, w: Weights) -> Tensor:
    """Of the clean view from the masked one."""
    return terms.perception_kl(x.policy, x.masked, w.estimator) if x.divergence is None else x.divergence


def _perception_kl(x: Logprobs, w: Weights) -> Tensor:
    """The divergence as it counts in the loss."""
    values = _divergence(x, w)
    if w.perception_top_p < 1:
        values = values * top_tokens(values.detach(), x.completion_mask, w.perception_top_p)
    if w.perception_clip is not None:
        values = values.clamp(max=w.perception_clip)
    return values if x.perception_weights is None else values * x.perception_weights[:, None]


def _robustness_kl(x: Logprobs, w: Weights) -> Tensor:
    return terms.robustness_kl(x.policy, x.noisy)


def _verified_likelihood(x: Logprobs, w: Weights) -> Tensor:
    return terms.verified_likelihood(x.noisy, x.advantages)


def _entropy(x: Logprobs, w: Weights) -> Tensor:
    return terms.entropy(x.policy) if x.entropy is None else x.entropy


def _masked_entropy(x: Logprobs, w: Weights) -> Tensor:
    return terms.entropy(x.masked) if x.masked_entropy is None else x.masked_entropy


# LaTeX without backslash-punctuation, which some Markdown renderers eat.
KL_REFERENCE = r"\mathrm{KL}[\pi \Vert \pi_{\mathrm{ref}}]"
KL_PERCEPTION = r"\mathrm{KL}[\pi \Vert \pi_{\mathrm{mask}}]"
KL_NOISE = r"\mathrm{KL}[\pi \Vert \pi_{\mathrm{noise}}]"
ENTROPY, MASKED_ENTROPY = r"\mathrm{H}[\pi]", r"\mathrm{H}[\pi_{\mathrm{mask}}]"


def _perception(reduction: str) -> tuple[Term, ...]:
    return (
        Term("perception_kl", _perception_kl, reduction, "gamma", -1, KL_PERCEPTION),
        Term("entropy", _entropy, reduction, "eta_clean", symbol=ENTROPY),
        Term("masked_entropy", _masked_entropy, reduction, "eta_masked", symbol=MASKED_ENTROPY),
    )


GRPO = (
    Term("surrogate", _surrogate, "sequence"),
    Term("reference_kl", _reference_kl, "sequence", "beta", symbol=KL_REFERENCE),
)
DAPO = (Term("surrogate", _surrogate, "token"),)
PAPO_G = GRPO + _perception("sequence")
PAPO_D = DAPO + _perception("token")
DVRP = PAPO_D + (Term("robustness_kl", _robustness_kl, "token", "robustness", symbol=KL_NOISE),)
VERIFIED = r"\max(A, 0) \log \pi_{\mathrm{noise}}"
GRPO_V = GRPO + (Term("verified_likelihood", _verified_likelihood, "sequence", "robustness", -1, VERIFIED, live=True),)

OBJECTIVES: dict[str, tuple[Term, ...]] = {
    "grpo": GRPO,
    "dapo": DAPO,
    "papo_g": PAPO_G,
    "papo_d": PAPO_D,
    "dvrp": DVRP,
    "grpo_v": GRPO_V,
}


def with_reduction(algorithm: tuple[Term, ...], reduction: str) -> tuple[Term, ...]:
    """The same terms, each reduced by "token" or "sequence" means."""
    return tuple(replace(term, reduction=reduction) for term in algorithm)


@dataclass(frozen=True)
class Objective:
    """Terms with weights: called on log-probs it gives the loss of a micro-batch and what there is to log.

    The losses of all micro-batches of all processes *sum* to the loss of the update, since the denominators in `Counts`
    are those of the whole.
    """

    terms: tuple[Term, ...]
    weights: Weights

    @property
    def active(self) -> tuple[Term, ...]:
        """The terms whose weight is not 0."""
        return tuple(term for term in self.terms if term.scale(self.weights) != 0)

    def needs(self, name: str) -> bool:
        return any(term.name == name for term in self.active)

    def only(self, name: str) -> Objective:
        """That of one term, whose weight is as it is, or 1 where it is 0."""
        (term,) = (term for term in self.terms if term.name == name)
        weighs = term.scale(self.weights) != 0
        return Objective((term,), self.weights if weighs else replace(self.weights, **{term.weight: 1.0}))

    @property
    def needs_reference(self) -> bool:
        return self.needs("reference_kl")

    @property
    def needs_masked(self) -> bool:
        return self.needs("perception_kl") or self.needs("masked_entropy")

    @property
    def needs_noisy(self) -> bool:
        return any(term.weight == "robustness" for term in self.active)

    def __call__(self, logprobs: Logprobs, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (scalar, with gradient) and token sums for the log (name → scalar, without).

        The sums, divided by the number of tokens of the whole, are the logged means: every divergence and entropy that
        the given log-probs allow, whether or not a term uses it, and the two clip fractions.
        """
        x, w, mask = logprobs, self.weights, logprobs.completion_mask
        loss = torch.zeros((), device=x.policy.device)
        for term in self.active:
            values = term.values(x, w)
            if term.reduction == "token":
                reduced = reduce.token_mean(values, mask, counts.tokens)
            else:
                reduced = reduce.sequence_mean(values, mask, counts.sequences)
            loss = loss + term.scale(w) * reduced

        with torch.no_grad():
            high, low = terms.clip_fractions(x.policy, x.old, _advantages(x, w), w.epsilon, w.epsilon_high)
            logged = {
                "surrogate": _surrogate(x, w),
                "entropy": _entropy(x, w),
                "clip_fraction_high": high,
                "clip_fraction_low": low,
            }
            if x.reference is not None:
                logged["reference_kl"] = _reference_kl(x, w)
            if x.masked is not None:
                logged["perception_kl"] = _divergence(x, w)
                logged["perception_kl_squared"] = logged["perception_kl"].square()
                logged["masked_entropy"] = _masked_entropy(x, w)
            if x.noisy is not None:
                logged["robustness_kl"] = _robustness_kl(x, w)
            if x.sampled is not None:
                logged["sampling_gap"] = (x.old - x.sampled).abs()
            sums = {name: reduce.token_mean(values, mask, 1) for name, values in logged.items()}
        return loss, sums


def gamma_at(step: int, max_steps: int, gamma: float, gamma_end: float | None, annealing_ratio: float) -> float:
    """γ at a step (0-based): fixed, or linear from `gamma` to `gamma_end` over the first `annealing_ratio` of the run.

    Source: the official code's `AnnealingKLController` (0.01 → 0 over the first half).
    """
    if gamma_end is None:
        return gamma
    steps = max(int(max_steps * annealing_ratio), 1)
    return gamma + (gamma_end - gamma) * min(step / steps, 1.0)
