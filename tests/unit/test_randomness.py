"""Derived generators: equal keys, equal streams; any difference, another stream."""

import subprocess
import sys

import pytest
import torch

from papo_hub.randomness import derived_generator


def test_the_seed_is_the_hash_of_the_key():
    # coreutils hashes the same text: an independent route.
    shell = "printf '%s' \"(0, 'mask', 1, 2)\" | sha256sum | cut -c1-16"
    digits = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert derived_generator(0, "mask", 1, 2).initial_seed() == int(digits, 16) >> 1


def test_keys_that_differ_anywhere_give_other_streams():
    keys = [(0,), (1,), ("0",), (0, "mask"), (0, "order"), (0, "mask", 1, 12), (0, "mask", 11, 2), (0, "mask", 1, 1, 2)]
    streams = {tuple(torch.rand(4, generator=derived_generator(*key)).tolist()) for key in keys}
    assert len(streams) == len(keys)


def test_the_stream_is_the_same_in_another_process():
    code = "from papo_hub.randomness import derived_generator; print(derived_generator(3, 'a').initial_seed())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(other) == derived_generator(3, "a").initial_seed()


@pytest.mark.parametrize("part", [True, 1.0, None, (1,), torch.tensor(1)])
def test_only_ints_and_strings_make_a_key(part):
    with pytest.raises(TypeError, match="ints and strings"):
        derived_generator(0, part)
