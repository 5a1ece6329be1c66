"""The problems of a benchmark by what their tags say of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import TypeVar

READING = "reading"  # the tag that says what the image really shows
MOST_VALUES = 8  # of a tag that makes subsets; one with more names things rather than groups them

P = TypeVar("P", bound=Hashable)


def subsets(tags: Mapping[P, Mapping[str, str]]) -> dict[str, list[P]]:
    """Problem → tags, as "tag: value" → problems, for each tag that groups them: of two to eight values, fewer than there
    are problems. Sorted by tag and value."""
    found: dict[str, dict[str, list[P]]] = defaultdict(lambda: defaultdict(list))
    for problem, tagged in tags.items():
        for tag, value in tagged.items():
            found[tag][value].append(problem)
    return {
        f"{tag}: {value}": problems
        for tag, values in sorted(found.items())
        if tag != READING and 2 <= len(values) <= min(MOST_VALUES, len(tags) - 1)
        for value, problems in sorted(values.items())
    }
