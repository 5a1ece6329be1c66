"""Ask the laboratory: the runs that a question needs, its table and figure, and the gallery, lab/README.md.

python -m lab [QUESTION ...] [--runs runs/lab] [--jobs N]     make what is missing; without names, all questions
python -m lab [QUESTION ...] --draw                           tables and figures from lab/results/ as they are
python -m lab --quick                                         the robust phenomena alone, in minutes; fails if they do not hold
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab import (
    baseline,
    conditions,
    double_entropy,
    errors,
    gallery,
    gamma,
    hacking,
    later,
    masks,
    no_reference,
    quick,
    settling,
    stability,
    verified,
)
from lab.question import FIGURES, Question, table

QUESTIONS: dict[str, Question] = {
    module.QUESTION.name: module.QUESTION
    for module in (
        baseline,
        gamma,
        hacking,
        double_entropy,
        stability,
        masks,
        errors,
        no_reference,
        conditions,
        later,
        settling,
        verified,
    )
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--runs", type=Path, default=Path("runs/lab"), help="where the runs are kept")
    parser.add_argument("--jobs", type=int, help="runs at a time, a core each; default: one a core")
    parser.add_argument("--draw", action="store_true", help="make no runs: draw what lab/results/ holds")
    parser.add_argument("--quick", action="store_true", help="the robust phenomena alone")
    options = parser.parse_args(arguments)
    if unknown := set(options.questions) - set(QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}. There are {', '.join(QUESTIONS)}.")
    runs = options.runs.resolve()
    if options.quick:
        return ask_quickly(runs, options.jobs)
    for name in options.questions or QUESTIONS:
        question = QUESTIONS[name]
        if options.draw and not question.results.exists():
            print(f"{name}: no results yet; `python -m lab {name}` makes them.\n")
            continue
        found = question.found() if options.draw else question.make(runs, options.jobs)
        question.draw(found, FIGURES / f"{name}.png")
        print(f"{question.text[0]}\n\n{table(question, found)}\n", flush=True)
    gallery.write(QUESTIONS.values())
    return 0


def ask_quickly(runs: Path, jobs: int | None) -> int:
    """The exit code: 1 where a robust phenomenon does not hold."""
    found = quick.QUESTION.make(runs, jobs, results=runs)
    quick.draw(found, runs / "quick.png")
    for arm in (quick.GRPO, quick.FROZEN, quick.ADVANTAGE):
        values = ", ".join(f"{reward:.2f}" for reward in quick.rewards(found, arm))
        print(f"{arm.label}: reward of the last {quick.LAST} steps {values}")
    failures = quick.check(found)
    print("\n".join(failures) or f"All hold. See {runs / 'quick.png'}.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
