"""Sampling completions."""

from papo_hub.rollout.base import RolloutEngine, Sampling
from papo_hub.rollout.transformers import TransformersEngine

__all__ = ["RolloutEngine", "Sampling", "TransformersEngine"]
