"""How long an evaluation takes beside its model: problems with images, an engine that has its answers ready, and all the
rest as it is: rows read, prompts made, answers graded and written to disk, the tables and the report.

python -m benchmarks.evaluation [--problems 1000] [--k 8] [--hostile 0.05]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from PIL import Image

from benchmarks.grading import make
from papo_hub.batch import Completion
from papo_hub.evaluation.benchmarks import Benchmark
from papo_hub.evaluation.protocol import Protocol
from papo_hub.evaluation.run import finish
from papo_hub.evaluation.runner import Task, answer
from papo_hub.evaluation.settings import describe
from papo_hub.modeling.tiny import tiny_processor
from papo_hub.rows import Rows


class ReadyEngine:
    """The answers in their order, in no time."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = iter(texts)

    def generate(self, prompts, num_generations, sampling, generator, view="clean") -> list[Completion]:
        return [Completion([0] * 8, next(self.texts), True) for _ in range(len(prompts) * num_generations)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--hostile", type=float, default=0.05, help="share of the second run's answers")
    arguments = parser.parse_args()
    accelerator, processor, protocol = Accelerator(cpu=True), tiny_processor(), Protocol(arguments.k, views=("clean",))
    for share in (0.0, arguments.hostile):
        texts, references = make(Random(0), arguments.problems, arguments.k, share)
        rows = [
            {"problem": f"<image> {i}?", "answer": references[i * arguments.k], "images": [Image.new("RGB", (84, 28))]}
            for i in range(arguments.problems)
        ]
        benchmark = Benchmark("ready", "Ready answers", "local", "ready")
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            task = Task(benchmark.name, Rows(rows))
            answers, skipped = answer(
                ReadyEngine(texts), torch.nn.Identity(), processor, [task], protocol, accelerator, Path(folder)
            )
            answered = time.perf_counter()
            settings = describe({"name": "ready"}, [benchmark], protocol, None, {}, 1)
            results = finish(Path(folder), answers, settings, skipped, say=None)
            done = time.perf_counter()
        print(
            f"{len(answers)} answers, {share:.0%} hostile: {answered - start:.1f} s to grade and write them, "
            f"{done - answered:.1f} s for tables and report; {results['rows'][0]['accuracy']:.1%} right"
        )


if __name__ == "__main__":
    main()
