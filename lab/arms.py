"""What is compared: recipes of recipes/tiny and what each arm changes in them. An arm is made once and used by any question.

SHORT is what all arms share: the recipes' learning rate of 5e-4, falling to 0 over 80 steps of 64 prompts × 5 completions. Those
with a perception term also measure, every ten steps, whether its gradient and the reward's agree.
"""

from __future__ import annotations

from lab.sweep import Arm

SHORT = {"max_steps": 80}
MEASURED = SHORT | {"alignment_steps": 10}

GRPO = Arm("grpo", "GRPO", "grpo", SHORT)
PAPO_G = Arm("papo_g", "PAPO-G", "papo_g", MEASURED)  # γ 0.02
DAPO = Arm("dapo", "DAPO", "dapo", SHORT)
PAPO_D = Arm("papo_d", "PAPO-D", "papo_d", MEASURED)  # γ 0.01, η 0.03

# How strong the perception term is, up to what kills the run.
GAMMAS = {0.0: GRPO, 0.02: PAPO_G} | {g: PAPO_G.but(f"gamma_{g}", f"γ {g:g}", gamma=g) for g in (0.1, 0.3)}
STRONG = GAMMAS[0.1]

# What is masked, at γ = 0.1.
MASK_RATIOS = {0.6: STRONG} | {
    ratio: STRONG.but(f"mask_{ratio}", f"mask {100 * ratio:.0f} %", mask_ratio=ratio) for ratio in (0.2, 1.0)
}
MASK_RATIOS = dict(sorted(MASK_RATIOS.items()))
WHOLE_DIGITS = STRONG.but("patch_28", "whole digits, 60 %", mask_patch_size=28)
SMALL = STRONG.but("patch_7", "7 px patches, 60 %", mask_patch_size=7)
SEMANTIC = STRONG.but(
    "semantic", "7 px, most attended 60 %", mask_patch_size=7, mask_strategy="semantic", mask_encoder="{runs}/encoder"
)

# Without the KL to the reference model.
GRPO_NO_REFERENCE = GRPO.but("no_reference", "GRPO, β 0", beta=0.0)
STRONG_NO_REFERENCE = STRONG.but("no_reference", "γ 0.1, β 0", beta=0.0)

# γ = 0.3 at a learning rate that stays: what collapses, and what the double entropy does. η is each view's weight.
STEADY = {"max_steps": 40, "lr_scheduler_type": "constant"}
HOT = STEADY | {"gamma": 0.3}
ENTROPIES = {"none": (0.0, 0.0), "clean": (0.05, 0.0), "masked": (0.0, 0.05), "both": (0.05, 0.05)}
HOT_GRPO = GRPO.but("hot", "GRPO", **STEADY)
HOT_PAPO = {
    (logprobs, which): PAPO_G.but(
        f"hot_{logprobs}_{which}",
        f"{logprobs}, entropy: {which}",
        **HOT,
        masked_logprobs=logprobs,
        eta_clean=clean,
        eta_masked=masked,
    )
    for logprobs in ("frozen", "live")
    for which, (clean, masked) in ENTROPIES.items()
}

# The equation itself, bounded, weighted; three times as strong where the divergence is bounded or weighted.
EXACT = {"estimator": "exact"}
JS = EXACT | {"divergence": "js"}
ADVANTAGE_JS = JS | {"perception_weighting": "advantage"}
TOP = {"perception_top_p": 0.2, "perception_clip": 2.0}
HOT_EXACT = PAPO_G.but("hot_exact", "exact KL", **HOT, **EXACT)
HOT_JS = PAPO_G.but("hot_js", "exact JS", **HOT | JS | {"gamma": 0.9})
HOT_ADVANTAGE = PAPO_G.but("hot_advantage", "A · JS", **HOT | ADVANTAGE_JS | {"gamma": 0.9})
HOT_TOP = PAPO_G.but("hot_top_p", "top 20 %, clipped", **HOT, **TOP)
HOT_ADAPTIVE = PAPO_G.but(
    "hot_adaptive", "adaptive γ", **HOT | {"alignment_steps": 2}, gamma_control="adaptive", guard="warn"
)

# Later methods, each against its own baseline.
EXACT_KL = PAPO_G.but("exact", "exact KL, γ 0.1", gamma=0.1, **EXACT)
EXACT_JS = PAPO_G.but("exact_js", "exact JS, γ 0.3", gamma=0.3, **JS)
ADVANTAGE = PAPO_G.but("advantage", "A · JS, γ 0.3", gamma=0.3, **ADVANTAGE_JS)
TOP_P = STRONG.but("top_p", "top 20 %, clipped, γ 0.1", **TOP)
VPPO = Arm("vppo", "VPPO", "vppo", SHORT)
PGPO = Arm("pgpo", "PGPO", "pgpo", SHORT)
DVRP = Arm("dvrp", "DVRP, γ and λ 0.1", "dvrp", MEASURED | {"gamma": 0.1, "robustness": 0.1})

# The settling experiment: the same at two learning rates, with two controls.
SHUFFLED = PAPO_G.but("shuffled", "shuffled A · JS, γ 0.3", gamma=0.3, **JS | {"perception_weighting": "shuffled"})
STRONG_REFERENCE = GRPO.but("beta_0.05", "GRPO, β 0.05", beta=0.05)
LEARNING_RATES = (5e-4, 2e-4)


def at(arm: Arm, learning_rate: float) -> Arm:
    """The arm at another learning rate than the recipe's."""
    if learning_rate == 5e-4:
        return arm
    return arm.but(f"lr_{learning_rate:g}", f"{arm.label}, lr {learning_rate:g}", learning_rate=learning_rate)


# Verified answers on the image with noise, and the control without the noise.
VERIFIED = Arm("grpo_v", "GRPO-V", "grpo_v", SHORT)  # λ 0.3, noise 0.3
VERIFIED_CLEAN = VERIFIED.but("clean", "GRPO-V without noise", noise_level=0.0)
