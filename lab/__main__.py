"""Ask the laboratory: make the runs that a question needs, its table, its figure, and the gallery.

python -m lab [QUESTION ...] [--runs runs/lab] [--jobs N]     make what is missing; all questions without names
python -m lab --draw                                          tables and figures from results/ as they are
python -m lab --quick                                         the robust phenomena alone, in a few minutes
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lab import (
    baseline,
    double_entropy,
    errors,
    gamma,
    hacking,
    later,
    masks,
    no_reference,
    settling,
    stability,
    verified,
)
from lab.question import FIGURES, Question, table

QUESTIONS: dict[str, Question] = {
    module.QUESTION.name: module.QUESTION
    for module in (
        baseline,
        hacking,
        double_entropy,
        stability,
        gamma,
        errors,
        later,
        masks,
        no_reference,
        settling,
        verified,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--runs", type=Path, default=Path("runs/lab"), help="where the runs are kept")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: one a core")
    parser.add_argument("--draw", action="store_true", help="make no runs: draw what results/ holds")
    options = parser.parse_args()
    if unknown := set(options.questions) - set(QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}. There are {', '.join(QUESTIONS)}.")
    for name in options.questions or QUESTIONS:
        question = QUESTIONS[name]
        found = question.found() if options.draw else question.make(options.runs.resolve(), options.jobs)
        question.draw(found, FIGURES / f"{name}.png")
        print(f"{question.text[0]}\n\n{table(question, found)}\n", flush=True)


if __name__ == "__main__":
    main()
