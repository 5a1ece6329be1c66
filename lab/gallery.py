"""lab/README.md: every question with its hypothesis, command, time, figure, table and answer, from results/ as they are."""

from __future__ import annotations

from collections.abc import Iterable

from lab.question import FIGURES, HERE, Found, Question, table

INTRODUCTION = """\
# The laboratory

What the perception term does, in miniature: a model of 231,000 parameters reads three handwritten digits from a noisy image,
answers a question about them, and may find some of them in the text. A run takes about a minute of one core, so questions that
cost hundreds of GPU-hours elsewhere can be asked with seeds and error bars. What holds here need not hold for a 7B model: it
shows mechanisms, not magnitudes.

```bash
make lab                             # every run, table and figure of this page: {hours} on two cores, resumable
make lab LAB="hacking --jobs 4"      # one question
make lab LAB=--draw                  # tables and figures from lab/results/ as they are: seconds
make lab-quick                       # the robust phenomena alone, asserted: minutes; part of the tests
```

All arms of a question share warm-ups, prompts, seeds and the number of steps and completions; a difference is paired by seed.
Brackets are 95 % intervals of the mean over runs (Student's t), not corrected for the number of comparisons: among twenty lines
one lies off zero by chance. *Vision-only* are the questions whose text gives no digit away. A *perception error* misreads a digit
and gives a wrong answer; the digits that the model reads are part of its answer. 400 held-out questions, 8 answers each.

{setups}
"""


def render(questions: Iterable[Question]) -> str:
    """The page, with the questions that were asked."""
    asked = [(question, question.found()) for question in questions if question.results.exists()]
    distinct = {(o.setup, o.arm, o.seed): o.seconds for _, found in asked for o in found.outcomes}
    introduction = INTRODUCTION.format(hours=_time(sum(distinct.values()) / 2), setups=_setups())
    return "\n".join([introduction, *(_section(question, found) for question, found in asked)])


def _section(question: Question, found: Found) -> str:
    text, hypothesis = question.text
    runs, seconds = len(found.outcomes), sum(outcome.seconds for outcome in found.outcomes)
    return f"""\
## {text}

{hypothesis}

`python -m lab {question.name}`: {runs} runs, {_time(seconds / 2)} on two cores.

![{text}](figures/{question.name}.png)

{table(question, found)}

{question.answer.strip()}
"""


def _setups() -> str:
    """The table in the docstring of lab/setups.py, as Markdown."""
    from lab import setups

    lines = [line.strip() for line in setups.__doc__.split("\n\n")[2].splitlines()]
    rows = [line.split(None, 1) for line in lines]
    return "\n".join(["| set-up | |", "|---|---|", *(f"| {name} | {meaning} |" for name, meaning in rows)])


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{round(seconds / 60)} minutes"


def write(questions: Iterable[Question]) -> None:
    """Write README.md beside its figures."""
    FIGURES.mkdir(exist_ok=True)
    (HERE / "README.md").write_text(render(questions), encoding="utf-8")
