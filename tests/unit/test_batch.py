"""How a batch is cut into micro-batches."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papo_hub.batch import Completion, micro_slices, pad_completions


def sizes(slices):
    return [s.stop - s.start for s in slices]


def test_tokens_by_hand():
    """Two prompts of 10 tokens with three completions of 4 each: alone a group is 10 + 3 · 4 = 22 tokens."""
    owners, prompts, lengths = [0, 0, 0, 1, 1, 1], [10, 10], [4] * 6
    assert sizes(micro_slices(owners, prompts, lengths, 44)) == [6]
    assert sizes(micro_slices(owners, prompts, lengths, 43)) == [5, 1]
    assert sizes(micro_slices(owners, prompts, lengths, 22)) == [3, 3]
    # A group that does not fit is cut, and its prompt counts again: 10 + 4 + 4 = 18, then 10 + 4.
    assert sizes(micro_slices(owners, prompts, lengths, 18)) == [2, 1, 2, 1]
    assert sizes(micro_slices(owners, prompts, lengths, 35)) == [3, 3]
    assert sizes(micro_slices(owners, prompts, lengths, 36)) == [4, 2]  # 22 + 10 + 4
    assert sizes(micro_slices(owners, prompts, lengths, 1)) == [1] * 6  # above the limit: alone
    # One row a completion: 14 tokens each.
    assert sizes(micro_slices(owners, prompts, lengths, 42, shared=False)) == [3, 3]
    assert sizes(micro_slices(owners, prompts, lengths, 41, shared=False)) == [2, 2, 2]


def test_completions_by_hand():
    owners, prompts, lengths = [0, 0, 1, 1, 2], [5, 6, 7], [1, 2, 3, 4, 5]
    assert sizes(micro_slices(owners, prompts, lengths, 1000, 2)) == [2, 2, 1]
    assert sizes(micro_slices(owners, prompts, lengths, 1000, 3)) == [3, 2]
    assert sizes(micro_slices(owners, prompts, lengths, 8, 3)) == [2, 1, 1, 1]  # 5+1+2; 6+3; 6+4; 7+5


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.data())
def test_every_completion_once_within_the_limits(data):
    groups = data.draw(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 5)), min_size=1, max_size=6))
    owners = [i for i, (_, count) in enumerate(groups) for _ in range(count)]
    prompts = [length for length, _ in groups]
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=len(owners), max_size=len(owners)))
    limit = data.draw(st.integers(1, 80))
    most = data.draw(st.none() | st.integers(1, 6))
    shared = data.draw(st.booleans())

    def cost(rows):
        present = {owners[i] for i in rows} if shared else [owners[i] for i in rows]
        return sum(lengths[i] for i in rows) + sum(prompts[owner] for owner in present)

    slices = [range(s.start, s.stop) for s in micro_slices(owners, prompts, lengths, limit, most, shared)]
    assert [i for rows in slices for i in rows] == list(range(len(owners)))
    for rows, following in zip(slices, [*slices[1:], None], strict=True):
        assert len(rows) == 1 or (cost(rows) <= limit and len(rows) <= (most or len(rows)))
        if following is not None:  # as large as the limits allow
            longer = [*rows, following[0]]
            assert cost(longer) > limit or len(rows) == most


def test_padding():
    ids, mask = pad_completions([Completion([5, 6], "", True), Completion([], "", False)], pad_token_id=9)
    assert torch.equal(ids, torch.tensor([[5, 6], [9, 9]]))
    assert torch.equal(mask, torch.tensor([[True, True], [False, False]]))
