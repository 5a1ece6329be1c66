"""The mask that hides what a vision encoder attends to, with a tiny random DINOv2."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from papo_hub.modeling.loading import UntrustedModel
from papo_hub.semantic_masking import SemanticPatchMask, _encoder

PATCH = 7  # of the encoder
LAYERS = 12


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=2, mlp_ratio=2, patch_size=PATCH, image_size=28
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Dinov2Model(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return str(folder)


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def black(image, patch_size):
    """Which cells of an image without other black pixels are black."""
    pixels = (np.asarray(image) == 0).all(-1)
    rows, columns = -(-image.height // patch_size), -(-image.width // patch_size)
    cells = [
        [pixels[y * patch_size : (y + 1) * patch_size, x * patch_size : (x + 1) * patch_size] for x in range(columns)]
        for y in range(rows)
    ]
    assert all(cell.all() or not cell.any() for row in cells for cell in row)
    return np.array([[cell.all() for cell in row] for row in cells])


def attention_by_hand(folder, image, rows, columns):
    """Softmax of queries and keys, from the hidden states in front of each layer: layers 6 to 9, the class token's row."""
    model, processor, _ = _encoder(folder)
    seen = image.resize((columns * PATCH, rows * PATCH), Image.Resampling.BICUBIC)
    pixels = processor(seen, do_resize=False, do_center_crop=False, return_tensors="pt")
    states = model(**pixels, output_hidden_states=True).hidden_states
    maps = []
    for number in range(5, 9):
        layer = model.encoder.layer[number] if hasattr(model, "encoder") else model.layers[number]
        parts = {name.rsplit(".", 1)[-1]: module for name, module in layer.named_modules()}
        hidden = parts["norm1"](states[number])
        query, key = (
            (parts.get(name) or parts[f"{name[0]}_proj"])(hidden)[0].view(-1, 2, 8).transpose(0, 1)
            for name in ("query", "key")
        )
        weights = (query @ key.transpose(-1, -2) / 8**0.5).softmax(-1)
        maps.append(weights[:, 0, 1:].mean(0))
    return torch.stack(maps).mean(0).view(rows, columns).detach().numpy()


def test_saliency_is_the_class_tokens_attention(encoder):
    image = picture(42, 28)
    found = SemanticPatchMask(encoder, patch_size=14).saliency(image)
    expected = attention_by_hand(encoder, image, 2, 3)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.ptp(expected) > 1e-3


@pytest.mark.parametrize("ratio, count", [(0.0, 0), (0.2, 3), (0.21, 4), (0.6, 9), (1.0, 15)])
def test_the_most_salient_cells_are_hidden(encoder, ratio, count):
    image = picture(70, 42)
    mask = SemanticPatchMask(encoder, 14, ratio)
    hidden = black(mask(image), 14)
    assert hidden.sum() == count
    ranks = mask.saliency(image)
    if 0 < count < 15:
        assert ranks[hidden].min() >= ranks[~hidden].max()


def test_the_rest_of_the_image_stays(encoder):
    image = picture(45, 31)  # cut cells at the right and at the bottom
    before = np.array(image)
    masked = SemanticPatchMask(encoder, 14, 0.5)(image)
    assert masked.size == image.size and (np.array(image) == before).all()
    hidden = black(masked, 14).repeat(14, 0).repeat(14, 1)[:31, :45]
    assert (np.asarray(masked)[~hidden] == before[~hidden]).all() and hidden.any()


def test_nothing_is_drawn(encoder):
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    mask, image = SemanticPatchMask(encoder, 14, 0.5), picture(56, 56)
    assert mask(image, generator).tobytes() == mask(image).tobytes()
    assert torch.equal(generator.get_state(), state)


def test_many_cells_are_ranked_on_fewer_patches(encoder, monkeypatch):
    monkeypatch.setattr("papo_hub.semantic_masking.MOST_PATCHES", 6)
    seen = []
    model, *_ = _encoder(encoder)
    hook = model.register_forward_pre_hook(lambda module, given, named: seen.append(given[0].shape), with_kwargs=True)
    mask = SemanticPatchMask(encoder, 14, 0.5)
    assert mask.saliency(picture(84, 56)).shape == (4, 6)
    assert black(mask(picture(84, 56)), 14).sum() == 12
    hook.remove()
    assert all(height * width <= 6 * PATCH**2 for *_, height, width in seen)


def test_other_modes_and_workers(encoder):
    mask = pickle.loads(pickle.dumps(SemanticPatchMask(encoder, 14, 0.5)))
    grey = picture(42, 28).convert("L")
    assert mask(grey).mode == "RGB" and mask == SemanticPatchMask(encoder, 14, 0.5)


@pytest.mark.parametrize("values", [{"ratio": 1.5}, {"patch_size": 0}, {"patch_size": 1.5}])
def test_bad_values_are_named(encoder, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        SemanticPatchMask(encoder, **values)


def test_pickled_weights_are_refused(encoder, tmp_path):
    model, processor, _ = _encoder(encoder)
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UntrustedModel, match="no model.safetensors"):
        SemanticPatchMask(str(tmp_path))(picture(28, 28))
