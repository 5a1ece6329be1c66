"""What a pass must cost: tokens and forward FLOPs of a group of completions, in rows and with a shared prompt.

Rows: each completion carries its own copy of the prompt and its image, padded to the longest. Shared: prompt and image
once, the completions behind them. A multiplication and its addition are 2 FLOPs; attention counts the pairs of query and
key that a causal mask leaves. Norms, activations and rotations are left out. A backward pass costs twice its forward
pass on either route, so the ratio of a pass holds for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PATCHES_PER_TOKEN = 4  # 2 × 2 patches merge into an image token
PATCH_VALUES = 3 * 2 * 14 * 14  # colours × frames × pixels
WINDOW_PATCHES = (112 // 14) ** 2  # what a patch attends to in a windowed block

# Forward passes in a part, a backward pass as two: TRL's step is rollout 1, reference 1, masked 3, clean 3; frozen, the
# masked view needs one. By FLOPs, generating a token with a cache costs what it costs in a pass over the whole.
PASSES = {"rollout": 1, "score": 1, "update": 3, "step live": 8, "step frozen": 6, "step as it comes": 6}
# Its masked view is always live; activation checkpointing computes both forward passes once more.
PEER_PASSES = PASSES | {"step frozen": 8, "step as it comes": 10}


@dataclass(frozen=True)
class Architecture:
    """The sizes of a Qwen2.5-VL that its FLOPs depend on."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    vision_hidden: int = 1280
    vision_blocks: int = 32
    vision_full_blocks: int = 4  # with attention over the whole image
    vision_mlp: int = 3420


# Source: config.json of Qwen/Qwen2.5-VL-3B-Instruct and -7B-Instruct.
QWEN_3B = Architecture("Qwen2.5-VL 3B", 2048, 36, 16, 2, 11008, 151936)
QWEN_7B = Architecture("Qwen2.5-VL 7B", 3584, 28, 28, 4, 18944, 152064)


def causal_pairs(tokens: int, before: int = 0) -> int:
    """Pairs of query and key where `tokens` follow `before` others and each sees all up to itself."""
    return tokens * before + tokens * (tokens + 1) // 2


def pass_tokens(prompt: int, lengths: Sequence[int], shared: bool) -> int:
    """Tokens through the language model in one pass: G · (P + max T) in rows, P + ΣT shared."""
    return prompt + sum(lengths) if shared else len(lengths) * (prompt + max(lengths))


def pass_flops(a: Architecture, prompt: int, image: int, lengths: Sequence[int], shared: bool) -> int:
    """Forward FLOPs of one view of completions of `lengths` tokens to a prompt, `image` of whose tokens are an image's."""
    if shared:
        pairs = causal_pairs(prompt) + sum(causal_pairs(length, before=prompt) for length in lengths)
        images, predicted = 1, sum(lengths)
    else:
        pairs = len(lengths) * causal_pairs(prompt + max(lengths))
        images, predicted = len(lengths), len(lengths) * max(lengths)
    tokens = pass_tokens(prompt, lengths, shared)
    head = 2 * a.hidden * a.vocabulary * predicted
    return tokens * _linear(a) + 4 * a.hidden * a.layers * pairs + head + images * vision_flops(a, image)


def _linear(a: Architecture) -> int:
    """FLOPs of a token in the matrices of all layers: queries and output, keys and values, the three of the MLP."""
    key_values = a.hidden // a.heads * a.kv_heads
    return 2 * a.layers * (2 * a.hidden**2 + 2 * a.hidden * key_values + 3 * a.hidden * a.mlp)


def vision_flops(a: Architecture, image: int) -> int:
    """FLOPs of encoding an image of `image` tokens once."""
    patches, width, merged = PATCHES_PER_TOKEN * image, a.vision_hidden, PATCHES_PER_TOKEN * a.vision_hidden
    linear = 2 * patches * (PATCH_VALUES * width + a.vision_blocks * (4 * width**2 + 3 * width * a.vision_mlp))
    windowed = (a.vision_blocks - a.vision_full_blocks) * min(WINDOW_PATCHES, patches)
    attention = 4 * width * patches * (windowed + a.vision_full_blocks * patches)
    return linear + attention + 2 * image * (merged**2 + merged * a.hidden)


def vision_share(a: Architecture, image: int) -> float:
    """What an image token costs in the vision tower, in units of what a token costs in the language model's matrices."""
    return vision_flops(a, image) / image / _linear(a)


def ratio(a: Architecture, part: str, prompt: int, image: int, lengths: Sequence[int]) -> float:
    """How many times the FLOPs of the shared route the peer's rows take, in a part of PASSES."""
    rows, shared = (pass_flops(a, prompt, image, lengths, shared) for shared in (False, True))
    return PEER_PASSES[part] * rows / (PASSES[part] * shared)
