"""Checkpoints: what is read back is what was written, and a folder named step-* is whole."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from papo_hub.checkpoint import checkpoints, find_checkpoint, load_optimizer, load_state, save_checkpoint
from papo_hub.modeling import load_processor
from papo_hub.randomness import derived_generator


class Saves:
    """Stands for a processor."""

    def save_pretrained(self, folder):
        (folder / "processor.json").write_text("{}")


class Linear(torch.nn.Linear):
    def save_pretrained(self, folder):
        folder.mkdir()
        torch.save(self.state_dict(), folder / "weights")


def trained(steps=3):
    """A model and an AdamW whose moments come from a few real steps."""
    model = Linear(3, 2)
    generator = derived_generator("checkpoint")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        step(model, optimizer, generator)
    return model, optimizer, generator


def step(model, optimizer, generator):
    model(torch.randn(4, 3, generator=generator)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(folder, number, keep=2, state=None):
    model, optimizer, _ = trained()
    return save_checkpoint(folder, number, model, Saves(), optimizer, state or {}, keep)


def test_a_restored_optimizer_goes_on_as_the_saved_one(tmp_path):
    model, optimizer, generator = trained()
    saved = save_checkpoint(tmp_path, 3, model, Saves(), optimizer, {"stream": {"cursor": 7}}, keep=1)
    assert load_state(saved) == {"step": 3, "stream": {"cursor": 7}}

    other, fresh, _ = trained(steps=0)
    other.load_state_dict(model.state_dict())
    load_optimizer(saved, other, fresh)
    data = generator.get_state()
    step(model, optimizer, generator)
    step(other, fresh, generator.set_state(data))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

    amnesiac, forgetful, _ = trained(steps=0)  # without its moments it goes elsewhere
    amnesiac.load_state_dict(torch.load(saved / "weights", weights_only=True))
    step(amnesiac, forgetful, generator.set_state(data))
    assert not torch.equal(amnesiac.weight, model.weight)


def test_moments_of_another_model_are_refused(tmp_path):
    saved = save(tmp_path, 1)
    stranger = torch.nn.Sequential(torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match="holds (bias|weight), which this model does not have"):
        load_optimizer(saved, stranger, torch.optim.AdamW(stranger.parameters()))


def test_the_newest_are_kept_in_numeric_order(tmp_path):
    for number in (9, 10, 999_999, 1_000_000):
        save(tmp_path, number, keep=3)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000010", "step-999999", "step-1000000"]
    assert find_checkpoint("latest", tmp_path).name == "step-1000000"


def test_going_back_leaves_no_later_checkpoint(tmp_path):
    """A run resumed from step 2 goes another way: the old step 6 must not be its `latest`, nor push step 4 out."""
    for number in (2, 4, 6):
        save(tmp_path, number, keep=3)
    save(tmp_path, 4, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000004"]


def test_a_torn_checkpoint_is_never_found_and_is_cleared_away(tmp_path, monkeypatch):
    save(tmp_path, 2)

    def full_disk(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("papo_hub.checkpoint.save_file", full_disk)
        with pytest.raises(OSError, match="no space"):
            save(tmp_path, 4)
    assert (tmp_path / "partial-000004").is_dir()  # the test tore one
    assert find_checkpoint("latest", tmp_path).name == "step-000002"
    save(tmp_path, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000006"]


def test_writing_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 2, state={"first": True})
    assert load_state(save(tmp_path, 2, state={"second": True})) == {"step": 2, "second": True}


def test_what_to_resume_from(tmp_path):
    assert find_checkpoint(None, tmp_path) is None
    assert find_checkpoint("latest", tmp_path / "absent") is None
    saved = save(tmp_path, 2)
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-000009").mkdir()  # without a trainer_state.json
    assert find_checkpoint("latest", tmp_path) == saved
    assert find_checkpoint(str(saved), tmp_path) == saved
    with pytest.raises(ValueError, match=r"no checkpoint at .*step-000009; .* has: step-000002\. Or write `latest`"):
        find_checkpoint(str(tmp_path / "step-000009"), tmp_path)


def test_a_real_checkpoint_is_a_model_folder_with_safetensors_and_json_only(
    tmp_path, tiny_model_folder, tiny_processor
):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_folder)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = save_checkpoint(tmp_path, 1, model, tiny_processor, optimizer, {}, keep=1)

    kinds = {path.suffix for path in saved.iterdir()}
    assert kinds == {".safetensors", ".json", ".jinja"}
    again, info = AutoModelForImageTextToText.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours = dict(model.named_parameters())
    assert all(torch.equal(ours[name], value) for name, value in again.named_parameters())
    assert load_processor(saved).tokenizer.eos_token == "<|im_end|>"
    names = {f"{name}/{moment}" for name in ours for moment in ("step", "exp_avg", "exp_avg_sq")}
    assert set(load_file(saved / "optimizer.safetensors")) == names
    assert json.loads((saved / "trainer_state.json").read_text())["step"] == 1
