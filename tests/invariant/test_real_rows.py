"""Training on rows from files: real questions, and a hand-made dataset with other names and a broken row."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from papo_hub.data import TooManyUnusableRows
from papo_hub.randomness import derived_generator
from papo_hub.tracking import read_metrics
from papo_hub.trainer import train

VISUAL_QA = Path(
    os.environ.get("PAPO_VISUAL_QA", Path(__file__).resolve().parents[3] / "shared" / "data" / "visual_qa")
)


@pytest.mark.skipif(not VISUAL_QA.exists(), reason="PAPO_VISUAL_QA names no folder with the visual_qa rows")
def test_two_steps_on_real_questions(fast_config):
    run = train(fast_config(dataset_name=VISUAL_QA, max_steps=2, max_prompt_length=512, prompt_suffix=None))
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["objective/perception_kl"] > 0 and row["optim/grad_norm"] > 0 for row in rows)
    assert (run / "figures" / "example.png").is_file()


@pytest.fixture
def own_rows(tmp_path) -> Path:
    """rows.jsonl with columns of other names, two pictures a row as files; row 3 names a picture that is not there."""
    folder = tmp_path / "own"
    (folder / "pictures").mkdir(parents=True)
    generator = derived_generator("own rows")
    lines = []
    for i in range(6):
        names = [f"pictures/{i}-{j}.png" for j in range(2)]
        for name in names:
            pixels = torch.randint(0, 256, (28 + 28 * (i % 2), 56, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name)
        lines.append({"question": f"<image> or <image>: {i}?", "truth": i, "pictures": names, "id": f"row-{i}"})
    (folder / "pictures" / "3-1.png").unlink()
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


OWN = {"problem_column": "question", "answer_column": "truth", "images_column": "pictures", "save_steps": 1}


def test_rows_of_another_shape_with_a_broken_one(fast_config, own_rows):
    run = train(fast_config(dataset_name=own_rows, max_skipped_share=0.2, **OWN))
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2, 3]  # 12 prompts: two epochs and more
    (skipped,) = [json.loads(line) for line in (run / "skipped_rows.jsonl").read_text().splitlines()]
    assert skipped == {"id": "row-3", "reason": "image file is missing: 'pictures/3-1.png'"}
    # A resumed run still knows of it.
    (run / "skipped_rows.jsonl").unlink()
    train(
        fast_config(dataset_name=own_rows, max_skipped_share=0.2, max_steps=4, resume_from_checkpoint="latest", **OWN)
    )
    assert "row-3" in (run / "skipped_rows.jsonl").read_text()


def test_too_many_broken_rows_stop_the_run_with_their_reasons(fast_config, own_rows):
    with pytest.raises(TooManyUnusableRows, match=r"1 of the first 6 rows .*\n +1 × image file is missing \(row row-3"):
        train(fast_config(dataset_name=own_rows, max_skipped_share=0.1, **OWN))
