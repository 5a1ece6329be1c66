r"""Did a wrong answer misread the image, or misuse what it read?

Where a dataset says what the image shows (its reading), each response is one of five kinds:

                    right result    wrong result        The reading is compared with white space normalised. No reading
    right reading   right           reasoning_error     found: unread, whatever the result, because a right result
    wrong reading   lucky           perception_error    does not tell how the image was read.

    perception share = perception errors / (perception errors + reasoning errors)

Shares of all responses, 0 to 1. PAPO (arXiv 2507.06448) reports that 67 % of 200 errors of a
GRPO model were errors of perception.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from papo_hub.metrics import base

DESCRIPTION = """
Sorts responses by whether they read the image right and whether they got the result right: right, perception_error
(misread, wrong), reasoning_error (read right, wrong), lucky (misread, right), unread (no reading found), as shares of
all responses; and the share of perception errors among the errors whose reading is known.
"""

INPUTS = r"""
Args:
    predictions: N lists of responses; the only response to a problem may stand there itself.
    references: N reference answers.
    readings: N texts, what each image really shows.
    pattern: regular expression whose first group is what a response says it saw, searched in its first 4,000
        characters; default: all that stands between its first <think> and the next </think>.
    grader: how a boxed answer is compared with the reference; default "math".

Returns:
    right, perception_error, reasoning_error, lucky, unread: shares of all responses, which add up to 1.
    perception_share: perception errors among both kinds of errors; None where there are none.

Examples:

    >>> import evaluate
    >>> from papo_hub import metrics
    >>> perception_error = evaluate.load(metrics.path("perception_error"))
    >>> responses = [[r"<think> 3 4 1</think> \boxed{8}", r"<think> 3 9 1</think> \boxed{13}",
    ...               r"<think> 3 4 1</think> \boxed{9}", r"<think> 2 5 1</think> \boxed{8}", r"\boxed{8}"]]
    >>> perception_error.compute(predictions=responses, references=["8"], readings=["3 4 1"])
    {'right': 0.2, 'perception_error': 0.2, 'reasoning_error': 0.2, 'lucky': 0.2, 'unread': 0.2, 'perception_share': 0.5}
"""

KINDS = ("right", "perception_error", "reasoning_error", "lucky", "unread")
MOST_TEXT = 4_000  # characters that a pattern searches: a response is whatever a model sampled


def stated_reading(response: str, pattern: str | re.Pattern[str] | None = None) -> str | None:
    """What the response says it saw, white space normalised; None if it says nothing.

    `pattern` None: all between the first `<think>` and the next `</think>`, in linear time. Else its first group, searched
    in the first 4,000 characters. Raises ValueError for a pattern that is none or has no group.
    """
    if pattern is None:
        start = response.find("<think>")
        end = response.find("</think>", start)
        found = response[start + len("<think>") : end] if 0 <= start < end else ""
    else:
        match = _compiled(pattern).search(response[:MOST_TEXT])
        found = (match[1] if match else "") or ""
    return " ".join(found.split()) or None


def classify(response: str, reading: str, verdict: float, pattern: str | re.Pattern[str] | None = None) -> str:
    """The response's kind, one of KINDS.

    Args:
        response: the text.
        reading: what the image really shows.
        verdict: 1 if the result is right.
        pattern: as in `stated_reading`.

    Raises ValueError for an empty reading and a pattern without a group.
    """
    truth = " ".join(reading.split())
    if not truth:
        raise ValueError(
            "reading: empty; without what the image shows no response can be sorted. Leave the problem out."
        )
    stated = stated_reading(response, pattern)
    if stated is None:
        return "unread"
    if stated == truth:
        return "right" if verdict == 1 else "reasoning_error"
    return "lucky" if verdict == 1 else "perception_error"


def perception_errors(kinds: Iterable[str]) -> dict[str, float | None]:
    """Share of each of KINDS, and `perception_share` (None without a perception or reasoning error).

    Raises ValueError for no kinds.
    """
    counts = Counter(kinds)
    if not counts:
        raise ValueError("kinds: empty; at least one response is needed.")
    errors = counts["perception_error"] + counts["reasoning_error"]
    shares = {kind: counts[kind] / counts.total() for kind in KINDS}
    return shares | {"perception_share": counts["perception_error"] / errors if errors else None}


def _compiled(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern: {pattern!r} is no regular expression: {error}.") from None
    if not compiled.groups:
        raise ValueError(f"pattern: {compiled.pattern!r} has no group; put what the response saw in parentheses.")
    return compiled


class PerceptionError(base.ProblemMetric):
    """The kinds of errors for `evaluate.load`; see the module."""

    options = ("pattern", "grader")

    def _info(self):
        return self.info_of(DESCRIPTION, INPUTS, "references", "readings")

    def measure(self, predictions, references, readings, pattern=None, grader="math") -> dict[str, Any]:
        verdicts = base.grade(predictions, references, grader)
        return perception_errors(
            classify(response, reading, verdict, pattern)
            for responses, reading, given in zip(predictions, readings, verdicts, strict=True)
            for response, verdict in zip(responses, given, strict=True)
        )
