"""The parts of seven architectures; what is frozen stays, bit for bit."""

from dataclasses import asdict

import pytest
import torch
from backbones import backbones
from safetensors.torch import load_file

from papo_hub.batch import Completion, pad_completions
from papo_hub.checkpoint import checkpoints
from papo_hub.config import ConfigError, build
from papo_hub.parts import PARTS, freeze, part_of, trainable
from papo_hub.shared_prefix import shared_prefix_logprobs
from papo_hub.trainer import train

BUILDERS = backbones()
# The modules below which each part lies, read from the printed models; None: they have no such thing.
VISION = {"qwen2_vl": "visual", "qwen2_5_vl": "visual", "qwen3_vl": "visual", "smolvlm": "vision_model"}
PROJECTOR = {"qwen2_vl": "visual.merger", "qwen2_5_vl": "visual.merger", "smolvlm": "connector"}


@pytest.fixture(params=BUILDERS)
def backbone(request):
    return BUILDERS[request.param]()


def expected(backbone) -> dict[str, set[str]]:
    """Part → names of its parameters, from the modules of this very architecture."""
    core, found = backbone.model.model, {}

    def below(path):
        module = core.get_submodule(path)
        return {id(parameter) for parameter in module.parameters()}

    projector = below(PROJECTOR.get(backbone.name, "multi_modal_projector")) if backbone.name != "qwen3_vl" else set()
    if backbone.name == "qwen3_vl":
        projector = below("visual.merger") | below("visual.deepstack_merger_list")
        assert len(projector) > len(below("visual.merger"))
    if backbone.name == "llava_onevision":
        projector.add(id(core.image_newline))
    found["projector"] = projector
    found["vision_tower"] = below(VISION.get(backbone.name, "vision_tower")) - projector
    head = {id(parameter) for parameter in backbone.model.get_output_embeddings().parameters()}
    found["language_model"] = below("text_model" if backbone.name == "smolvlm" else "language_model") | head
    return found


def update(backbone) -> None:
    """One step of AdamW, with weight decay, from the gradient of log-probs of completions to two prompts with images."""
    optimizer = torch.optim.AdamW(trainable(backbone.model).values(), lr=1e-3, weight_decay=0.1)
    ids, mask = pad_completions([Completion([60, 61, 62], "", True), Completion([70, 71], "", True)], 0)
    shared_prefix_logprobs(backbone.model, [backbone.prompts[0], backbone.prompts[1]], ids, mask).sum().backward()
    optimizer.step()


def test_every_parameter_is_of_one_part(backbone):
    found = {part: set() for part in PARTS}
    for name, parameter in backbone.model.named_parameters():
        found[part_of(name)].add(id(parameter))
    assert found == expected(backbone)
    assert all(found.values())


@pytest.mark.parametrize("frozen", [["vision_tower"], ["projector"], ["language_model"], ["vision_tower", "projector"]])
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_learns(backbone, frozen):
    freeze(backbone.model, frozen)
    before = {name: parameter.detach().clone() for name, parameter in backbone.model.named_parameters()}
    update(backbone)
    changed = {
        name for name, parameter in backbone.model.named_parameters() if not torch.equal(before[name], parameter)
    }
    # Weight decay moves what has a gradient, even one of zero; unused layers and mask tokens have none at all.
    assert {part_of(name) for name in changed} == PARTS.keys() - set(frozen)
    assert changed <= trainable(backbone.model).keys()
    assert all(parameter.grad is None for name, parameter in backbone.model.named_parameters() if name not in changed)


def test_a_model_of_unknown_parts_is_refused():
    with pytest.raises(ConfigError, match="weight is of no part that is known here"):
        freeze(torch.nn.Linear(2, 2), ["projector"])


@pytest.mark.usefixtures("without_report")
def test_a_run_with_a_frozen_vision_tower_resumes_exactly(fast_config, warm_model_folder, tmp_path):
    settings = {"model_name_or_path": warm_model_folder, "freeze_vision_tower": True, "beta": 0.01, "max_steps": 4}
    settings |= {"save_steps": 2, "num_generations": 4, "activation_checkpointing": True}
    whole = train(fast_config(**settings, output_dir=tmp_path / "whole"))
    half = checkpoints(whole / "checkpoints")[0]
    assert half.name == "step-000002"
    moments = load_file(half / "optimizer.safetensors")
    assert {part_of(name) for name in moments} == {"projector", "language_model"}

    again = train(fast_config(**settings, output_dir=tmp_path / "again", resume_from_checkpoint=half))
    start, ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (warm_model_folder, again / "model", whole / "model")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    frozen = [name for name in start if name.startswith("visual.") and ".merger." not in name]
    assert len(frozen) > 10 and all(torch.equal(start[name], theirs[name]) for name in frozen)
    assert not torch.equal(*(weights["model.embed_tokens.weight"] for weights in (start, theirs)))


def test_freezing_everything_is_refused(fast_config):
    frozen = {f"freeze_{part}": True for part in PARTS}
    with pytest.raises(ConfigError, match="leave nothing to train"):
        fast_config(**frozen)
    for part in PARTS:
        config = build(asdict(fast_config()) | frozen | {f"freeze_{part}": "false"})
        assert set(config.frozen_parts) == PARTS.keys() - {part}
