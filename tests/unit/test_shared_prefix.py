"""The shared route against the padded one, on every architecture that it accepts: log-probs, and the gradients of every
parameter. And what it costs: one encoding an image, P·S + Σ(T - 1) tokens."""

import copy
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from backbones import backbones, build, smolvlm
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, BatchFeature, modeling_flash_attention_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from papo_hub import shared_prefix
from papo_hub.batch import Completion, pad_completions
from papo_hub.logprobs import padded_logprobs
from papo_hub.modeling import PapoForConditionalGeneration
from papo_hub.randomness import derived_generator
from papo_hub.shared_prefix import SHOWN_EQUAL, misfit, shared_prefix_logprobs

# float64, with the float32 casts inside the models lifted. Log-probs in nats, a gradient relative to its largest entry.
EXACT = 1e-11  # seen: 1e-14
# With the casts: the image features of several rows add up in another order, in float32.
TOLERANCE = 1e-12  # of log-probs; seen: 7e-15
GRADIENT = 1e-7  # the Euclidean distance of the two gradients of all parameters, over their length; seen: 5e-8
ENTRY = 1e-6  # of each parameter's largest entry; seen: 2e-7
# Against the padded route in the same precision: log-probs in nats, the gradients' distance over their length.
SINGLE = (1e-5, 1e-5)  # seen: 3e-6, 1.3e-6
HALF = (0.15, 0.06)  # bfloat16; seen: 0.05, 0.02

ARRANGEMENT = (0, 0, 1, 1, 1, 2, 3, 0)  # out of order, four prompts of unequal lengths: one image, two, one, none
LENGTHS = (5, 1, 8, 3, 0, 4, 7, 2)


def idefics3():
    """SmolVLM's elder, under its own model type."""
    config, processor, placeholder = smolvlm()
    settings = config.to_dict()
    del settings["model_type"]
    return CONFIG_MAPPING["idefics3"](**settings), processor, placeholder


ALL = backbones() | {"idefics3": partial(build, idefics3)}
ACCEPTED = {name: builder for name, builder in ALL.items() if name != "gemma3"}


@pytest.fixture(scope="module", params=ACCEPTED)
def backbone(request):
    return ACCEPTED[request.param]()


@pytest.fixture(scope="module")
def qwen():
    return ACCEPTED["qwen2_5_vl"]()


class Lifted(TorchFunctionMode):
    """What a model casts to float32 stays in float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            return args[0].double()
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return function(*args, **kwargs)


def lifted(model):
    """A copy of the model whose buffers are float64, too."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype == torch.float32:
                setattr(module, name, buffer.double())
    return model


def completions(lengths=LENGTHS):
    """Random characters (the first ids are special tokens), padded. (B, T), (B, T)."""
    generator = derived_generator("completions of the shared prefix")
    ids = [torch.randint(60, 95, (length,), generator=generator).tolist() for length in lengths]
    return pad_completions([Completion(row, "", True) for row in ids], pad_token_id=0)


def arranged(backbone, arrangement=ARRANGEMENT):
    return [backbone.prompts[i] for i in arrangement]


def with_gradients(route, model, *arguments, parameters=None):
    """The log-probs, and the gradient of a weighted sum of them by every parameter (0 where there is none)."""
    parameters = list(model.parameters()) if parameters is None else parameters
    values = route(model, *arguments)
    weights = torch.randn(values.shape, generator=derived_generator("weights"), dtype=torch.float64)
    found = torch.autograd.grad((values * weights.to(values.dtype)).sum(), parameters, materialize_grads=True)
    return values.detach(), found


def apart(found, expected):
    """(largest difference of log-probs, distance of the gradients over their length, of each the largest difference over
    the largest entry)."""
    difference = (found[0] - expected[0]).abs().max().item()
    pairs = [(one.double(), other.double()) for one, other in zip(found[1], expected[1], strict=True)]
    distance = sum((one - other).square().sum() for one, other in pairs).sqrt()
    length = sum(other.square().sum() for _, other in pairs).sqrt()
    entries = [(one - other).abs().max() / max(other.abs().max(), 1e-3 * length) for one, other in pairs]
    return difference, (distance / length).item(), max(entries).item()


def both_routes(model, *arguments):
    return apart(*(with_gradients(route, model, *arguments) for route in (shared_prefix_logprobs, padded_logprobs)))


# --- equality on every architecture ---------------------------------------------------------------------------------------


def test_architectures_shown_equal_are_those_tested_here():
    types = {build().model.config.model_type: name for name, build in ACCEPTED.items()}
    assert set(types) == SHOWN_EQUAL
    assert misfit(ALL["gemma3"]().model) == "both routes have not been shown equal for gemma3"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_the_padded_route(backbone, temperature):
    """Every parameter has a gradient to compare, but for a key's bias, which softmax does not see, and the last norm of a
    vision tower that is read before it."""
    assert misfit(backbone.model) is None
    arguments = arranged(backbone), *completions(), temperature
    model = lifted(backbone.model)
    with Lifted():
        found, expected = (
            with_gradients(route, model, *arguments) for route in (shared_prefix_logprobs, padded_logprobs)
        )
    assert max(apart(found, expected)) < EXACT
    mask = arguments[2]
    assert (expected[0][mask] < -0.1).all() and (found[0][~mask] == 0).all()
    silent = [
        name for (name, _), grad in zip(model.named_parameters(), expected[1], strict=True) if grad.abs().max() < 1e-6
    ]
    assert all(name.endswith("k_proj.bias") or "post_layernorm" in name for name in silent)


def test_equals_the_padded_route_with_the_casts_of_the_model(backbone):
    difference, distance, entry = both_routes(backbone.model, arranged(backbone), *completions(), 0.7)
    assert difference < TOLERANCE and distance < GRADIENT and entry < ENTRY


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, SINGLE), (torch.bfloat16, HALF)])
def test_other_precisions(backbone, dtype, tolerance):
    model = copy.deepcopy(backbone.model).to(dtype)
    values, _ = with_gradients(shared_prefix_logprobs, model, arranged(backbone), *completions())
    assert values.dtype == torch.float32
    difference, distance, _ = both_routes(model, arranged(backbone), *completions())
    assert difference < tolerance[0] and distance < tolerance[1]


def test_both_views_in_one_call(backbone):
    """Clean and masked rows of equal tokens, side by side: neither takes the other's image; and together they are what
    they are apart, gradients included."""
    model, arrangement, (ids, mask) = lifted(backbone.model), (0, 0, 1, 1), completions((5, 1, 8, 3))
    clean = arranged(backbone, arrangement)
    masked = {i: backbone.masked(backbone.prompts[i]) for i in set(arrangement)}
    masked = [masked[i] for i in arrangement]

    def live(model):
        return shared_prefix_logprobs(model, clean + masked, ids.repeat(2, 1), mask.repeat(2, 1))

    def alone(model):
        return torch.cat([shared_prefix_logprobs(model, rows, ids, mask) for rows in (clean, masked)])

    with Lifted():
        together, apiece = with_gradients(live, model), with_gradients(alone, model)
        padded = padded_logprobs(model, clean + masked, ids.repeat(2, 1), mask.repeat(2, 1))
    assert max(apart(together, apiece)) < EXACT
    assert (together[0] - padded).abs().max() < EXACT
    assert (padded[:4] - padded[4:])[mask].abs().min() > 1e-6  # the views do differ


# --- random arrangements --------------------------------------------------------------------------------------------------


@st.composite
def cases(draw):
    count = draw(st.integers(1, 7))
    arrangement = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    lengths = draw(st.lists(st.sampled_from([0, 1, 1, 2, 5, 9]), min_size=count, max_size=count))
    distinct = draw(st.lists(st.booleans(), min_size=count, max_size=count))  # an equal dict of its own
    masked = draw(st.lists(st.booleans(), min_size=count, max_size=count))  # the other view
    return arrangement, lengths, distinct, masked, draw(st.sampled_from([1.0, 0.6, 1.7]))


@pytest.fixture(scope="module")
def exact_models():
    """Three-dimensional positions and plain ones."""
    built = {name: ACCEPTED[name]() for name in ("qwen2_5_vl", "internvl")}
    return {name: (backbone, lifted(backbone.model)) for name, backbone in built.items()}


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=cases())
@example(case=([1], [1], [False], [False], 1.0))
@example(case=([0, 1], [0, 0], [False, False], [False, False], 1.0))
def test_equals_the_padded_route_whatever_the_arrangement(exact_models, name, case):
    backbone, model = exact_models[name]
    arrangement, lengths, distinct, masked, temperature = case
    views = {i: backbone.masked(prompt) for i, prompt in enumerate(backbone.prompts) if "pixel_values" in prompt}
    prompts = []
    for i, is_distinct, is_masked in zip(arrangement, distinct, masked, strict=True):
        prompt = views.get(i, backbone.prompts[i]) if is_masked else backbone.prompts[i]
        prompts.append(dict(prompt) if is_distinct else prompt)
    ids, mask = completions(lengths)
    with Lifted():
        found, expected = (
            with_gradients(route, model, prompts, ids, mask, temperature)
            for route in (shared_prefix_logprobs, padded_logprobs)
        )
    if mask.any():
        assert max(apart(found, expected)) < EXACT
    else:
        assert (found[0] == 0).all() and all((gradient == 0).all() for gradient in found[1])


def test_one_prompt_for_all_is_a_list_of_it(qwen):
    ids, mask = completions()
    with torch.no_grad():
        one = shared_prefix_logprobs(qwen.model, qwen.prompts[1], ids, mask)
        assert torch.equal(one, shared_prefix_logprobs(qwen.model, [qwen.prompts[1]] * len(ids), ids, mask))
    assert (
        not one.requires_grad
        and (one - padded_logprobs(qwen.model, qwen.prompts[1], ids, mask)).abs().max() < TOLERANCE
    )


@torch.no_grad()
def test_what_a_processor_returns_is_taken_as_it_is(qwen):
    """A BatchFeature is a mapping and no dict."""
    prompt = qwen.prompts[1]
    ids, mask = torch.tensor([[20, 21, 22], [23, 24, 25]]), torch.ones(2, 3, dtype=torch.bool)
    expected = shared_prefix_logprobs(qwen.model, prompt, ids, mask)
    feature = BatchFeature(dict(prompt))
    assert not isinstance(feature, dict)
    assert torch.equal(shared_prefix_logprobs(qwen.model, feature, ids, mask), expected)
    assert torch.equal(shared_prefix_logprobs(qwen.model, [feature] * 2, ids, mask), expected)
    torch.testing.assert_close(padded_logprobs(qwen.model, feature, ids, mask), expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_completions_without_any_column(qwen):
    ids = torch.zeros(2, 0, dtype=torch.long)
    assert shared_prefix_logprobs(qwen.model, qwen.prompts[0], ids, ids.bool()).shape == (2, 0)


@torch.no_grad()
def test_what_lies_under_the_mask_changes_nothing(qwen):
    ids, mask = completions()
    clean = shared_prefix_logprobs(qwen.model, arranged(qwen), ids, mask)
    noise = shared_prefix_logprobs(qwen.model, arranged(qwen), ids.masked_fill(~mask, 77), mask.long())
    assert torch.equal(clean, noise)


@torch.no_grad()
def test_prompts_padded_on_the_left(backbone):
    """Processors that pad: the padding takes no part and no position."""

    def padded(prompt):
        zeros = {
            n: prompt[n].new_zeros(1, 3) for n in ("input_ids", "attention_mask", "mm_token_type_ids") if n in prompt
        }
        return prompt | {name: torch.cat([zero, prompt[name]], dim=1) for name, zero in zeros.items()}

    ids, mask = completions((5, 2, 3, 1))
    prompts = [padded(prompt) for prompt in backbone.prompts]
    values = shared_prefix_logprobs(backbone.model, prompts, ids, mask)
    assert (values - padded_logprobs(backbone.model, prompts, ids, mask)).abs().max() < TOLERANCE
    assert (values - shared_prefix_logprobs(backbone.model, backbone.prompts, ids, mask)).abs().max() < TOLERANCE


@torch.no_grad()
def test_positions_are_three_dimensional_only_where_the_processor_says_so(qwen):
    """Without mm_token_type_ids the model falls back to one dimension, and so does this route."""
    ids, mask = completions((5, 3))
    three = shared_prefix_logprobs(qwen.model, qwen.prompts[1], ids, mask)
    bare = {name: value for name, value in qwen.prompts[1].items() if name != "mm_token_type_ids"}
    one = shared_prefix_logprobs(qwen.model, bare, ids, mask)
    assert (one - padded_logprobs(qwen.model, bare, ids, mask)).abs().max() < TOLERANCE
    assert (three - one).abs().max() > 1e-3


@torch.no_grad()
def test_prompts_of_one_length_keep_their_own_positions(qwen):
    """Positions are remembered by where images lie and how large they are: a wide image is not a high one, an image that
    comes a token later is another, and a prompt of as many tokens may have none."""
    wide = qwen.prompts[0]
    grid = wide["image_grid_thw"]
    high = wide | {"image_grid_thw": grid[:, [0, 2, 1]]}
    text = {name: wide[name] for name in ("attention_mask", "mm_token_type_ids")}
    text |= {"input_ids": torch.full_like(wide["input_ids"], 70), "mm_token_type_ids": 0 * wide["mm_token_type_ids"]}
    late = wide | {name: wide[name].roll(1) for name in ("input_ids", "mm_token_type_ids")}
    ids, mask = completions((4, 4, 4, 4))
    ids = ids[:1].expand(4, -1)
    for prompts in ([wide, high, text, late], [late, text, high, wide]):
        values = shared_prefix_logprobs(qwen.model, prompts, ids, mask)
        assert (values - padded_logprobs(qwen.model, prompts, ids, mask)).abs().max() < TOLERANCE
    assert (values[2] - values[3]).abs().max() > 1e-3


# --- what it costs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokens_seen(backbone):
    """The shapes of what enters the first text layer, (rows, tokens)."""
    seen = []
    layer = backbone.model.get_decoder().layers[0]
    handle = layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].shape[:2]), with_kwargs=True
    )
    yield seen
    handle.remove()


@torch.no_grad()
def test_each_prompt_and_image_once(backbone, tokens_seen, monkeypatch):
    encoded = []
    owner = next(m for m in reversed(list(backbone.model.modules())) if hasattr(m, "get_image_features"))
    original = owner.get_image_features

    def get_image_features(pixel_values, *args, **kwargs):
        encoded.append(pixel_values)
        return original(pixel_values, *args, **kwargs)

    monkeypatch.setattr(owner, "get_image_features", get_image_features)
    shared_prefix_logprobs(backbone.model, arranged(backbone), *completions())
    prompt_tokens = sum(prompt["input_ids"].shape[1] for prompt in backbone.prompts)
    assert tokens_seen == [(1, prompt_tokens + sum(max(length - 1, 0) for length in LENGTHS))]
    (pixels,) = encoded
    assert len(pixels) == sum(len(prompt["pixel_values"]) for prompt in backbone.prompts[:3])


# --- where it does not fit ------------------------------------------------------------------------------------------------


def eager(model):
    model.float().config.get_text_config()._attn_implementation = "eager"  # whose softmax is in float32


def sliding(model):
    text, layer = model.get_decoder(), model.get_decoder().layers[0]
    text.config.layer_types, text.has_sliding_layers = ["sliding_attention", "full_attention"], True
    text.config.sliding_window = layer.self_attn.sliding_window = 4


def hooked(model):
    model.lm_head.register_forward_hook(lambda module, inputs, logits: 2 * logits)


def scaled(model):
    class Scaled(torch.nn.Linear):
        def forward(self, states):
            return 3 * super().forward(states)

    head = torch.nn.utils.skip_init(Scaled, *reversed(model.lm_head.weight.shape), bias=False, dtype=torch.float64)
    head.weight = model.lm_head.weight
    model.lm_head = head


def dropout(model):
    model.train().config.get_text_config().attention_dropout = 0.5
    for layer in model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.5


MISFITS = {
    "attn_implementation is eager; sdpa and flash attention can": eager,
    "qwen2_5_vl has layers of sliding_attention": sliding,
    "the output layer has hooks": hooked,
    "the output layer is a Scaled": scaled,
    "attention_dropout is not 0": dropout,
}


@pytest.fixture
def nothing_said(monkeypatch):
    monkeypatch.setattr(shared_prefix, "_said", set())


@pytest.mark.parametrize("reason", MISFITS)
def test_a_model_that_does_not_fit_takes_the_padded_route_and_says_so_once(qwen, reason, caplog, nothing_said):
    model = copy.deepcopy(qwen.model)
    MISFITS[reason](model)
    assert misfit(model) == reason
    arguments = arranged(qwen), *completions(), 0.7
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            values = shared_prefix_logprobs(model, *arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert torch.equal(values, padded_logprobs(model, *arguments))
    assert caplog.messages == [f"one row a completion instead of the shared prompt: {reason}"]
    shared = shared_prefix_logprobs(qwen.model, *arguments)
    assert MISFITS[reason] is eager or (values - shared).abs().max() > 1e-3  # it would have shown


def test_dropout_that_is_off_is_none(qwen):
    model = copy.deepcopy(qwen.model)
    dropout(model)
    assert misfit(model.eval()) is None


def test_gemma3_takes_the_padded_route(caplog, nothing_said):
    gemma = ALL["gemma3"]()
    arguments = arranged(gemma), *completions()
    assert torch.equal(shared_prefix_logprobs(gemma.model, *arguments), padded_logprobs(gemma.model, *arguments))
    assert len(caplog.messages) == 1 and "gemma3" in caplog.text


@torch.no_grad()
def test_a_mask_with_holes_takes_the_padded_route(qwen, caplog, nothing_said):
    ids, mask = completions((5, 4))
    mask[0, 2] = False
    values = shared_prefix_logprobs(qwen.model, qwen.prompts[0], ids, mask)
    assert torch.equal(values, padded_logprobs(qwen.model, qwen.prompts[0], ids, mask))
    assert "a completion has tokens behind padding" in caplog.text


# --- around the model -----------------------------------------------------------------------------------------------------


def test_activation_checkpointing(backbone):
    plain = with_gradients(shared_prefix_logprobs, backbone.model, arranged(backbone), *completions())
    model = copy.deepcopy(backbone.model).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    runs = []
    model.get_decoder().layers[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    recomputed = with_gradients(shared_prefix_logprobs, model, arranged(backbone), *completions())
    assert len(runs) == 2  # once forward, once more in the backward pass
    difference, distance, _ = apart(recomputed, plain)
    assert difference < TOLERANCE and distance < GRADIENT


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def backward(model, wrapped, *arguments):
    """As `with_gradients`, through `backward()`, which is where wrappers reduce gradients."""
    model.zero_grad()
    values = shared_prefix_logprobs(wrapped, *arguments)
    weights = torch.randn(values.shape, generator=derived_generator("weights"), dtype=torch.float64)
    (values * weights.to(values.dtype)).sum().backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return values.detach(), found


def test_within_distributed_data_parallel(qwen, one_process):
    """Through the wrapper's own forward, which is what makes it reduce gradients."""
    plain = with_gradients(shared_prefix_logprobs, qwen.model, arranged(qwen), *completions())
    model = copy.deepcopy(qwen.model)
    wrapped = DistributedDataParallel(model)
    reduced = []

    def hook(state, bucket):
        reduced.append(bucket.index())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped.register_comm_hook(None, hook)
    for _ in range(2):  # a second step, as well
        difference, distance, _ = apart(backward(model, wrapped, arranged(qwen), *completions()), plain)
        assert difference < TOLERANCE and distance < GRADIENT
    assert reduced and "forward" not in vars(model)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_prepared_by_accelerate(qwen, precision, fresh_accelerate):
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    model = copy.deepcopy(qwen.model).float()
    plain = copy.deepcopy(model)
    prepared = accelerator.prepare(model)
    forward = vars(accelerator.unwrap_model(prepared)).get("forward")
    assert (forward is not None) == (precision == "bf16")  # accelerate put its own in place
    with accelerator.autocast():
        found = backward(model, prepared, arranged(qwen), *completions())
        padded = with_gradients(
            padded_logprobs, prepared, arranged(qwen), *completions(), parameters=list(model.parameters())
        )
    assert vars(model).get("forward") is forward
    difference, distance, _ = apart(found, padded)
    tolerance = SINGLE if precision == "no" else HALF
    assert difference < tolerance[0] and distance < tolerance[1]
    exact = with_gradients(padded_logprobs, plain, arranged(qwen), *completions())
    assert (apart(found, exact)[0] > 1e-3) == (precision == "bf16")  # autocast reached it


def test_the_forward_method_survives_an_error(qwen, monkeypatch):
    model = copy.deepcopy(qwen.model)

    def fails(*arguments):
        raise ArithmeticError("inside")

    monkeypatch.setattr(shared_prefix, "hidden_states", fails)
    for own in (None, model.forward):
        if own is not None:
            model.forward = own
        with pytest.raises(ArithmeticError, match="inside"):
            shared_prefix_logprobs(model, arranged(qwen), *completions())
        assert vars(model).get("forward") is own
    monkeypatch.undo()

    handle = model.register_forward_pre_hook(fails)  # before the forward method itself is reached
    with pytest.raises(ArithmeticError, match="inside"):
        shared_prefix_logprobs(model, arranged(qwen), *completions())
    handle.remove()
    assert vars(model)["forward"] is own
    with torch.no_grad():
        values = shared_prefix_logprobs(model, arranged(qwen), *completions())
        assert torch.equal(values, shared_prefix_logprobs(qwen.model, arranged(qwen), *completions()))


def test_the_model_class_of_this_package(qwen):
    wrapper = PapoForConditionalGeneration.from_backbone(copy.deepcopy(qwen.model))
    assert misfit(wrapper) is None
    plain = with_gradients(shared_prefix_logprobs, qwen.model, arranged(qwen), *completions())
    found = with_gradients(shared_prefix_logprobs, wrapper, arranged(qwen), *completions())
    assert apart(found, plain) == (0, 0, 0)


def test_adapters_of_peft(qwen):
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
        model = peft.get_peft_model(copy.deepcopy(qwen.model), config)
    assert misfit(model) is None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert 0 < len(trained) < len(list(model.parameters()))
    for outer in (model, PapoForConditionalGeneration.from_backbone(model.get_base_model())):
        found, expected = (
            with_gradients(route, outer, arranged(qwen), *completions(), parameters=trained)
            for route in (shared_prefix_logprobs, padded_logprobs)
        )
        difference, distance, _ = apart(found, expected)
        assert difference < TOLERANCE and distance < GRADIENT
    plain = shared_prefix_logprobs(qwen.model, arranged(qwen), *completions())
    assert (found[0] - plain).abs().max() > 1e-2  # the adapters show

    model = peft.get_peft_model(copy.deepcopy(qwen.model), peft.PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2))
    assert "virtual tokens" in misfit(model)


# --- flash attention ------------------------------------------------------------------------------------------------------


def varlen(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
):
    """What the kernel for sequences of several lengths computes, (N, H, D), written out: each sequence apart, causal with
    the last query on the last key."""
    assert causal and dropout_p == 0
    outputs = []
    lengths = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    assert (max_seqlen_q, max_seqlen_k) == tuple(map(max, lengths))
    for query, key, value in zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True):
        key, value = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (key, value))
        scores = torch.einsum("nhd,mhd->hnm", query, key) * softmax_scale
        visible = torch.ones(scores.shape[1:], dtype=torch.bool).tril(len(key) - len(query))
        outputs.append(torch.einsum("hnm,mhd->nhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), value))
    return torch.cat(outputs)


@pytest.fixture
def flash(monkeypatch):
    """transformers' own flash attention around a kernel that runs on any device, under a name of its own."""
    name = "flash_written_out"
    process = modeling_flash_attention_utils._lazy_define_process_function(varlen)
    monkeypatch.setattr(
        modeling_flash_attention_utils,
        "lazy_import_flash_attention",
        lambda *args, **kwargs: ((None, varlen, None, None, None), (process, None)),
    )
    AttentionInterface.register(name, flash_attention_forward)
    yield name
    del AttentionInterface._global_mapping[name]


def test_flash_attention(backbone, flash, monkeypatch):
    plain = with_gradients(shared_prefix_logprobs, backbone.model, arranged(backbone), *completions())
    model = copy.deepcopy(backbone.model)
    model.config.get_text_config()._attn_implementation = flash
    assert misfit(model) is None
    calls = []
    monkeypatch.setattr(
        modeling_flash_attention_utils, "fa_peft_integration_check", lambda *qkv: calls.append(1) or qkv[:3]
    )
    found = with_gradients(shared_prefix_logprobs, model, arranged(backbone), *completions())
    assert len(calls) == 2  # one call a text layer
    difference, distance, _ = apart(found, plain)
    assert difference < TOLERANCE and distance < GRADIENT
