import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papo_hub.experience import perception_weights
from papo_hub.objectives import group_advantages


def test_one_right_answer_of_five():
    # mean 1/5; deviations 4/5 and -1/5; unbiased variance (16/25 + 4 · 1/25) / 4 = 1/5; std = sqrt(1/5) = 0.4472136.
    # 0.8 / (0.4472136 + 1e-6) = 1.7888504, -0.2 / (...) = -0.4472126. The biased std, 0.4, would give 2 and -0.5.
    advantages = group_advantages(torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64), 5)
    expected = torch.tensor([-0.4472126, 1.7888504, -0.4472126, -0.4472126, -0.4472126], dtype=torch.float64)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-7)


def test_the_constant_beside_the_std():
    # Rewards 0 and 2e-6: deviations ±1e-6, std = sqrt(2) · 1e-6; 1e-6 / (1.4142136e-6 + 1e-6) = 0.4142136.
    advantages = group_advantages(torch.tensor([0.0, 2e-6], dtype=torch.float64), 2)
    torch.testing.assert_close(
        advantages, torch.tensor([-0.4142136, 0.4142136], dtype=torch.float64), rtol=0, atol=1e-7
    )


def test_groups_do_not_see_each_other():
    first, second = torch.tensor([1.0, 0.0, 0.1]), torch.tensor([0.9, 0.1, 1.0])
    both = group_advantages(torch.cat([first, second]), 3)
    assert torch.equal(both, torch.cat([group_advantages(first, 3), group_advantages(second, 3)]))


def test_equal_rewards_give_exactly_zero():
    # 0.1 + 0.1 + 0.1 rounds: the mean of three is not 0.1, and the remainder over a std of its own size is no signal.
    rewards = torch.full((3,), 0.1, dtype=torch.float64)
    assert rewards.mean() != rewards[0]
    assert torch.equal(group_advantages(rewards, 3), torch.zeros(3, dtype=torch.float64))


def test_one_equal_group_leaves_the_others():
    advantages = group_advantages(torch.tensor([0.7, 0.7, 0.7, 1.0, 0.0, 0.0]), 3)
    assert advantages[:3].tolist() == [0, 0, 0]
    assert advantages[3] > 0 > advantages[4]


@pytest.mark.parametrize(("count", "size"), [(4, 1), (4, 0), (5, 2), (4, 8)])
def test_refuses_what_forms_no_groups(count, size):
    with pytest.raises(ValueError, match="group"):
        group_advantages(torch.zeros(count), size)


def test_refuses_rewards_that_are_no_vector():
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        group_advantages(torch.zeros(2, 4), 4)


def slow(rewards: list[float], size: int) -> list[float]:
    """The definition, one group and one number at a time."""
    result = []
    for start in range(0, len(rewards), size):
        group = rewards[start : start + size]
        mean = math.fsum(group) / size
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in group) / (size - 1))
        result += [0.0 if len(set(group)) == 1 else (r - mean) / (std + 1e-6) for r in group]
    return result


@settings(deadline=None)
@given(size=st.integers(2, 6), rewards=st.lists(st.sampled_from([0.0, 0.1, 0.9, 1.0]), min_size=12, max_size=12))
def test_agrees_with_the_definition(size, rewards):
    rewards = rewards[: len(rewards) // size * size]
    advantages = group_advantages(torch.tensor(rewards, dtype=torch.float64), size)
    torch.testing.assert_close(advantages, torch.tensor(slow(rewards, size), dtype=torch.float64), rtol=0, atol=1e-12)


def test_weights_of_the_perception_kl():
    advantages = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0, 0.0])  # three groups of two
    assert perception_weights(advantages, 2, "none") is None
    assert perception_weights(advantages, 2, "advantage").tolist() == advantages.tolist()
    assert perception_weights(advantages, 2, "shuffled").tolist() == [0.0, 0.0, 1.0, -1.0, 2.0, -2.0]
