"""The equation of a model card: the terms of the recipe's objective with its numbers, and what to know about them."""

from __future__ import annotations

import math
from typing import Any

from papo_hub.card.escape import plain, text
from papo_hub.objectives import OBJECTIVES, Objective, Term, Weights, with_reduction
from papo_hub.objectives.shaping import TOKEN_WEIGHTINGS

JENSEN_SHANNON = r"\mathrm{JS}[\pi, \pi_{\mathrm{mask}}]"


def equation(config: dict[str, Any]) -> dict[str, list[str]]:
    """The equation (signs turned: the paper maximises) with the numbers of `config`, and what to know about it."""
    name = _word(config, "objective")
    if name not in OBJECTIVES:
        return {"terms": [], "notes": []}
    fields = ("gamma", "eta_clean", "eta_masked", "beta", "epsilon", "epsilon_high", "delta", "robustness")
    numbers = {field: _number(config, field) for field in fields if config.get(field) is not None}
    if "epsilon" in numbers:
        numbers.setdefault("epsilon_high", numbers["epsilon"])
    weights = Weights(**{**numbers, "delta": numbers.get("delta")})
    algorithm = OBJECTIVES[name]
    if config.get("reduction") in ("token", "sequence"):
        algorithm = with_reduction(algorithm, config["reduction"])
    objective = Objective(algorithm, weights)

    low, high = 1 - weights.epsilon, 1 + weights.epsilon_high
    terms = [rf"\min[ r A, \mathrm{{clip}}(r, {low:g}, {high:g}) A ]"]
    for term in objective.active:
        if term.name != "surrogate":
            scale = -term.scale(weights)
            terms.append(f"{'-' if scale < 0 else '+'} {abs(scale):g} {_symbol(term, config)}")

    each = (
        "all tokens of an update"
        if algorithm[0].reduction == "token"
        else "a completion's tokens, then over completions"
    )
    notes = [f"Means are taken over {each}."]
    if weights.delta is not None:
        notes.append(f"Where *A* < 0, the first term is bounded below by {weights.delta:g} *A*.".replace("<", "&lt;"))
    if objective.needs_masked or _word(config, "token_weighting") in TOKEN_WEIGHTINGS:
        notes.append(f"*π* with index mask is the same policy seeing the image partly blackened{_cells(config)}.")
    notes += _shaping(objective, config)
    if objective.needs("perception_kl") and config.get("gamma_end") is not None:
        share = (
            100 * _number(config, "gamma_annealing_ratio") if config.get("gamma_annealing_ratio") is not None else 100
        )
        notes.append(
            f"The perception weight runs linearly from {weights.gamma:g} to {_number(config, 'gamma_end'):g} over the "
            f"first {share:g}% of the steps, and scales the entropy weights along."
        )
    if objective.needs("masked_entropy") and config.get("masked_logprobs") == "frozen":
        notes.append("The masked view is computed without gradient here, so its entropy term changes nothing.")
    return {"terms": terms, "notes": notes}


def _word(config: dict[str, Any], key: str) -> str:
    """One of a few words, whatever stands there."""
    return plain(config.get(key) or "")


def _symbol(term: Term, config: dict[str, Any]) -> str:
    if term.name != "perception_kl":
        return term.symbol
    divergence = JENSEN_SHANNON if _word(config, "divergence") == "js" else term.symbol
    return {"advantage": "A ", "shuffled": "A' "}.get(_word(config, "perception_weighting"), "") + divergence


def _cells(config: dict[str, Any]) -> str:
    """Which parts of the image are black."""
    ratio, patch = config.get("mask_ratio"), config.get("mask_patch_size")
    if not ratio or not patch:
        return ""
    cells = f"cells of {text(patch)}×{text(patch)} pixels"
    if config.get("mask_strategy") == "semantic":
        return (
            f", a share of {text(ratio)} of its {cells}: those that {text(config.get('mask_encoder'))} attends to most"
        )
    return f", {cells} with probability {text(ratio)}"


def _shaping(objective: Objective, config: dict[str, Any]) -> list[str]:
    """What of the divergence counts, and for which token."""
    notes = []
    if objective.needs("perception_kl"):
        if config.get("estimator") == "exact":
            notes.append("Divergence and entropies are sums over the vocabulary, with their true gradients.")
        if config.get("perception_weighting") == "shuffled":
            notes.append("*A'* is the advantage of another prompt's completion: a control.")
        if (share := config.get("perception_top_p")) not in (None, 1, 1.0):
            notes.append(f"Of each completion's tokens, the share {text(share)} with the largest divergence counts.")
        if (limit := config.get("perception_clip")) is not None:
            notes.append(f"A token's divergence counts {text(limit)} nats at most.")
    if objective.needs_noisy:
        level = config.get("noise_level")
        much = "" if level is None else f": {text(level)} of its variance"
        notes.append(f"*π* with index noise is the same policy seeing the image with noise{much}.")
    if (weighting := _word(config, "token_weighting")) in TOKEN_WEIGHTINGS:
        notes.append(
            f"In the first term a token's *A* counts by how much it depends on the image, as in {weighting.upper()}."
        )
    if config.get("gamma_control") == "adaptive":
        notes.append("The perception weight is an upper bound: it was lowered at early signs of collapse.")
    return notes


def _number(config: dict[str, Any], key: str) -> float:
    try:
        number = float(config[key])
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key} must be a number, got {plain(config[key])!r}")
    return number
