"""How long grading takes: 1,000 answers of 8 responses each, then the same with hostile responses among them.

python -m benchmarks.grading [--grader math|mathruler] [--answers 1000] [--responses 8] [--hostile 0.05]
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from random import Random

from papo_hub.rewards import accuracy_rewards

THOUGHTS = "we see that the angle of this triangle is half of the base, hence its length follows from the other. "


def ordinary(random: Random) -> tuple[str, list[str], list[str]]:
    """(an answer, right spellings, wrong answers) of one of the kinds that benchmarks of visual mathematics ask for."""
    a, b, c, d = (random.randint(2, 999) for _ in range(4))
    x, y = random.sample("abcmnpqrstuvxyz", 2)
    letter, other = random.sample("ABCDE", 2)
    root = random.choice([2, 3, 5, 6, 7, 10, 11, 13, 15])
    word, another = random.sample(["triangle", "blue", "left", "cylinder", "Monday", "yes", "no", "parabola"], 2)
    unit, larger = random.choice([("cm", "m"), ("mm", "cm"), ("g", "kg")])
    factor = {"cm": 100, "mm": 10, "g": 1000}[unit]
    kinds = [
        (f"{a}", [f"{a}", f"{a}.0", f"{x} = {a}"], [f"{a + 1}", f"-{a}", f"{b}{x}"]),
        (f"{a}.{b}", [f"{a}.{b}", f"{a}.{b}0"], [f"{a}.{b}1", f"{a}"]),
        (letter, [letter, f"({letter})", f"{letter}. {a}", rf"\text{{{letter}}}"], [other, f"({other}) {a}"]),
        (word, [word, rf"\text{{{word}}}"], [another, f"not {word}"]),
        (
            rf"\frac{{{a}}}{{{b}}}",
            [f"{a}/{b}", rf"\dfrac{{{2 * a}}}{{{2 * b}}}"],
            [f"{b}/{a + b}", rf"\frac{{{a}}}{{{b + 1}}}"],
        ),
        (
            rf"{a}\sqrt{{{root}}}",
            [rf"{a} \sqrt {{{root}}}", rf"\sqrt{{{a * a * root}}}", rf"\frac{{{a * root}}}{{\sqrt{{{root}}}}}"],
            [rf"{b}\sqrt{{{root + 1}}}", f"{a}"],
        ),
        (rf"{a}\pi", [rf"{a} \pi", f"{a}π", rf"\frac{{{2 * a}\pi}}{{2}}"], [f"{a}", rf"{a + 1}\pi"]),
        (
            rf"\frac{{{a}+\sqrt{{{root}}}}}{{{b}}}",
            [rf"\frac{{\sqrt{{{root}}}+{a}}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}+\frac{{\sqrt{{{root}}}}}{{{b}}}"],
            [rf"\frac{{{a}-\sqrt{{{root}}}}}{{{b}}}"],
        ),
        (f"[{a}, {a + b})", [rf"[{a},{a + b})", rf"\left[{a}, {a + b}\right)"], [f"({a}, {a + b})", rf"[{a}, \infty)"]),
        (
            rf"(-\infty, {a}) \cup ({a + b}, \infty)",
            [rf"{x}<{a} \text{{ or }} {x}>{a + b}", rf"({a + b},\infty)\cup(-\infty,{a})"],
            [rf"(-\infty, {a}] \cup ({a + b}, \infty)"],
        ),
        (rf"\{{{a}, {a + b}, {a + b + c}\}}", [rf"\{{{a + b},{a},{a + b + c}\}}"], [rf"\{{{a},{a + b}\}}"]),
        (f"({a}, -{b})", [f"({a},-{b})", rf"({x}, {y}) = ({a}, -{b})"], [f"({a}, {b})", f"(-{b}, {a})"]),
        (
            rf"\begin{{pmatrix}}{a} & {b}\\{c} & {d}\end{{pmatrix}}",
            [rf"\begin{{bmatrix}}{a} & {b} \\ {c} & {d}\end{{bmatrix}}"],
            [rf"\begin{{pmatrix}}{b} & {a}\\{c} & {d}\end{{pmatrix}}"],
        ),
        (
            f"{a}{x}^2 + {b}{x}",
            [f"{x}({a}{x}+{b})", f"{b}{x}+{a}{x}^{{2}}"],
            [f"{a}{x}^2 - {b}{x}", f"{x}({a}{x}+{b + 1})"],
        ),
        (rf"({x}+{a})({x}-{b})", [rf"{x}^2+{a - b}{x}-{a * b}".replace("+-", "-")], [rf"{x}^2-{a * b}"]),
        (rf"\frac{{{x}+{a}}}{{{y}-{b}}}", [f"({x}+{a})/({y}-{b})"], [rf"\frac{{{x}-{a}}}{{{y}-{b}}}"]),
        (f"{y} = {a}{x} + {b}", [f"{a}{x} - {y} + {b} = 0", f"{a}{x}+{b}"], [f"{y} = {a}{x} - {b}"]),
        (f"{x} > {a}", [f"{a} < {x}", rf"({a}, \infty)"], [f"{x} < {a}", rf"{x} \ge {a}"]),
        (f"{a} {larger}", [f"{a}", f"{a * factor} {unit}", rf"{a}\text{{ {larger}}}"], [f"{a} {unit}", f"{a + 1}"]),
        (f"{a}%", [rf"{a}\%", f"{a}"], [f"{a + 1}%", f"{b + 1000}"]),
        (rf"{a}^\circ", [f"{a}", f"{a}°", f"{a} degrees"], [rf"{a + 1}^\circ"]),
        (rf"\log_{{{root}}} {a}", [rf"\frac{{\ln {a}}}{{\ln {root}}}"], [rf"\log_{{{root}}} {a + 1}"]),
        (rf"\sin {random.choice([15, 18, 30, 45])}^\circ", [], [rf"\frac{{{a}}}{{{b}}}", rf"\cos {a}^\circ"]),
        (rf"\sqrt{{{x}^2+{y}^2}}", [rf"\sqrt{{{y}^2+{x}^2}}", rf"({x}^2+{y}^2)^{{1/2}}"], [f"{x}+{y}"]),
        (rf"2^{{{a % 30}}}\cdot {b}", [f"{2 ** (a % 30) * b}"], [rf"2^{{{a % 30 + 1}}}\cdot {b}"]),
        (
            rf"\frac{{{a}}}{{{b}}}\vec{{a}} + \vec{{b}}",
            [rf"\vec{{b}}+\frac{{{a}\vec{{a}}}}{{{b}}}"],
            [r"\vec{a}+\vec{b}"],
        ),
    ]
    return random.choice(kinds)


def matrix(rows: list[list[str]], kind: str) -> str:
    return rf"\begin{{{kind}}}" + r" \\ ".join(map(" & ".join, rows)) + rf"\end{{{kind}}}"


def hostile(random: Random) -> str:
    """An answer made to stall a grader; two draws are seldom the same."""
    a, b, many = random.randint(2, 99), random.randint(5, 99), random.randint(90_000, 100_000)
    kinds = [
        lambda: rf"{a}^{{{b}^{{{a}^{{{b}}}}}}}",
        lambda: f"{a}**{b}**{a}**{b}",
        lambda: f"{a}^{b}^{a}^{b}",
        lambda: rf"{a}^{{10^{{{b}}}}}",
        lambda: f"(10^10!)!+{a}",
        lambda: f"(({b}!)!)!",
        lambda: f"{a}{b}000000000!",
        lambda: rf"\binom{{10^{{{b}}}}}{{{a}000000}}",
        lambda: rf"\sum_{{n=1}}^{{1000000{b}}} \frac{{1}}{{n^{{{a}}}+n^n}}",
        lambda: rf"\prod_{{n=1}}^{{1000000{b}}} (n+{a})",
        lambda: rf"\int_0^{{{a}}} x^{{x^{{x}}}} \sin(e^{{{b}x}}) dx",
        lambda: rf"\int \frac{{\sqrt{{\sin x+{a}}}}}{{\ln(\cos x+x^{{{b}}})}} dx",
        lambda: rf"\lim_{{x\to 0}} \frac{{\sin(\tan(x^{{{a}}}))-\tan(\sin x)}}{{x^{{{b}}}}}",
        lambda: f"({'+'.join('abcdefgh')})^{{{b * 20}}} - {a}",
        lambda: f"(x+{a})^{{{b}00000}}",
        lambda: rf"\sqrt[{b}00000000]{{{a}}}^{{{b}{b}}}",
        lambda: "{" * many + str(a) + "}" * many,
        lambda: "(" * many + str(a) + ")" * many,
        lambda: r"\frac{1}{" * (b + 30) + "2" + "}" * (b + 30),
        lambda: r"\sqrt{" * b + f"x+{a}" + "}" * b,
        lambda: r"\frac" * (b * 3) + str(a),
        lambda: f"{a}+" * (many * 10),
        lambda: " " * (many * 10) + str(a),
        lambda: "9" * 1_900 + f"^{a}",
        lambda: f"{a}" + "/" * 1_900,
        lambda: f"{a}" + " " * 1_900 + "+",
        lambda: f"1{'x' * 900}{a}{'y' * 900}",
        lambda: "-" * 1_900 + f"{a}",
        lambda: rf"\frac{{1}}{{\sqrt{{{a}}}",
        lambda: rf"\left(\begin{{matrix}}\frac\sqrt\sum_{a}",
        lambda: f"{a}\x00{b}\ud800\udfff\u202e",
        lambda: matrix([[str(a + j) for j in range(25)] for _ in range(25)], "pmatrix"),
        lambda: matrix([[f"x_{{{i + j * a}}}" for i in range(12)] for j in range(12)], "vmatrix"),
        lambda: f"1e{a}99999999",
        lambda: f"__import__('time').sleep({b})",
        lambda: f"{a}x**{b}x**y**{a}**{b}**x**9**9",
        lambda: f"0x{'f' * 1_500}+{a}",
        lambda: rf"\sin(\cos(\tan(\sin(\cos(\tan({a}^{{{b}}}x^{{{b}}})))))) \cdot \log_{{x}} {b}",
        lambda: "+".join(rf"\sqrt{{x+{i * a}}}" for i in range(60)),
        lambda: "+".join(rf"\sqrt{{{i * a + 2}}}" for i in range(100)),
    ]  # fmt: skip
    return random.choice(kinds)()


def make(random: Random, answers: int, responses: int, hostile_share: float) -> tuple[list[str], list[str]]:
    """(responses, answers), one pair a response; about half of the ordinary ones are right."""
    texts, references = [], []
    for _ in range(answers):
        answer, right, wrong = ordinary(random)
        for _ in range(responses):
            spelling = random.choice(right or [answer]) if random.random() < 0.5 else random.choice(wrong)
            if random.random() < hostile_share:
                spelling = hostile(random)
            thoughts = THOUGHTS * random.randint(2, 6)
            texts.append(rf"<think>{thoughts}</think> The answer is $\boxed{{{spelling}}}$.")
            references.append(answer)
    return texts, references


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grader", choices=["math", "mathruler"], action="append")
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--hostile", type=float, default=0.05, help="share of the second run's responses")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{arguments.answers} answers x {arguments.responses} responses on {cores} cores")
    for grader in arguments.grader or ["math", "mathruler"]:
        for share in (0.0, arguments.hostile):
            texts, references = make(Random(0), arguments.answers, arguments.responses, share)
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            verdicts = accuracy_rewards(texts, references, grader)
            seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
            own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(
                f"{grader:9} {share:4.0%} hostile: {seconds:5.1f} s, of which {own:.1f} s of processor time in this "
                f"process; {sum(verdicts) / len(verdicts):.1%} right"
            )


if __name__ == "__main__":
    main()
