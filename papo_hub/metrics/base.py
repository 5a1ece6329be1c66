"""What the metrics share: their inputs checked, their options told apart, responses graded."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import datasets
import evaluate

from papo_hub.rewards import accuracy_rewards

COLUMNS = {"references", "readings", "views", "ids"}
OPTIONS = {"k", "grader", "pattern", "perception_kl", "tokens"}

CITATION = """\
@article{wang2025perception,
  title   = {Perception-Aware Policy Optimization for Multimodal Reasoning},
  author  = {Wang, Zhenhailong and Guo, Xuehang and Stoica, Sofia and Xu, Haiyang and Wang, Hongru and Ha, Hyeonjeong and
             Chen, Xiusi and Chen, Yangyi and Yan, Ming and Huang, Fei and Ji, Heng},
  journal = {arXiv preprint arXiv:2507.06448},
  year    = {2025}
}
"""


class ProblemMetric(evaluate.Metric):
    """A metric of problems, each with its k responses; problems add up, batch by batch and process by process.

    `predictions` is a list with the list of responses of each problem; a problem's only response may stand there itself.
    A metric names the options it takes in `options`; those of the other metrics are ignored, so that several combine,
    and any other name is an error. Its configuration "verdicts", where it has one, takes verdicts in [0, 1] instead of
    responses and references.
    """

    options: tuple[str, ...] = ()
    configurations: tuple[str, ...] = ("default",)

    def info_of(self, description: str, inputs: str, *columns: str) -> evaluate.MetricInfo:
        """The metric's info; `columns` name the texts that each problem has, "references" among them."""
        if self.config_name not in self.configurations:
            known = ", ".join(self.configurations)
            raise ValueError(f"{self.config_name!r} is no configuration of this metric: write one of {known}.")
        verdicts = self.config_name == "verdicts"
        texts = {name: datasets.Value("string") for name in columns if not (verdicts and name == "references")}
        element = datasets.Value("float64" if verdicts else "string")
        return evaluate.MetricInfo(
            description=description,
            citation=CITATION,
            inputs_description=inputs,
            features=datasets.Features({"predictions": datasets.Sequence(element), **texts}),
            license="Apache-2.0",
        )

    def add(self, *, prediction=None, reference=None, **columns):
        """Add the responses to one problem, and its entry in each of the other inputs.

        Raises ValueError as `add_batch`.
        """
        single = {"predictions": prediction, "references": reference, **columns}
        self.add_batch(**{name: None if entry is None else [entry] for name, entry in single.items()})

    def add_batch(self, *, predictions=None, references=None, **columns):
        """Add the responses to some problems, with one entry a problem in each of the other inputs.

        Raises ValueError where an input is missing, empty, of another length than the predictions, or of another type.
        """
        given = {"predictions": predictions, "references": references, **columns}
        needed = self._feature_names()
        missing = [name for name in needed if given.get(name) is None]
        if missing:
            raise ValueError(f"{self.name}: {', '.join(missing)} missing; the inputs are {', '.join(needed)}.")
        if isinstance(predictions, str) or not len(predictions):
            raise ValueError(
                f"{self.name}: no problems; pass a list with the responses of each, [[response, ...], ...]."
            )
        for name in needed[1:]:
            if len(given[name]) != len(predictions):
                raise ValueError(
                    f"{self.name}: {len(predictions)} predictions but {len(given[name])} {name}; "
                    "each needs one entry a problem, and all responses to a problem are one entry."
                )
            given[name] = [self._text(entry, name, i) for i, entry in enumerate(given[name])]
        given["predictions"] = [self._responses(entry, i) for i, entry in enumerate(predictions)]
        super().add_batch(**given)

    def _compute(self, *, predictions=None, **inputs):
        unknown = ", ".join(sorted(inputs.keys() - OPTIONS - COLUMNS))
        if unknown:
            raise ValueError(f"{self.name}: unknown option {unknown}; known: {', '.join(self.options) or 'none'}.")
        mine = {name: value for name, value in inputs.items() if name in (*self.options, *self._feature_names())}
        return self.measure(predictions, **mine)

    def measure(self, predictions: list[list[Any]], **inputs: Any) -> dict[str, Any]:
        """The results, from N lists of responses (or verdicts), one entry a problem in every column, and the options."""
        raise NotImplementedError

    def _responses(self, entry: Any, problem: int) -> list[str] | list[float]:
        alone = isinstance(entry, (str, Real))
        responses = [entry] if alone or entry is None else list(entry)
        if not responses:
            raise ValueError(f"{self.name}: problem {problem} has no response; pass at least one, or leave it out.")
        if self.config_name != "verdicts":
            return [self._text(response, "responses", problem) for response in responses]
        for verdict in responses:
            if not (isinstance(verdict, Real) and 0 <= verdict <= 1):
                raise ValueError(f"{self.name}: verdict {verdict!r} of problem {problem}; it must lie between 0 and 1.")
        return [float(verdict) for verdict in responses]

    def _text(self, entry: Any, name: str, problem: int) -> str:
        if not isinstance(entry, str):
            raise ValueError(
                f"{self.name}: {name}, problem {problem}: expected text, got {type(entry).__name__} {entry!r}."
            )
        return str(entry)


def grade(predictions: list[list[str]], references: Sequence[str], grader: str = "math") -> list[list[float]]:
    """Verdicts 0.0 or 1.0 of the N lists of responses to N problems, in the same shape."""
    flat = [response for responses in predictions for response in responses]
    answers = [answer for responses, answer in zip(predictions, references, strict=True) for _ in responses]
    verdicts = iter(accuracy_rewards(flat, answers, grader))
    return [[next(verdicts) for _ in responses] for responses in predictions]
