"""The pure parts of benchmarks/: the law by hand, the fit, the tables, the work. Nothing is timed here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not part of the installed package

from benchmarks import law, report, run  # noqa: E402
from benchmarks.work import CELL, Shape, make_work, reward, save_model  # noqa: E402
from papo_hub.modeling import load_processor  # noqa: E402

# Two layers of width 4, one head of keys and values for two of queries, 8 in the MLP, 10 words; vision: 2 blocks of width
# 2, one over the whole image, 3 in the MLP.
SMALL = law.Architecture(
    "small", 4, 2, 2, 1, 8, 10, vision_hidden=2, vision_blocks=2, vision_full_blocks=1, vision_mlp=3
)


def test_tokens_of_a_pass():
    assert law.pass_tokens(1024, [64] * 8, shared=False) == 8 * (1024 + 64)
    assert law.pass_tokens(1024, [64] * 8, shared=True) == 1024 + 8 * 64
    assert law.pass_tokens(10, [1, 2, 5], shared=False) == 3 * 15  # padded to the longest
    assert law.pass_tokens(10, [1, 2, 5], shared=True) == 18


def test_causal_pairs():
    assert law.causal_pairs(3) == 1 + 2 + 3
    assert law.causal_pairs(3, before=5) == 6 + 7 + 8
    assert law.causal_pairs(5) + law.causal_pairs(3, before=5) == law.causal_pairs(8)


def test_flops_of_an_image_by_hand():
    # An image token is 4 patches. A patch: embedded 1176·2; a block 4·2² + 3·2·3 = 34, twice. Merged: 8·8 + 8·4 a token.
    linear = 2 * 4 * (1176 * 2 + 2 * 34)
    attention = 4 * 2 * 4 * (4 + 4)  # 4 patches see 4 in either block: the window of 64 is larger than the image
    assert law.vision_flops(SMALL, 1) == linear + attention + 2 * (64 + 32)
    # 100 tokens are 400 patches: 64 in a window, all 400 in the other block.
    assert law.vision_flops(SMALL, 100) == 100 * linear + 4 * 2 * 400 * (64 + 400) + 100 * 192


def test_flops_of_a_pass_by_hand():
    token = 2 * 2 * (2 * 16 + 2 * 4 * 2 + 3 * 32)  # q and o 4×4, k and v 4×2, MLP 4×8 three times; 2 layers
    image = law.vision_flops(SMALL, 1)
    # Rows: 2 of 3 + 2 tokens, 15 pairs each, 4 predicted. Shared: 3 + 2 + 1 tokens; pairs 6, then 4 + 5, then 4.
    rows = 10 * token + 4 * 4 * 2 * (2 * 15) + 2 * 4 * 10 * 4 + 2 * image
    shared = 6 * token + 4 * 4 * 2 * (6 + 9 + 4) + 2 * 4 * 10 * 3 + image
    assert law.pass_flops(SMALL, 3, 1, [2, 1], shared=False) == rows
    assert law.pass_flops(SMALL, 3, 1, [2, 1], shared=True) == shared
    assert law.ratio(SMALL, "update", 3, 1, [2, 1]) == rows / shared
    assert law.ratio(SMALL, "step frozen", 3, 1, [2, 1]) == pytest.approx(8 / 6 * rows / shared, rel=1e-12)


def test_one_completion_has_nothing_to_share():
    for architecture in (law.QWEN_3B, law.QWEN_7B):
        assert law.ratio(architecture, "update", 1024, 768, [64]) == 1


def test_parameters_of_the_real_models():
    """A token's FLOPs are twice the weights it passes: 2.77 and 6.53 billion in the layers, 0.31 and 0.54 in the head."""
    sizes = {
        # layers · (query and output + key and value + MLP), head
        law.QWEN_3B: (36 * (2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 11008), 311_164_928),
        law.QWEN_7B: (28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944), 544_997_376),
    }
    for a, (layers, head) in sizes.items():
        attention = 4 * a.hidden * a.layers * (1 + 2)
        assert law.pass_flops(a, 1, 0, [1], shared=True) == 2 * 2 * layers + 2 * head + attention
    assert [round(layers / 1e9, 2) for layers, _ in sizes.values()] == [2.77, 6.53]


def test_a_straight_line():
    assert report.straight_line([0, 1, 2], [3, 5, 7]) == pytest.approx((3, 2, 1))
    # Mean slope of (0, 0), (1, 2), (2, 1) is 1/2 through (1, 1); squares left 0.25 + 1 + 0.25 of 2.
    assert report.straight_line([0, 1, 2], [0, 2, 1]) == pytest.approx((0.5, 0.5, 0.25))
    with pytest.raises(ValueError, match="two different x"):
        report.straight_line([4, 4], [1, 2])


def made_up_results() -> dict:
    """Ours takes 1 ms a token of P + G·T, the peer of G·(P + T), in every part; no noise but one slow sample."""
    plan = run.plan(quick=False, repeats=3)
    timings = []
    for threads, cells in plan.items():
        for cell in cells:
            shape = cell.shape
            ours, peer = (law.pass_tokens(shape.prompt, shape.lengths, shared) / 1000 for shared in (True, False))
            columns = dict.fromkeys(run.PARTS[cell.part][1], [ours, ours, 2 * ours]) | {"peer": [peer] * 3}
            agreement = {"logprobs": 1e-6} if cell.part in ("score", "update") else {}
            timings.append(
                {
                    "part": cell.part,
                    "threads": threads,
                    "shape": shape.__dict__,
                    "agreement": agreement,
                    "seconds": columns,
                }
            )
    shapes = [cell.shape.__dict__ for cell in plan[1] if cell.part == "step"]
    return {
        "date": "2026-01-01",
        "machine": run.machine(),
        "versions": {"ours": {"torch": "1"}, "peer": {"trl": "1.5.0"}},
        "model": {"text": run.TEXT, "vision": run.VISION},
        "conditions": run.CONDITIONS,
        "timings": timings,
        "memory": [{"shape": shape, "ours": 100.0, "peer": 450.0} for shape in shapes],
    }


@pytest.fixture(scope="module")
def compared():
    return report.comparisons(json.loads(json.dumps(made_up_results())))


def test_the_plan_covers_the_shapes(compared):
    for row in report.ROWS:
        shapes = {(c.shape.prompt, c.shape.generations, c.shape.completion) for c in compared if c.row == row}
        assert shapes >= {(p, 8, t) for p in (256, 1024) for t in (64, 256)}
    assert {c.threads for c in compared if c.row == "step live"} == {1, 2}
    keys = [(c.row, c.shape, c.threads) for c in compared]
    assert len(keys) == len(set(keys)), "something is measured twice"


def test_ratio_is_of_medians_and_spread_of_neighbours(compared):
    c = next(c for c in compared if (c.row, c.shape, c.threads) == ("update", Shape(1024, 8, 64), 1))
    assert c.ratio == pytest.approx(8 * 1088 / 1536)
    assert c.spread == pytest.approx((c.ratio / 2, c.ratio))


def test_one_more_completion(compared):
    ours, peer = report.marginal_costs(compared, "ours"), report.marginal_costs(compared, "peer")
    assert ours == pytest.approx({(p, t): t / 1000 for p in (256, 1024) for t in (64, 256)})
    assert peer == pytest.approx({(p, t): (p + t) / 1000 for p in (256, 1024) for t in (64, 256)})
    text = report.one_more_completion(compared)
    assert "1.00 ms · T (100% of the variance over both P)" in text
    # (1024 + 64) / (256 + 64) = 3.4 and (1024 + 256) / (256 + 256) = 2.5; their median.
    assert "1.00-fold in papo_hub, 2.95-fold in TRL" in text


def test_the_report(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(made_up_results()), encoding="utf-8")
    text = report.write_report(tmp_path)
    assert text == (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| update: forward and backward pass of one view | 5.7× | 3.3× | 3.3× | 1.8× |" in text
    assert "| peak memory of an update | 1/4.5 | 1/4.5 | 1/4.5 | 1/4.5 |" in text
    line = next(line for line in text.splitlines() if line.startswith("| update | P 1024, G 8, T 64 |"))
    assert line.count("|") == 9
    assert "**5.7×** (2.8–5.7) | 6.2× | 6.3× | 5.9× |" in line  # beside it the law: the model's, 3B's, 7B's
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({row.count(" | ") for row in table.splitlines() if "---" not in row}) == 1
    for name in ("ratios.png", "scaling.png"):
        assert name in text and (tmp_path / name).stat().st_size > 10_000


def test_sides_that_differ_are_not_timed():
    cell = run.Cell("update", Shape(64, 2, 2), 1)
    peer = {"value": [[-1.0, -2.0], [-3.0, -4.0]], "gradient_norm": 2.0}
    close = {"value": [[-1.0, -2.0], [-3.0, -4.00005]], "gradient_norm": 2.001}
    assert run.agreement(cell, {"ours": close, "peer": peer}) == pytest.approx(
        {"logprobs": 5e-5, "gradient_norm": 5e-4}
    )
    for wrong in ({"value": [[-1.0, -2.0], [-3.0, -4.001]]}, {"gradient_norm": 2.01}, {"gradient_norm": float("nan")}):
        with pytest.raises(RuntimeError, match="update at P 64, G 2, T 2: .* differ"):
            run.agreement(cell, {"ours": peer | wrong, "peer": peer})
    rollout = run.Cell("rollout", Shape(64, 2, 2), 1)
    assert run.agreement(rollout, {"ours": {"value": [[1, 2]]}, "peer": {"value": [[1, 2]]}}) == {}
    with pytest.raises(RuntimeError, match="different tokens"):
        run.agreement(rollout, {"ours": {"value": [[1, 2]]}, "peer": {"value": [[1, 3]]}})


def test_the_work_has_its_shape(tmp_path):
    save_model(tmp_path)
    processor = load_processor(tmp_path)
    shape = Shape(128, 4, 8, ragged=True)
    work = make_work(shape, processor)
    again = make_work(shape, processor)
    assert work.image.width * work.image.height == 96 * CELL**2 and work.image.size == work.masked_image.size
    assert work.completion_mask.sum(-1).tolist() == shape.lengths == [2, 4, 6, 8]
    assert (work.completion_ids == again.completion_ids).all() and work.masked_image == again.masked_image
    assert work.masked_image != work.image
    text = processor.apply_chat_template(run_messages(work), add_generation_prompt=True, tokenize=False)
    assert processor(images=[work.image], text=[text], return_tensors="pt")["input_ids"].shape == (1, 128)
    assert len(processor.tokenizer) == 2048
    with pytest.raises(ValueError, match="P = 16 does not fit"):
        make_work(Shape(16, 4, 8), processor)


def run_messages(work) -> list[dict]:
    content = [{"type": "image", "image": work.image}, {"type": "text", "text": work.question}]
    return [{"role": "user", "content": content}]


def test_the_reward_tells_completions_apart():
    assert reward("ab12") == 0.5
    assert reward("") == 0
