"""A real perception task that needs no download: questions about three handwritten digits.

The digits are scikit-learn's `load_digits` (1,797 scans of 8 × 8 pixels, UCI). An image shows three of them side by side,
28 × 84 px, dark ink on noisy paper. The question asks for their sum, the largest, or how many are even, and its text
carries a hint for some places: `sum: ? 4 ?` says that the second digit is a 4. Where every place is `?` the image alone
holds the answer ("high" vision dependence); where none is, the image is not needed ("low"). Training and test questions
use different scans.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from PIL import Image

TILE = 28  # pixels of a digit's side: two patches of 14
PLACES = 3
NOISE = 60.0  # standard deviation of the paper's grey, of 255
KINDS = {"sum": sum, "largest": max, "evens": lambda digits: sum(digit % 2 == 0 for digit in digits)}
KIND_SHARES = {
    "sum": 0.6,
    "largest": 0.2,
    "evens": 0.2,
}  # a misread image often still gives the right answer to the last two
DEPENDENCE_SHARES = {"high": 0.5, "partial": 0.25, "low": 0.25}
SPLITS = {"train": slice(0, 1200), "test": slice(1300, 1797)}  # a gap between them: writers repeat in runs


class DigitRows:
    """Rows of the task in problem/answer/images form, each made from its index when asked for.

    Args:
        split: "train" or "test": which scans are used.
        size: number of rows.
        seed: of the questions.
        scans: use only the first so many scans of the split; None: all.
        hide_hinted: probability with which a tile is blackened where the text carries its digit. The warm-up uses it, so
            that the model learns to read the text as well as the image.
        noise: standard deviation of the paper's grey, of 255.
        shares: of the rows, by visual dependence: "high", "partial" and "low", which add up to 1.
        wrong_hints: probability with which a hint names another digit than the image shows. The answer stays the image's.
        wrong_captions: probability with which all hints of a row do, each drawn anew: the text of another image.

    A row has `id`, `problem`, `answer` and `images` (one image); `kind` and `dependence` to group results; `reading`, the
    digits that the image shows ("3 4 1"); `solution`, the response that the warm-up imitates.
    """

    column_names = ("id", "problem", "answer", "images", "kind", "dependence", "reading", "solution")

    def __init__(
        self,
        split: str = "train",
        size: int = 4096,
        seed: int = 0,
        scans: int | None = None,
        hide_hinted: float = 0.0,
        noise: float = NOISE,
        shares: Mapping[str, float] = DEPENDENCE_SHARES,
        wrong_hints: float = 0.0,
        wrong_captions: float = 0.0,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"The digits task has the splits {', '.join(SPLITS)}, not {split!r}.")
        images, labels = _scans()
        self.images, self.labels = images[SPLITS[split]][:scans], labels[SPLITS[split]][:scans]
        self.split, self.size, self.seed, self.hide_hinted = split, size, seed, hide_hinted
        self.noise = noise
        self.shares, self.wrong_hints, self.wrong_captions = shares, wrong_hints, wrong_captions

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(index)
        draw = np.random.default_rng((self.seed, list(SPLITS).index(self.split), index))
        chosen = draw.integers(len(self.labels), size=PLACES)
        digits = [int(self.labels[i]) for i in chosen]
        kind = str(draw.choice(list(KIND_SHARES), p=list(KIND_SHARES.values())))
        dependence = draw.choice(list(self.shares), p=list(self.shares.values()))
        hinted = {"high": 0, "partial": int(draw.integers(1, PLACES)), "low": PLACES}[dependence]
        places = set(draw.permutation(PLACES)[:hinted].tolist())
        answer = str(KINDS[kind](digits))
        tiles = [
            np.zeros((TILE, TILE)) if i in places and draw.random() < self.hide_hinted else self._tile(scan, draw)
            for i, scan in enumerate(chosen)
        ]
        image = Image.fromarray(np.concatenate(tiles, axis=1).astype(np.uint8)).convert("RGB")
        told = self._told(digits, draw)
        hints = " ".join(str(told[i]) if i in places else "?" for i in range(PLACES))
        reading = " ".join(map(str, digits))
        tags = {"kind": kind, "dependence": str(dependence), "reading": reading}
        return {
            "id": f"digits-{self.split}-{index}",
            "problem": f"<image>{kind}: {hints}",
            "answer": answer,
            "images": [image],
            **tags,
            "tags": tags,  # the solution is none
            "solution": f"<think> {reading}</think> \\boxed{{{answer}}}",
        }

    def _told(self, digits: list[int], draw: np.random.Generator) -> list[int]:
        """What the text says of each place. Draws only where it may be wrong: the rows of a plain task stay what they are."""
        if self.wrong_captions and draw.random() < self.wrong_captions:
            return draw.integers(10, size=PLACES).tolist()
        if self.wrong_hints:
            return [(d + int(draw.integers(1, 10))) % 10 if draw.random() < self.wrong_hints else d for d in digits]
        return digits

    def _tile(self, scan: int, draw: np.random.Generator) -> np.ndarray:
        ink = Image.fromarray((self.images[scan] * (255.0 / 16.0)).astype(np.uint8)).resize((TILE, TILE), Image.BICUBIC)
        paper = 255.0 - np.asarray(ink, dtype=np.float64)
        return np.clip(paper + draw.normal(0.0, self.noise, paper.shape), 0, 255)


@lru_cache(maxsize=1)
def _scans() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # a second to import; only this task needs it

    data = load_digits()
    return data.images, data.target
