import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from papo_hub.images import to_rgb
from papo_hub.masking import RandomPatchMask

MODES = ["RGB", "RGBA", "P", "L", "LA", "1", "I", "I;16", "F", "CMYK", "YCbCr", "HSV"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(size, mode="RGB", low=1):
    width, height = size
    values = np.random.default_rng(width * 1000 + height).integers(low, 256, (height, width, 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(values).convert(mode)


def hidden_cells(image, patch_size):
    """Which cells of a masked image (that had no black pixel) are black; fails where a cell is so only in part."""
    black = (np.asarray(image) == 0).all(-1)
    rows = range(0, black.shape[0], patch_size)
    columns = range(0, black.shape[1], patch_size)
    cells = [[black[y : y + patch_size, x : x + patch_size] for x in columns] for y in rows]
    assert all(cell.all() or not cell.any() for row in cells for cell in row)
    return np.array([[cell.all() for cell in row] for row in cells])


@given(
    mode=st.sampled_from(MODES),
    width=st.integers(1, 64),
    height=st.integers(1, 64),
    patch_size=st.integers(1, 70),
    ratio=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_any_mode_and_size(mode, width, height, patch_size, ratio):
    image = noise((width, height), mode)
    before = np.array(image)
    masked = RandomPatchMask(patch_size, ratio)(image, generator())
    assert (np.array(image) == before).all() and image.mode == mode
    assert masked.mode == "RGB" and masked.size == image.size
    clean, seen = np.asarray(to_rgb(image)), np.asarray(masked)
    if ratio == 0:
        assert (seen == clean).all()
    elif ratio == 1:
        assert not seen.any()
    else:
        assert ((seen == clean).all(-1) | (seen == 0).all(-1)).all()


@pytest.mark.parametrize("size, cells", [((28, 28), (2, 2)), ((31, 15), (2, 3)), ((1, 1), (1, 1)), ((13, 29), (3, 1))])
def test_cells_are_whole_and_count_the_cut_ones(size, cells):
    # a 31 x 15 image has ceil(15 / 14) = 2 rows of ceil(31 / 14) = 3 cells: the cut ones are hidden as a whole too
    seen = [hidden_cells(RandomPatchMask()(noise(size), generator(seed)), 14) for seed in range(40)]
    assert seen[0].shape == cells
    assert np.any(seen, axis=0).all() and not np.all(seen, axis=0).any()  # each cell hides at times, none always


def test_the_share_of_hidden_cells_is_binomial():
    cells = hidden_cells(RandomPatchMask(patch_size=2, ratio=0.6)(noise((400, 400)), generator()), 2)
    n = cells.size
    assert n == 200 * 200
    assert abs(cells.sum() - 0.6 * n) < 4 * math.sqrt(n * 0.6 * 0.4)  # 4 sigma
    # Neighbours are independent: both hidden with probability 0.36, sideways and downwards.
    for pairs in (cells[:, ::2] & cells[:, 1::2], cells[::2] & cells[1::2]):
        assert abs(pairs.sum() - 0.36 * pairs.size) < 4 * math.sqrt(pairs.size * 0.36 * 0.64)


def test_consecutive_images_of_a_generator_are_independent():
    source, mask = generator(), RandomPatchMask(patch_size=2, ratio=0.5)
    first, second = (hidden_cells(mask(noise((200, 200)), source), 2) for _ in range(2))
    n = first.size
    assert abs((first == second).sum() - n / 2) < 4 * math.sqrt(n / 4)


def test_the_generator_alone_decides():
    image, mask = noise((100, 80)), RandomPatchMask()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = mask(image, generator(3))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not drawn from
    torch.manual_seed(2)
    assert (np.asarray(mask(image, generator(3))) == np.asarray(first)).all()
    assert (np.asarray(mask(image, generator(4))) != np.asarray(first)).any()


def test_a_higher_ratio_hides_more_of_the_same_draw():
    few, many = (hidden_cells(RandomPatchMask(4, ratio)(noise((80, 80)), generator()), 4) for ratio in (0.3, 0.7))
    assert (many | ~few).all() and many.sum() > few.sum()


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), 60])
def test_ratio_is_checked(ratio):
    with pytest.raises(ValueError, match="ratio"):
        RandomPatchMask(ratio=ratio)


@pytest.mark.parametrize("patch_size", [0, -14, 14.0])
def test_patch_size_is_checked(patch_size):
    with pytest.raises(ValueError, match="patch_size"):
        RandomPatchMask(patch_size=patch_size)


def test_it_is_a_value_found_by_name():
    assert RandomPatchMask() == RandomPatchMask(patch_size=14, ratio=0.6)
    with pytest.raises(AttributeError):
        RandomPatchMask().ratio = 1.0
