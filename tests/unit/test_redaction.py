"""Secrets leave no text."""

import pytest

from papo_hub.redaction import redact

TOKEN = "hf_" + "AbCd1234" * 4


@pytest.mark.parametrize(
    "text, expected",
    [
        (f"GET with {TOKEN} failed", "GET with hf_… failed"),
        (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer …"),
        ("PUT https://storage/x/y?X-Amz-Signature=abc&e=1 gave 403", "PUT https://storage/x/y?… gave 403"),
        ("see https://huggingface.co/settings/tokens", "see https://huggingface.co/settings/tokens"),
        (f"my_{TOKEN}_2", "my_hf_…"),
        ("pip install hf_transfer", "pip install hf_transfer"),
        ("hf_token is a key, not a token", "hf_token is a key, not a token"),
    ],
)
def test_tokens_and_signatures_are_cut_out(text, expected):
    assert redact(text) == expected


def test_a_known_secret_is_cut_out_whatever_it_looks_like():
    assert redact("the answer quoted swordfish twice: swordfish", "swordfish", None) == "the answer quoted … twice: …"
