"""Attention over a packed row, each way of computing it, against one dense masked attention over the whole row."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from papo_hub import prefix_attention
from papo_hub.prefix_attention import Block, Packing, Span, alike, attention_and_logsumexp, extend, merged
from papo_hub.randomness import derived_generator

EXACT = 1e-12  # float64, outputs and gradients (of order 1); seen: 2e-14
SINGLE = 1e-5  # float32; seen: 3e-6
HALF = 0.05  # bfloat16, of the largest entry; seen: 0.02
SCALE = 0.4
WIDTH = 8
WAYS = pytest.mark.parametrize("way", ["merged", "joined", "flash"])


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=derived_generator("attention", seed, *shape), dtype=torch.float64).to(dtype)


def dense(query, key, value, prompts, completions, scale):
    """(N, H, D), (N, K, D) twice → (N, H, D): every token's sequence and the prompt it may look at, written out."""
    sequence, prompt = [], []
    for i, length in enumerate(prompts):
        sequence += [i] * length
        prompt += [i] * length
    for i, lengths in enumerate(completions):
        for length in lengths:
            sequence += [max(sequence) + 1] * length
            prompt += [i] * length
    sequence, prompt = torch.tensor(sequence), torch.tensor(prompt)
    order = torch.arange(len(sequence))
    is_prompt = order < sum(prompts)
    itself = (sequence[:, None] == sequence) & (order[:, None] >= order)
    its_prompt = ~is_prompt[:, None] & is_prompt & (prompt[:, None] == prompt)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.einsum("nhd,mhd->hnm", query, key) * scale
    weights = scores.masked_fill(~(itself | its_prompt), -torch.inf).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, value)


def varlen(
    module, query, key, value, attention_mask, scaling, max_length_q, max_length_k, cu_seq_lens_q, cu_seq_lens_k
):
    """What a flash kernel for sequences of several lengths computes: each apart, the last query on the last key."""
    assert attention_mask is None and cu_seq_lens_q.dtype == cu_seq_lens_k.dtype == torch.int32
    queries, keys = cu_seq_lens_q.diff().tolist(), cu_seq_lens_k.diff().tolist()
    assert (max_length_q, max_length_k) == (max(queries), max(keys))
    assert cu_seq_lens_q[0] == cu_seq_lens_k[0] == 0 and min(queries) > 0
    assert (sum(queries), sum(keys)) == (query.shape[2], key.shape[2])
    groups = query.shape[1] // key.shape[1]
    outputs = []
    parts = zip(query.split(queries, 2), key.split(keys, 2), value.split(keys, 2), strict=True)
    for q, k, v in parts:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        scores = (q @ k.transpose(-1, -2) * scaling).masked_fill(~visible, -torch.inf)
        outputs.append(scores.softmax(-1) @ v)
    return torch.cat(outputs, 2).transpose(1, 2), None


def attend(way, packing, query, key, value, scale=SCALE):
    if way == "joined":
        return packing.joined(query, key, value, scale)
    module = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa" if way == "merged" else "flash_test"))
    batch = (row.transpose(0, 1).unsqueeze(0) for row in (query, key, value))
    return packing.attend(varlen, module, *batch, scale)[0]


def rows(count, heads, key_heads, dtype=torch.float64):
    shapes = (heads, key_heads, key_heads)
    return [random(count, n, WIDTH, seed=i, dtype=dtype).requires_grad_() for i, n in enumerate(shapes)]


def with_gradients(function, inputs):
    output = function(*inputs)
    weights = random(*output.shape, seed=9, dtype=output.dtype)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


@st.composite
def packings(draw):
    """Lengths of prompts, ascending and often equal; of each prompt's completions, often none, empty, or very unequal."""
    prompts = sorted(draw(st.lists(st.sampled_from([1, 2, 7, 7, 20, 33]), min_size=1, max_size=4)))
    length = st.sampled_from([0, 1, 1, 3, 8, 30])
    completions = [draw(st.lists(length, max_size=4)) for _ in prompts]
    return prompts, completions


UNEQUAL = ([5, 5, 5], [[60, 60], [3], [1, 1]])  # side by side, the completions of these would be mostly padding
GAP = ([4, 4, 4, 6], [[3, 3], [], [2, 4], [5]])  # a prompt without completions between two with some
EVEN = ([6, 6], [[4, 4, 4], [4, 4, 4]])  # batches that are views of the row


@WAYS
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(packings(), st.sampled_from([(1, 1), (2, 1), (4, 1), (4, 2), (2, 2)]))
@example(UNEQUAL, (4, 2))
@example(GAP, (4, 2))
@example(EVEN, (4, 2))
@example(([3], [[]]), (1, 1))
def test_equals_dense_attention(way, lengths, heads):
    packing = Packing(*lengths)
    assert packing.length == sum(lengths[0]) + sum(map(sum, lengths[1]))
    inputs = rows(packing.length, *heads)
    found = with_gradients(lambda *rows: attend(way, packing, *rows), inputs)
    expected = with_gradients(lambda *rows: dense(*rows, *lengths, SCALE), inputs)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=EXACT)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(packings())
@example(UNEQUAL)
def test_little_is_padded(lengths):
    """What follows a prompt is computed together with what follows others of its length, unless that is mostly padding."""
    for run in Packing(*lengths).runs:
        spans = [span for block, _ in run.completions for span in block.spans]
        padded = sum(block.n * block.length for block, _ in run.completions)
        assert padded <= 1.25 * sum(span.length for span in spans) + 64
    (run,) = Packing(*EVEN).runs
    assert len(run.completions) == len(run.own) == 1 and run.completions[0][0].is_view and run.own[0][0].is_view


def test_dense_attention_by_hand():
    """A prompt of two tokens with two completions of one, scores 0 but for a last key: values 1, 2, 4, 8."""
    query = torch.ones(4, 1, 1)
    key = torch.tensor([0.0, 0.0, 0.0, 2.0]).log1p().view(4, 1, 1)  # weights 1, 1, 1, 3
    value = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1, 1)
    by_hand = torch.tensor([1.0, (1 + 2) / 2, (1 + 2 + 4) / 3, (1 + 2 + 3 * 8) / 5])
    torch.testing.assert_close(dense(query, key, value, [2], [[1, 1]], 1.0).flatten(), by_hand)
    for way in ("merged", "joined", "flash"):
        torch.testing.assert_close(attend(way, Packing([2], [[1, 1]]), query, key, value, 1.0).flatten(), by_hand)


@WAYS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, SINGLE), (torch.bfloat16, HALF)])
def test_other_precisions(way, dtype, tolerance):
    lengths = ([9, 9, 20], [[8, 1], [3, 30, 5], [12]])
    packing = Packing(*lengths)
    inputs = rows(packing.length, 4, 2, dtype)
    found = with_gradients(lambda *rows: attend(way, packing, *rows), inputs)
    wide = [row.detach().double().requires_grad_() for row in inputs]
    expected = with_gradients(lambda *rows: dense(*rows, *lengths, SCALE), wide)
    for value, other in zip(found, expected, strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), other, rtol=0, atol=tolerance * other.abs().max().item())


def test_where_the_kernel_is_missing_the_keys_are_joined(monkeypatch):
    monkeypatch.setattr(prefix_attention, "FLASH_CPU", None)
    packing = Packing(*GAP)
    inputs = rows(packing.length, 4, 2)
    monkeypatch.setattr(prefix_attention._Merged, "forward", None)
    torch.testing.assert_close(attend("merged", packing, *inputs), packing.joined(*inputs, SCALE))


class Made(TorchDispatchMode):
    """The operations that ran, and the largest number of elements that one of them returned."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.data_ptr() not in {a.data_ptr() for a in tensors(args)}:
            self.largest = max(self.largest, result.numel())
        return result


def tensors(args):
    return [arg for arg in args if isinstance(arg, torch.Tensor)]


def test_the_merged_way_copies_no_prompt():
    """Forward and backward of 8 completions: nothing is made that is larger than the row itself; the joined way makes
    8 copies of the prompt."""
    packing = Packing([500, 500], [[3] * 8, [3] * 8])
    inputs = rows(packing.length, 2, 2)
    with Made() as merged_way:
        attend("merged", packing, *inputs).sum().backward()
    with Made() as joined_way:
        packing.joined(*inputs, SCALE).sum().backward()
    row = packing.length * 2 * WIDTH
    assert merged_way.largest <= row and joined_way.largest > 7 * row


# --- attention to all keys, and merging ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_attention_and_logsumexp(monkeypatch, kernel, biased):
    """The kernel and the explicit formula, against the formula written with softmax."""
    if not kernel:
        monkeypatch.setattr(prefix_attention, "FLASH_CPU", None)
    query, key, value = random(3, 2, 5, WIDTH), random(3, 2, 9, WIDTH, seed=1), random(3, 2, 9, WIDTH, seed=2)
    bias = torch.zeros(3, 1, 1, 9, dtype=torch.float64)
    if biased:
        bias[0, ..., 4:] = bias[2, ..., 8:] = -torch.inf
    output, total = attention_and_logsumexp(query, key, value, SCALE, bias if biased else None)
    scores = query @ key.mT * SCALE + bias
    torch.testing.assert_close(output, scores.softmax(-1) @ value, rtol=0, atol=EXACT)
    torch.testing.assert_close(total, scores.exp().sum(-1).log(), rtol=0, atol=EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_and_logsumexp_of_low_precision(monkeypatch, dtype):
    """The log-sum-exp is in float32 either way, the output in the precision of the values."""
    inputs = [random(2, 2, n, WIDTH, seed=n, dtype=dtype) for n in (4, 9, 9)]
    bias = torch.zeros(2, 1, 1, 9, dtype=dtype)
    bias[1, ..., 5:] = -torch.inf
    by_kernel = attention_and_logsumexp(*inputs, SCALE, bias)
    monkeypatch.setattr(prefix_attention, "FLASH_CPU", None)
    explicit = attention_and_logsumexp(*inputs, SCALE, bias)
    tolerance = SINGLE if dtype == torch.float32 else HALF
    for one, other, expected in zip(by_kernel, explicit, (dtype, torch.float32), strict=True):
        assert one.dtype == other.dtype == expected
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_merged_is_attention_to_both():
    query, key, value = random(1, 2, 5, WIDTH), random(1, 2, 9, WIDTH, seed=1), random(1, 2, 9, WIDTH, seed=2)
    whole, total = attention_and_logsumexp(query, key, value, SCALE)
    parts = []
    for part in (slice(None, 3), slice(3, None)):
        output, lse = attention_and_logsumexp(query, key[:, :, part], value[:, :, part], SCALE)
        parts += [output[0].transpose(0, 1), lse[0].T]
    output, both = merged(*parts)
    torch.testing.assert_close(output, whole[0].transpose(0, 1), rtol=0, atol=EXACT)
    torch.testing.assert_close(both, total[0].T, rtol=0, atol=EXACT)


# --- blocks and groups ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spans", "view"),
    [
        ([(2, 3), (5, 3)], True),
        ([(0, 3), (4, 3)], False),  # a gap
        ([(1, 2), (3, 3)], False),  # unequal
        ([(5, 3), (2, 3)], False),  # out of order
        ([(2, 1)], True),
    ],
)
def test_a_block_takes_and_puts(spans, view):
    row = torch.arange(1.0, 9.0).view(8, 1, 1).expand(8, 2, 1).contiguous()
    block = Block([Span(*span) for span in spans], "cpu")
    assert block.is_view is view
    batch = block.take(row)
    length = max(n for _, n in spans)
    assert batch.shape == (len(spans), 2, length, 1)
    for i, (start, n) in enumerate(spans):
        values = [float(start + 1 + j) for j in range(n)] + [0.0] * (length - n)
        assert batch[i, 0, :, 0].tolist() == batch[i, 1, :, 0].tolist() == values
    places = [start + j for start, n in spans for j in range(n)]
    assert block.places.tolist() == places
    assert block.tokens(batch)[:, 0, 0].tolist() == [float(place + 1) for place in places]
    assert (batch.untyped_storage().data_ptr() == row.untyped_storage().data_ptr()) is view  # a view copies nothing

    for first in (0, min(places)):
        whole = torch.zeros(8 - first, 2, 1)
        block.put(batch.clone(), whole, first)
        expected = [float(place + 1) if place in places else 0.0 for place in range(first, 8)]
        assert whole[:, 1, 0].tolist() == expected


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 200), max_size=12))
def test_alike_groups_lose_and_add_none_and_pad_little(lengths):
    pairs = [(Span(10 * i, length), i) for i, length in enumerate(lengths)]
    groups = alike(pairs)
    assert sorted(pair for group in groups for pair in group) == sorted(pairs)
    for group in groups:
        longest, shortest = group[0][0].length, group[-1][0].length
        assert longest - shortest <= max(16, longest / 4)
    for before, after in zip(groups, groups[1:], strict=False):  # and no group more than it takes
        assert before[0][0].length - after[0][0].length > max(16, before[0][0].length / 4)


# --- the model's attention function --------------------------------------------------------------------------------------


@pytest.fixture
def taught():
    """An attention function of its own name, taught to look for a layout; and what it was called with."""
    calls = []

    def usual(module, query, key, value, attention_mask, *args, **kwargs):
        calls.append((attention_mask, kwargs))
        return query.transpose(1, 2), "weights"

    AttentionInterface.register("usual_test", usual)
    extend("usual_test")
    yield ALL_ATTENTION_FUNCTIONS["usual_test"], calls
    del AttentionInterface._global_mapping["usual_test"]


def test_extend_once(taught):
    function, _ = taught
    extend("usual_test")
    assert ALL_ATTENTION_FUNCTIONS["usual_test"] is function


class Recorder:
    """A layout that says what it was given."""

    def attend(self, usual, module, query, key, value, scale):
        self.given = query, key, value, scale
        return "attended"


def test_the_layout_is_asked_only_where_there_is_one_and_attention_is_causal(taught):
    function, calls = taught
    query = random(1, 2, 3, 16)
    text, vision = SimpleNamespace(is_causal=True), SimpleNamespace(is_causal=False)
    layout = Recorder()
    assert function(text, query, query, query, "mask", scaling=0.3, shared_prefix=layout) == ("attended", None)
    assert layout.given[3] == 0.3 and not calls
    function(text, query, query, query, None, shared_prefix=layout)
    assert layout.given[3] == 0.25  # the square root of the width, where the model names none

    for module, unused in ((vision, layout), (SimpleNamespace(), layout), (text, None)):
        output = function(module, query, query, query, "mask", scaling=0.3, shared_prefix=unused)
        assert torch.equal(output[0], query.transpose(1, 2)) and output[1] == "weights"
        assert calls.pop() == ("mask", {"scaling": 0.3})  # and the usual function is told of no layout


def test_autocast_reaches_the_layout(taught):
    function, _ = taught
    query, layout = random(1, 2, 3, 16, dtype=torch.float32), Recorder()
    with torch.autocast("cpu", torch.bfloat16):
        function(SimpleNamespace(is_causal=True), query, query, query, None, shared_prefix=layout)
    assert [tensor.dtype for tensor in layout.given[:3]] == [torch.bfloat16] * 3
