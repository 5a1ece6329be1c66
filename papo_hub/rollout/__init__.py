"""Sampling completions."""

from papo_hub.rollout.base import RolloutEngine, Sampling
from papo_hub.rollout.transformers import TransformersEngine
from papo_hub.rollout.vllm import PromptMismatch, VllmEngine, check_vllm
from papo_hub.rollout.vllm_server import ServerError, VllmServerEngine

__all__ = [
    "PromptMismatch",
    "RolloutEngine",
    "Sampling",
    "ServerError",
    "TransformersEngine",
    "VllmEngine",
    "VllmServerEngine",
    "check_vllm",
]
