"""Sampling completions."""

from papo_hub.rollout.base import RolloutEngine, Sampling
from papo_hub.rollout.transformers import TransformersEngine
from papo_hub.rollout.vllm import VllmEngine, check_vllm
from papo_hub.rollout.vllm_server import VllmServerEngine

__all__ = ["RolloutEngine", "Sampling", "TransformersEngine", "VllmEngine", "VllmServerEngine", "check_vllm"]
