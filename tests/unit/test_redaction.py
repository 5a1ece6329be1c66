"""Secrets leave no text, and no text steers a terminal."""

import pytest

from papo_hub.redaction import names_a_secret, printable, redact, redacted

TOKEN = "hf_" + "AbCd1234" * 4


@pytest.mark.parametrize(
    "text, expected",
    [
        (f"GET with {TOKEN} failed", "GET with hf_… failed"),
        (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer …"),
        ("PUT https://storage/x/y?X-Amz-Signature=abc&e=1 gave 403", "PUT https://storage/x/y?… gave 403"),
        ("read s3://bucket/rows.parquet?versionId=1", "read s3://bucket/rows.parquet?…"),
        ("clone https://me:swordfish@host.org/data.jsonl", "clone https://…@host.org/data.jsonl"),
        ("no file https:/me:swordfish@host.org/x?key=1", "no file https:/…@host.org/x?…"),
        ("train --hub_token swordfish --max_tokens 4", "train --hub_token … --max_tokens 4"),
        ("WANDB_API_KEY=swordfish train", "WANDB_API_KEY=… train"),
        ("github_pat_" + "a1B2" * 8 + " and ghp_" + "a1B2" * 8, "github_pat_… and ghp_…"),
        ("see https://huggingface.co/settings/tokens", "see https://huggingface.co/settings/tokens"),
        (f"my_{TOKEN}_2", "my_hf_…"),
        ("pip install hf_transfer", "pip install hf_transfer"),
        ("hf_token is a key, not a token", "hf_token is a key, not a token"),
        ("max_tokens_per_micro_batch: 4096", "max_tokens_per_micro_batch: 4096"),
    ],
)
def test_tokens_and_signatures_are_cut_out(text, expected):
    assert redact(text) == expected
    assert redact(expected) == expected


def test_a_known_secret_is_cut_out_whatever_it_looks_like():
    assert redact("the answer quoted swordfish twice: swordfish", "swordfish", None) == "the answer quoted … twice: …"


def test_so_is_what_the_environment_holds_under_the_name_of_a_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sword/fish")
    monkeypatch.setenv("SOME_TOKEN", "word")  # too short: it would take words out of every text
    assert redact("a word on sword/fish") == "a word on …"
    assert names_a_secret("AWS_SECRET_ACCESS_KEY") and names_a_secret("DB_PASSWORD") and names_a_secret("hub_token")
    assert not names_a_secret("max_tokens") and not names_a_secret("HF_TOKEN_PATH")


def test_records_are_redacted_text_by_text():
    record = {"command": f"train {TOKEN}", "steps": 3, "views": ("clean", TOKEN), "inner": {"none": None}}
    assert redacted(record) == {
        "command": "train hf_…",
        "steps": 3,
        "views": ["clean", "hf_…"],
        "inner": {"none": None},
    }


def test_what_steers_a_terminal_is_shown_as_its_code():
    assert printable("\x1b[2J\x1b]0;title\x07ok\r\u202egpj.exe\n\tnext\x9b1m") == (
        "\\x1b[2J\\x1b]0;title\\x07ok\\r\\u202egpj.exe\n\tnext\\x9b1m"
    )
    assert printable(f"größer × 図 {TOKEN}") == "größer × 図 hf_…"
    assert printable("half a pair: \ud800") == "half a pair: \\ud800"
