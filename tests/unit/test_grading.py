"""Both graders over answers labelled by hand, many at once, and against hostile ones."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from papo_hub import rewards
from papo_hub.grading import mathruler
from papo_hub.grading import worker as grading_worker
from papo_hub.grading.effort import hopeless
from papo_hub.rewards import accuracy_reward, accuracy_rewards

DOCUMENT = Path(__file__).parents[2] / "docs" / "grading.md"

# kind → (answer, boxed and right, boxed and wrong), as a person decides
LABELLED = {
    "choices": [
        (
            "B",
            [
                r"\text{(B)}",
                r"\mathbf{B}",
                "(b)",
                "B)",
                "[B]",
                r"\text{B. } 45^\circ",
                r"\text{B: parallel}",
                r"B \text{ (the second)}",
                r"\text{Choice B}",
                r"\text{option (B)}",
                r"\text{Answer: B}",
                r"\text{Graph B}",
                "B. 3/4",
            ],
            ["B = 3", "B - 3", r"\text{B or C}", "BC", r"\text{Both}", "2", r"\beta", "(A)(B)", r"\text{A. 12, B. 13}"],
        ),
        ("(B)", [r"\text{B}"], []),
        ("B. 12", ["(B)"], ["(C) 12"]),
        ("ABD", ["A, B, D", r"\text{A, B and D}", "(A), (B), (D)"], ["A, B"]),
    ],
    "fractions and mixed numbers": [
        (
            r"\frac{3}{8}",
            [
                "3/8",
                "0.375",
                r"\frac{6}{16}",
                r"\frac{-3}{-8}",
                r"\frac38",
                r"\cfrac{3}{8}",
                r"3 \div 8",
                r"{3 \over 8}",
                "3:8",
            ],
            ["0.38", r"\frac{8}{3}", r"-\frac{3}{8}"],
        ),
        (r"-\frac{3}{8}", [r"\frac{3}{-8}", "-0.375"], []),
        (r"2\frac{1}{4}", [r"\frac{9}{4}", "2.25", "2 1/4", r"2 + \frac{1}{4}"], [r"\frac{2}{4}"]),
        (r"-2\frac{1}{4}", ["-2.25"], ["-1.75"]),
        (r"\frac{1}{3}", [r"33.\overline{3}\%"], []),
        (r"\frac{2}{3}", ["0.666666667"], ["0.67", "0.6667"]),
        (r"\frac{\frac{1}{2}}{3}", [r"\frac{1}{6}"], []),
    ],
    "decimals": [
        ("0.5", [".5", "0.50"], []),
        ("3.14", ["3.140"], ["3.14159"]),
        ("2.50", ["5/2"], []),
        ("007", ["7"], []),
        ("-0", ["0"], []),
        ("100", ["1e2"], []),
        ("12.0", ["12"], []),
        ("0.05", [], ["0.5"]),
        ("6.28", [], [r"2\pi"]),
    ],
    "thousands, money": [
        (
            "12000",
            ["12,000", "12{,}000", r"12\,000", "12 000", r"\$12,000", "12,000.00", r"12\text{ thousand}"],
            ["12,00"],
        ),
        ("3000000", [r"3 \text{ million}"], []),
        ("12,345", ["12345"], []),
        (r"\$18.90", ["18.90", "18.9", r"\$18.90"], []),
        ("18.90", [r"\text{\$}18.90", r"18.90 \text{ dollars}", "USD 18.90"], [r"\$ 189.0"]),
        ("€5", ["5"], []),
    ],
    "units": [
        ("30", [r"30\ \text{cm}", r"30 \text{ km/h}"], []),
        ("30 cm", [r"30\mathrm{~cm}", "30 cm.", "300 mm"], ["30 mm"]),
        ("30 cm^2", [r"30\text{ cm}^2", "30 cm²", r"30 \text{ square cm}", "30"], []),
        ("36 km/h", ["10 m/s"], ["36 m/s"]),
        ("5 m/s", [r"5 \text{ m}\cdot\text{s}^{-1}", r"5 \text{ meters per second}"], []),
        ("9.8 m/s^2", [r"9.8\ \mathrm{m/s^2}"], []),
        ("20 N", [r"20\,\text{N}", r"20 \text{ newtons}"], []),
        (r"4 \Omega", ["4"], []),
        ("2 kg", ["2000 g"], []),
        ("1.5 hours", ["90 minutes", r"1 \text{ hour } 30 \text{ minutes}"], []),
        ("25 °C", [r"25^\circ\text{C}", "25"], []),
        (r"45^\circ", ["45", "45°", r"45^{\circ}", r"\frac{\pi}{4}", r"45\text{ degrees}"], [r"54^\circ"]),
        ("45", [r"\angle A = 45^\circ", r"m\angle ABC = 45°"], []),
        ("12", [r"12 \text{ people}", r"12\text{ different ways}"], []),
        ("12 apples", ["12"], []),
        (r"3 \text{ feet}", [r"3\text{ ft}", r"36 \text{ inches}"], []),
    ],
    "percentages": [
        (r"25\%", ["25%", "25", "0.25", r"\frac{1}{4}", r"25 \text{ percent}", r"25.0\%"], [r"2.5\%", "2.5"]),
        ("25", [r"25\%"], []),
        ("0.25", ["25%"], []),
        (r"33.3\%", ["33.3"], []),
    ],
    "sets, lists, tuples, intervals": [
        (r"\{1, 2, 3\}", [r"\{3, 1, 2\}", "1, 2, 3", r"\left\{1,2,3\right\}"], [r"\{1, 2\}", r"\{1, 2, 3, 4\}"]),
        ("1, 2, 3", ["3, 2, 1", "1; 2; 3", r"\text{1, 2, and 3}", r"1, 2 \text{ and } 3"], []),
        ("2, -2", [r"\pm 2", "x = 2, x = -2", "x_1 = 2, x_2 = -2", r"x = 2 \text{ or } -2"], ["2"]),
        (r"1 \pm \sqrt{3}", [r"1+\sqrt{3}, 1-\sqrt{3}"], [r"1+\sqrt{3}"]),
        (r"x = 1 \pm \sqrt{3}", [r"1 \pm \sqrt3"], []),
        (
            "(3, 4)",
            ["(3,4)", "(3.0, 4)", "x = 3, y = 4", "P(3, 4)", "3, 4"],
            ["(4, 3)", r"\begin{pmatrix}3\\4\end{pmatrix}", "[3, 4]"],
        ),
        ("(3, 4]", ["(3, 4]", r"3 < x \le 4", r"3 < x \leq 4"], ["(3, 4)", r"3 \le x < 4"]),
        (r"(-\infty, 2)", ["x < 2", "(-∞, 2)"], [r"(- \infty , 2]"]),
        (
            r"(-\infty, 1) \cup (2, \infty)",
            [r"(2, \infty) \cup (-\infty, 1)", r"x < 1 \text{ or } x > 2"],
            [r"(-\infty, 2) \cup (1, \infty)"],
        ),
        (r"(-\infty, 1) \cup (2, +\infty)", [r"(-\infty,1)\cup(2,\infty)"], []),
        (r"\mathbb{R}", [r"(-\infty, \infty)", r"\text{all real numbers}"], []),
        (r"\emptyset", [r"\varnothing", r"\text{no solution}"], []),
        ("(1, 2), (3, 4)", ["(3, 4), (1, 2)", r"(1, 2) \text{ and } (3, 4)", r"\{(1,2),(3,4)\}"], ["(2, 1), (4, 3)"]),
        ("2", [], [r"\pm 2"]),
    ],
    "matrices, vectors": [
        (
            r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}",
            [
                r"\begin{pmatrix}1&0\\0&1\end{pmatrix}",
                r"\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix}",
                r"\left[\begin{matrix} 1 & 0 \\ 0 & 1 \end{matrix}\right]",
                r"\left[\begin{array}{cc} 1 & 0 \\ 0 & 1 \end{array}\right]",
            ],
            [r"\begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}"],
        ),
        (r"\begin{pmatrix} 1/2 \\ \sqrt{3} \end{pmatrix}", [r"\begin{bmatrix} 0.5 \\ \sqrt{3} \end{bmatrix}"], []),
        (
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            [r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \\ \end{pmatrix}", r"A = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"],
            [],
        ),
        (
            r"\begin{pmatrix} -2 & 4 \\ 3 & \frac{1}{2} \end{pmatrix}",
            [r"\begin{pmatrix} -2 & 4 \\ 3 & 0.5 \end{pmatrix}"],
            [r"\begin{pmatrix} 2 & 4 \\ 3 & 0.5 \end{pmatrix}"],
        ),
        (r"\langle 1, 2 \rangle", [r"\langle 1,2 \rangle", "(1, 2)"], []),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", [], [r"\begin{pmatrix} 1 & 2 \end{pmatrix}"]),
    ],
    "radicals, pi, powers, scientific notation": [
        (
            r"5\sqrt{2}",
            [
                r"\sqrt{50}",
                "5√2",
                r"\frac{10}{\sqrt{2}}",
                r"5 \cdot \sqrt{2}",
                r"5 \times 2^{1/2}",
                r"5\sqrt2",
                "7.0710678",
                r"5\sqrt{2} \approx 7.07",
                "5 sqrt(2)",
            ],
            ["7.07", r"2\sqrt{5}"],
        ),
        (r"\sqrt[3]{4}", ["4^{1/3}", r"2^{\frac{2}{3}}"], [r"\sqrt{4}"]),
        (r"\frac{3\sqrt{3}}{2}", [r"\frac{3}{2}\sqrt{3}", r"1.5\sqrt{3}", r"\frac{\sqrt{27}}{2}", r"3\sqrt{3}/2"], []),
        (
            r"36\pi",
            ["36π", r"36 \cdot \pi", r"\pi \cdot 36", "36 pi", r"36\pi \text{ square units}", r"\pi 6^2"],
            ["113.1", "36"],
        ),
        (r"24 + 4\pi", [r"4\pi + 24", r"4(\pi+6)"], [r"28\pi"]),
        (r"3 \times 10^8", ["3e8", r"3\cdot 10^{8}", "300000000", "300,000,000"], [r"3 \times 10^{9}"]),
        (r"6.02 \times 10^{23}", ["6.02e23"], []),
        ("2^8", ["256", "2^{8}"], ["28"]),
        ("x^2", ["x^{2}", "x²"], []),
        ("e^2", ["e^{2}", r"\exp(2)"], ["7.389"]),
        ("3 - 2i", ["-2i + 3"], ["3 + 2i"]),
    ],
    "ratios": [
        ("2:3", ["2 : 3", r"\frac{2}{3}", r"2 \text{ to } 3", "6:9"], ["3:2"]),
        ("3:4:5", ["6:8:10"], ["3:5:4"]),
        (r"1:\sqrt{3}", [r"\frac{1}{\sqrt{3}}"], []),
    ],
    "expressions, equations, inequalities": [
        ("2x + 3", ["3 + 2x", "2 x+3", "y = 2x + 3", "f(x) = 2x + 3"], ["2x - 3", "2y + 3"]),
        ("y = 2x + 3", ["2x - y + 3 = 0", "y - 2x = 3"], ["y = 3x + 2"]),
        (r"y = -\frac{1}{2}x^2 + 2x", ["y = -0.5x^2+2x"], []),
        ("(x-1)^2 + y^2 = 4", ["x^2 - 2x + y^2 = 3"], ["(x+1)^2 + y^2 = 4"]),
        (r"\frac{x^2}{4} + \frac{y^2}{3} = 1", ["3x^2 + 4y^2 = 12"], []),
        (r"\frac{x^2}{4} + y^2 = 1", ["x^2/4 + y^2 = 1"], []),
        ("(x+2)(x-3)", ["x^2 - x - 6", "(x-3)(x+2)"], ["(x-2)(x+3)"]),
        (
            "5",
            ["x = 5", "AC = 5", r"d = 5 \text{ cm}", r"\text{The value of } x \text{ is } 5"],
            ["x = 6", "5x", "x > 5"],
        ),
        ("x = 5", ["5"], []),
        (r"x \geq 2", ["x >= 2", r"2 \leq x", r"[2, \infty)", r"[2, +\infty)"], ["x > 2", "2"]),
        ("-1 < x < 3", ["3 > x > -1", "(-1, 3)"], [r"-1 \le x < 3"]),
        ("a + b = c", ["c = a + b"], []),
        ("n^2 + 1", ["1 + n^2", "a_n = n^2 + 1"], []),
        ("3n + 1", ["3(n-1) + 4"], []),
        (r"\frac{1}{x+1}", ["1/(x+1)", "(x+1)^{-1}"], ["1/x + 1"]),
        (r"2\sin x", [r"2 \sin(x)"], []),
        (r"\sin^2 x + \cos^2 x", ["1"], []),
        (r"\ln 2", [r"\log_e 2", r"\ln(2)"], []),
        (r"90 - \frac{\alpha}{2}", [r"90^\circ - \frac{1}{2}\alpha"], []),
        (r"180^\circ - \alpha - \beta", [r"180° - (\alpha + \beta)"], []),
        (r"\sqrt{a^2 + b^2}", [r"\sqrt{b^2+a^2}"], ["a + b"]),
    ],
    "words, yes and no": [
        ("Yes", [r"\text{yes}", r"\textbf{Yes}", "Yes."], ["No"]),
        ("No", ["no", r"\text{No, because } 3 > 2"], []),
        ("True", ["true"], ["False"]),
        ("isosceles", [r"\text{Isosceles}"], [r"\text{scalene}"]),
        ("right triangle", [r"\text{a right triangle}"], []),
        ("red and blue", [r"\text{blue and red}"], []),
        ("circle", [r"\text{Circle}"], [r"\text{circles}"]),
        ("Tuesday", [r"\text{tuesday}"], []),
        ("left", [r"\text{to the left}"], []),
        ("6", ["six"], []),
        ("12", [r"\text{twelve}"], []),
        ("15", [r"\text{fifteen}"], []),
        ("four", ["4"], []),
        (r"AB \parallel CD", [r"AB \parallel CD"], [r"AB \perp CD"]),
        (r"\triangle ABC", ["ABC"], []),
        (r"\angle ABC", [r"\angle CBA"], []),
        ("7:30", ["7:30", r"7:30 \text{ a.m.}"], ["8:30"]),
        ("2:15 PM", [r"2:15 \text{ p.m.}"], []),
        ("increases", [], [r"\text{decreases}"]),
    ],
    "written around it": [
        (
            "8",
            [
                "$8$",
                r"\(8\)",
                "**8**",
                r"\mathbf{8}",
                r"\displaystyle 8",
                r"8 \,",
                '"8"',
                r"\approx 8",
                "|{-8}|",
                r"\text{about } 8",
                "8 (eight)",
                "3 + 5",
                "3 + 5 = 8",
            ],
            ["8!", "8, 9", "8.0001", "-8", "3 + 6", "{}", "None", r"\text{cannot be determined}"],
        ),
        ("$8$", ["8"], []),
        (r"\text{8}", ["8"], []),
    ],
    "close calls": [
        (r"\triangle ABC", [r"\triangle CAB"], [r"\triangle ABD", r"\angle ABC"]),
        (r"\overline{AB}", ["AB"], []),
        (r"3 \text{ million}", ["3000000"], [r"3 \text{ billion}"]),
        ("3", [r"3 \text{ million}"], []),
        (r"x \le -1 \text{ or } x \ge 2", [r"(-\infty, -1] \cup [2, \infty)"], []),
        ("2 > x", ["x < 2"], []),
        (r"x < \frac{1}{2}", ["x < 0.5"], []),
        (r"1 < x < \sqrt{3}", [r"1 < x < \sqrt3"], []),
        ("5", [r"\text{The area is } 5"], [r"\text{x is not } 5", r"\text{about } 6"]),
        ("60 km/h", [r"1 \text{ km/min}"], []),
        ("1 hour 30 minutes", ["1 hr 30 min"], ["1 hour 20 minutes"]),
        ("20", [r"\text{twenty}"], []),
        (r"\angle ABC", [], [r"\angle BAC"]),
        ("x > 3", [], ["y > 3"]),
        (r"x < 1 \text{ or } x > 2", [], [r"(-\infty, 1] \cup (2, \infty)"]),
        ("5 m/s", [], ["5 m/s^2"]),
        ("2:15 PM", [], ["2:15 AM"]),
        ("no solution", [], ["0"]),
        (r"\mathbb{R}", [], [r"\text{all integers}"]),
        ("BD", [], ["(B) and (C)"]),
    ],
}
PAIRS = [
    (answer, candidate, verdict)
    for rows in LABELLED.values()
    for answer, right, wrong in rows
    for candidates, verdict in ((right, 1.0), (wrong, 0.0))
    for candidate in candidates
]
# What takes long, though nothing in its text tells.
HEAVY = [rf"\sqrt[7]{{{n}!+x}}" for n in range(9990, 9998)]


def boxed(candidate):
    return rf"<think>thoughts</think> The answer is \boxed{{{candidate}}}."


@pytest.fixture(scope="module", autouse=True)
def workers():
    """The processes are closed with the file."""
    yield
    for each in rewards._workers.values():
        each.close()
    rewards._verdict_once.cache_clear()


@pytest.fixture(scope="module")
def verdicts():
    """grader → {(answer, candidate): verdict}, of all labelled pairs at once."""
    responses, answers = [boxed(candidate) for _, candidate, _ in PAIRS], [answer for answer, _, _ in PAIRS]
    return {
        grader: dict(zip([pair[:2] for pair in PAIRS], accuracy_rewards(responses, answers, grader), strict=True))
        for grader in ("math", "mathruler")
    }


def test_math_agrees_with_a_person(verdicts):
    assert len(PAIRS) >= 300
    wrong = [
        (answer, candidate, label) for answer, candidate, label in PAIRS if verdicts["math"][answer, candidate] != label
    ]
    assert wrong == []


def test_math_accepts_whatever_a_person_and_mathruler_accept(verdicts):
    """Parity: it is never the stricter one on an answer that is right."""
    accepted = {pair for pair, verdict in verdicts["mathruler"].items() if verdict}
    right = {(answer, candidate) for answer, candidate, label in PAIRS if label}
    assert {pair for pair in accepted & right if not verdicts["math"][pair]} == set()
    assert len(accepted & right) > 100


@pytest.mark.parametrize("grader", ["math", "mathruler"])
def test_many_at_once_are_as_one_by_one(grader, verdicts):
    for answer, candidate, _ in PAIRS[::9]:
        rewards._verdict_once.cache_clear()
        assert accuracy_reward(boxed(candidate), answer, grader) == verdicts[grader][answer, candidate], (
            answer,
            candidate,
        )


@pytest.mark.parametrize("grader", ["math", "mathruler"])
def test_equal_pairs_are_decided_once(monkeypatch, grader):
    rewards._verdict_once.cache_clear()
    asked = []
    monkeypatch.setattr(rewards._workers[grader], "grade", lambda *pair: asked.append(pair) or not time.sleep(0.05))
    responses = [f"<think>{i}</think>" + boxed(r"\log_2 {8}") for i in range(20)]
    assert accuracy_rewards(responses, ["3"] * 20, grader) == [1.0] * 20
    assert len(asked) == 1


def test_nothing_to_grade():
    assert accuracy_rewards([], []) == []
    assert accuracy_rewards(["no box", boxed("")], ["1", ""]) == [0.0, 0.0]


def test_what_was_asked_wrongly_is_an_error():
    for call in (lambda: accuracy_reward("", "", "sympy"), lambda: accuracy_rewards([""], [""], "sympy")):
        with pytest.raises(ValueError, match="'sympy'.*'math' and 'mathruler'"):
            call()
    with pytest.raises(ValueError, match="shorter"):
        accuracy_rewards([boxed("1"), boxed("2")], ["1"])


PIECES = [r"\boxed{", "}", "{", r"\}", r"\frac{1}{2}", " / ", "< ", " > ", "1", "x", " ", "\n", "boxed{"]


LIBRARY = mathruler.load()


@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join), st.sampled_from(["1", r"\frac{1}{2}", "None", "x"]))
@settings(max_examples=300, deadline=None)
def test_mathruler_says_what_the_library_says_of_the_whole_response(response, answer):
    from mathruler.grader import extract_boxed_content, grade_answer

    official = re.sub(r"\s*(<|>|/)\s*", r"\1", response)
    assert extract_boxed_content(re.sub(r"\s*(<|>|/)\s*", r"\1", mathruler.boxed(response))) == extract_boxed_content(
        official
    )
    assert LIBRARY(answer, mathruler.boxed(response)) == grade_answer(extract_boxed_content(official), answer)


def test_mathruler_drops_the_white_space_that_the_official_code_drops():
    assert accuracy_reward(boxed("\\text{left /\n right}"), "left/right", "mathruler") == 1.0
    assert accuracy_reward(boxed("\\text{left\n right}"), "left right", "mathruler") == 0.0


@pytest.mark.parametrize("grader", ["math", "mathruler"])
def test_what_is_too_long_is_compared_as_it_stands(monkeypatch, grader):
    monkeypatch.setattr(rewards._workers[grader], "grade", lambda *_: pytest.fail("needed the worker"))
    assert accuracy_reward(boxed("1+" * 2_000 + "x"), "1+" * 2_000 + "x", grader) == 1.0
    assert accuracy_reward(boxed("1+" * 2_000 + "x"), "1+" * 2_000 + "y", grader) == 0.0


@pytest.mark.parametrize("grader", ["math", "mathruler"])
def test_a_lost_verdict_costs_no_import(grader):
    """The process that imported SymPy outlives the fork that was ended: the same one grades on."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    assert accuracy_reward(boxed(r"\sqrt{8}x"), r"2\sqrt{2}x", grader) in (0.0, 1.0)
    workers = rewards._workers[grader]
    before, losses = workers._idle.queue[-1].process.pid, workers._losses
    heavy = HEAVY[0] if grader == "math" else "9**9**9**9"
    assert accuracy_reward(boxed(heavy), "x+3", grader) == 0.0
    assert workers._losses == losses + 1
    assert workers._idle.queue[-1].process.pid == before
    assert accuracy_reward(boxed("1+x"), "x+1", grader) == 1.0


def test_verdicts_of_different_workers_do_not_mix():
    """Lost ones among them, on as many workers as there are; repeated, as the order of completion varies."""
    rewards._verdict_once.cache_clear()
    pairs = [(rf"\log_2 {{{2**n}}}", str(n + n % 3 // 2)) for n in range(300, 360)]
    pairs[10], pairs[40] = (HEAVY[2], "7x"), (HEAVY[3], "7x")
    expected = [float(n % 3 != 2) for n in range(300, 360)]
    expected[10] = expected[40] = 0.0
    assert accuracy_rewards([boxed(candidate) for candidate, _ in pairs], [answer for _, answer in pairs]) == expected


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("10^{10^{10}}", True),
        ("2^{3^2}", False),  # 2^9
        ("2^{5^3}", False),
        ("2^{9^5}", True),
        ("x^{100000}", True),
        ("x^{1000}", False),
        ("(a+b)^{500}", True),
        ("(a+b)^{12}", False),
        ("9**9**9**9", True),
        ("((9!)!)!", True),
        ("10!", False),
        ("123456!", True),
        ("(10^{10})!", True),
        (r"\binom{10}{3}", False),
        (r"\binom{10^9}{3}", True),
        (r"\int_0^1 x dx", True),
        (r"\sum_{n=1}^{9} n", True),
        (r"\limits", False),
        ("1+" * 300, True),
        ("e^{x^2}", False),
    ],
)
def test_what_is_hopeless_is_told_by_its_text(text, verdict):
    assert hopeless(text) is verdict


@pytest.mark.parametrize("grader", ["math", "mathruler"])
@pytest.mark.parametrize(
    "text",
    ["{" * 10**5 + "}" * 10**5, " " * 10**6 + "/", "(" * 10**6, "1+" * 10**6, "\x00\ud800", "9**9**9**9**9"],
    ids=["braces", "spaces", "brackets", "megabytes", "no text", "tower"],
)
def test_hostile_answers_are_wrong_at_once(grader, text):
    start = time.monotonic()
    assert accuracy_rewards([boxed(text)] * 3, ["7x"] * 3, grader) == [0.0] * 3
    assert accuracy_rewards([boxed("7x")], [text], grader) == [0.0]
    assert time.monotonic() - start < 20  # half a second of processor time, on a busy machine


def test_the_processes_end_with_a_parent_that_is_killed():
    start = grading_worker.command("math")[3].partition("from grading.worker")[0]  # without the rest of papo_hub
    script = (
        f"{start}\nimport os, signal\n"
        "from grading.worker import Workers\n"
        "workers = Workers('math')\n"
        "print(workers.grade('3', r'\\log_2 {8}'), workers._idle.queue[-1].process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-P", "-c", script, grading_worker.PACKAGE]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120)
    verdict, pid = result.stdout.split()
    assert (result.returncode, verdict) == (-signal.SIGKILL, "True")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and group_is_alive(pid):
        time.sleep(0.05)
    assert not group_is_alive(pid)


def group_is_alive(pid):
    """Whether the process, or a fork of it that grades, is left; one that nobody waited for does not count."""
    status = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True).stdout.splitlines()
    return any(line.split()[0] == pid and not line.split()[1].startswith("Z") for line in status)


def test_cores_are_shared_with_the_other_processes_of_a_launch(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    assert grading_worker.cores() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert grading_worker.cores() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert grading_worker.cores() == 1


def documented():
    """(kind, answer, boxed, math, mathruler) of each row of the document's tables."""
    rows = re.findall(
        r"^\| (.+?) \| `(.+?)` \| `(.+?)` \| (right|wrong) \| (right|wrong) \|", DOCUMENT.read_text("utf-8"), re.M
    )
    assert len(rows) > 20
    return rows


@pytest.mark.parametrize("kind, answer, candidate, math, ruler", documented())
def test_the_document_tells_the_truth(kind, answer, candidate, math, ruler):
    for grader, verdict in (("math", math), ("mathruler", ruler)):
        assert accuracy_reward(boxed(candidate), answer, grader) == float(verdict == "right"), grader
