import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from papo_hub import rewards
from papo_hub.grading import worker as grading_worker
from papo_hub.grading.judgement import same
from papo_hub.grading.mathematics import mathematics
from papo_hub.grading.quantities import constant, number
from papo_hub.grading.text import normalise
from papo_hub.rewards import accuracy_reward, combine, format_reward, last_boxed

# (answer, what the model boxed)
RIGHT = [
    ("42", "42"),
    ("1", "1.0"),
    ("1/2", "0.5"),
    ("0.5", r"\frac12"),
    (r"$\frac12$", "0.5"),
    (r"\boxed{7}", "7"),
    ("50%", "0.5"),
    (r"50\%", "50"),
    ("50", r"50\%"),
    ("0.5", "50%"),
    ("1000", "1,000"),
    ("1,000", "1000"),
    ("1234567", "1{,}234{,}567"),
    ("12 cm", "12"),
    ("12", "12 cm"),
    ("12", r"12\text{ cm}"),
    ("12", r"12\,\mathrm{cm}^2"),
    ("12 cm", "0.12 m"),
    (r"3\sqrt{2}", r"\frac{6}{\sqrt{2}}"),
    ("12 cm", r"120 \text{ mm}"),
    ("1 m^2", r"10000\ \mathrm{cm}^2"),
    ("5 apples", "5"),
    ("5", r"5 \text{ apples}"),
    ("3", "x=3"),
    ("x=3", "3"),
    ("x = 3", "x=3"),
    ("2x+1", "y=2x+1"),
    ("y=2x+1", "2x+1"),
    ("5", "2+3=5"),
    ("5", "AB = 5"),
    ("30", r"\angle ABC = 30^\circ"),
    ("30°", "30"),
    ("30", r"30^{\circ}"),
    (r"30^\circ", "30 degrees"),
    (r"30^\circ", r"\frac{\pi}{6}"),
    (r"\frac{\pi}{6}", r"30^\circ"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"6\sqrt{3}", "6√3"),
    (r"6\sqrt{3}", "6*sqrt(3)"),
    (r"108\pi", "108π"),
    (r"108\pi", "108*pi"),
    (r"\frac{\sqrt{30}}{2}", r"\sqrt{30}/2"),
    (r"7+\sqrt{13}", r"\sqrt{13}+7"),
    (r"7+\sqrt{13}", r"7 + \sqrt {13}"),
    ("1/3", "0.333333"),
    (r"\pi", "3.14159265"),
    ("3.141593", r"\pi"),
    ("A", "A"),
    ("A", "(A)"),
    ("A", "A."),
    ("A", r"\text{A}"),
    ("A", r"\textbf{(A)}"),
    ("A", "A. 12"),
    ("A", "(A) 12"),
    ("A", r"A) \frac{1}{2}"),
    ("A", "a"),
    ("A", "Option A"),
    ("A", "The answer is A"),
    ("D", r"\mathrm{D}"),
    ("B", "B: 5"),
    ("(B)", "B"),
    ("A. 12", "A"),
    ("A. 12", "12"),
    ("E", "E"),
    ("A, C", "AC"),
    ("AC", "C, A"),
    ("BCD", "B, C, D"),
    ("C", r"\text{(C) triangle}"),
    ("B", r"\boxed{B}"),
    ("B", "**B**"),
    ("J", "J"),
    ("yes", "Yes"),
    ("yes", "yes."),
    ("Yes", r"\text{Yes}"),
    ("no", "No, it is not."),
    ("triangle", "a triangle"),
    ("two", "2"),
    ("7", "seven"),
    ("blue", "Blue"),
    ("clockwise", r"\text{clockwise}"),
    ("right triangle", "right triangle"),
    ("(1,2)", "(1, 2)"),
    ("(1,2)", r"\left(1, 2\right)"),
    ("(1,2)", "(x, y) = (1, 2)"),
    (r"(\frac12, 3)", "(0.5,3)"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("1,2", "2, 1"),
    ("1,2", r"x=1 \text{ or } x=2"),
    ("3,-3", r"\pm 3"),
    (r"\pm 3", "-3, 3"),
    (r"x=\pm 3", r"\pm3"),
    ("[1,2)", "[1, 2)"),
    (r"(-\infty,3]", r"(-\infty, 3]"),
    ("x>3", r"(3,\infty)"),
    ("x>3", "3<x"),
    (r"x \ge 3", "x≥3"),
    ("1<x<2", "(1,2)"),
    ("[1,2]", r"x\in[1,2]"),
    (r"[1,2]\cup[3,4]", r"[3,4]\cup[1,2]"),
    ("(1,2),(3,4)", "(3,4) and (1,2)"),
    (r"\begin{pmatrix}1 & 2\\3 & 4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"\begin{pmatrix}1\\ 0.5\end{pmatrix}", r"\begin{pmatrix}1\\ \frac{1}{2}\end{pmatrix}"),
    ("x^2-1", "(x-1)(x+1)"),
    ("(a+b)^2", "a^2+2ab+b^2"),
    ("x+y", "y+x"),
    ("x^{10}", "x^10"),
    ("5000", r"5\times10^3"),
    ("5000", "5e3"),
    ("0.001", "10^{-3}"),
    (r"1.6\times10^{-19}", "1.6e-19"),
    ("3/2", r"1\frac{1}{2}"),
    ("3/2", "1 1/2"),
    ("1.5", "1½"),
    ("2:3", "4:6"),
    ("1:2:3", "2:4:6"),
    ("2/3", "2:3"),
    ("120", "5!"),
    ("3", r"\log_2 8"),
    ("10", r"\binom{5}{2}"),
    ("3+4i", "4i+3"),
    ("2", r"\sqrt[3]{8}"),
    (r"\frac12", r"\sin 30^\circ"),
    ("1/3", r"0.\overline{3}"),
    ("1/6", r"0.1\dot{6}"),
    ("5", r"\$5"),
    ("$5", "5 dollars"),
    (r"\$5", "5.00"),
    ("-3", "−3"),
    ("-3", "- 3"),
    ("4.36", r"\sqrt{19} \approx 4.36"),
    (r"2\sqrt{3}", r"2\sqrt{3} \approx 3.46"),
    ("y = 2x", "2x - y = 0"),
    ("x^2+y^2=4", "y^2+x^2=4"),
    (r"y=-\frac12x+3", "x+2y=6"),
    ("60", "60.0"),
    ("+5", "5"),
    ("x", "x"),
    ("2^{10}", "1024"),
    ("e", "e"),
    (r"\frac{x}{2}", "0.5x"),
    (r"\frac{1}{2}\vec{a}", r"0.5\vec{a}"),
    ("90 km/h", r"90 \text{ km/h}"),
    ("5 厘米", "5"),
    (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}"),
    (r"16\pi \text{ cm}^2", r"16\pi"),
    (r"16\pi", r"16 \pi \mathrm{~cm}^{2}"),
    ("180-2x", r"180^\circ - 2x"),
    ("12", r"\displaystyle 12"),
    ("12", "{12}"),
    ("12", "12."),
    ("0", "0.0"),
    (r"\infty", "infinity"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"\dfrac{3}{4}", "3/4"),
    (r"\frac{3}{4}", r"\tfrac34"),
    (r"\frac{3}{4}", "0.75"),
    ("100,200", "200, 100"),
    ("x_1=1, x_2=2", "1, 2"),
    ("a", "a"),
    ("P", "point P"),
    (r"\emptyset", r"\{\}"),
    ("12.5%", r"\frac{1}{8}"),
    ("1 1/2", "1.5"),
    (r"\triangle ABC", r"\triangle ABC"),
    ("AB", "BA"),
    ("12", "12 units"),
    ("12", "12 square units"),
    ("24", "24 sq cm"),
    ("3 hours", "180 minutes"),
    ("3.0", "3"),
    (r"90^\circ", r"\frac{\pi}{2} \text{ rad}"),
    ("17", r"\text{The answer is }17"),
    ("k<2", "k < 2"),
    ("m>-1", "m > -1"),
    (r"\frac{a+b}{2}", "(a+b)/2"),
    ("yes", "yes"),
    ("False", "false"),
    (r"\frac{\pi}{4}", "π/4"),
    (r"\frac{25}{8}", "3.125"),
    (r"2\sqrt{5}-2", r"-2+2\sqrt5"),
    (r"\frac{1}{4}", "1:4"),
    ("1:4", r"\frac14"),
    ("(0,0)", "(0, 0)"),
    (r"x=\frac{1}{2}", r"\frac{1}{2}"),
    ("y = x + 1", "x+1=y"),
    ("C", r"\text{C. } 5"),
    ("C", "(C) $5$"),
    ("C", "C) 5 cm"),
    ("D", r"\text{D. The cat}"),
    ("D", "D. the cat and the dog"),
    ("B", r"\textbf{B}"),
    ("3.5", r"\frac{7}{2}"),
    (r"3 \text{ and } 4", "4,3"),
    (r"12\pi", r"12 \pi"),
    (r"40^{\circ}", "40"),
    ("40", r"40^\circ"),
    (r"\angle A = 40^\circ", r"40^\circ"),
    ("-5", "-5.0"),
    ("2500", "2{,}500"),
    ("2500", r"2500 \text{ km}"),
    ("9:30", "9:30"),
    (r"75\%", "75"),
    ("0.75", r"\frac{3}{4}"),
    ("5", r"5\text{ units}^2"),
    (r"\sqrt{82}", r"\sqrt {82}"),
    (r"\frac{7}{2}", r"3 \frac{1}{2}"),
    (r"$\frac{7}{2}$", "$3.5$"),
    (r"4\sqrt{3}-4", r"4(\sqrt{3}-1)"),
    (r"\frac{4}{3}", r"\dfrac{4}{3}"),
    ("a=2, b=3", "2, 3"),
    ("x<-1 or x>3", "x>3 or x<-1"),
    (r"8\sqrt{2} cm", r"8\sqrt{2}"),
    ("10", r"\boxed{10}"),
    ("3a+2b", "2b+3a"),
    ("Monday", "monday"),
    ("50 km", "50km"),
    (r"7 + \sqrt{13}", r"7+\sqrt{13} \text{ cm}"),
    (r"2.5\times 10^{4}", "25000"),
    (r"\frac{3}{32}", "0.09375"),
    (r"\vec{a}-\frac{1}{2}\vec{b}", r"-\frac{1}{2}\vec{b}+\vec{a}"),
    ("9", "x=9"),
    ("2^n-1", "2^{n}-1"),
    ("n^2+n", "n(n+1)"),
    (r"\frac{n(n+1)}{2}", r"\frac{n^2+n}{2}"),
    (r"y=\frac{6}{x}", "xy=6"),
    ("-1", "x=-1"),
    (r"k=\frac{4}{3}", "4/3"),
    ("100°", r"100^\circ"),
    ("m = 2", "2"),
    ("(2,-3)", "A(2,-3)"),
    ("1", r"1^\circ"),
    (r"6 \mathrm{~cm}", "6"),
    (r"\frac{5\sqrt{3}}{3}", r"\frac{5}{\sqrt{3}}"),
    (r"5\sqrt{3}", r"5\sqrt{3} \text{ meters}"),
    ("0.25", r"25\%"),
    ("4", r"4 \text{ cm}^3"),
    (r"-\sqrt{3}", r"-\sqrt3"),
    (r"\{x|x>3\}", "x>3"),
    ("5.0 m/s", "5 m/s"),
    (r"\frac{\sqrt{3}}{3}", r"\tan 30^\circ"),
    ("60 degrees", "60"),
    ("2a^{2}b", "2 a^2 b"),
    ("A and C", "A, C"),
    ("24 cm^2", "24 square centimeters"),
]
WRONG = [
    ("C", "(D) C"),
    ("C", r"\text{B. } 5"),
    ("B", "8"),
    ("D", "0"),
    ("4", "-4"),
    (r"\frac{1}{4}", "4"),
    ("1:4", "4:1"),
    ("40", "140"),
    ("3.5", "3.05"),
    ("(2,-3)", "(2,3)"),
    ("(2,-3)", "(-3,2)"),
    ("n^2+n", "n^2-n"),
    ("x<-1 or x>3", "x<-1"),
    (r"y=\frac{6}{x}", r"y=-\frac{6}{x}"),
    (r"12\pi", "12"),
    ("12", r"12\pi"),
    ("12", "12i"),
    (r"\sqrt{3}", "3"),
    (r"8\sqrt{2}", "8"),
    ("9", "9x"),
    ("Monday", "Sunday"),
    ("7", "7^2"),
    ("5", "-5"),
    ("5", "|5-1|"),
    ("2", "2,3"),
    ("0.75", "75"),
    ("2500", "25000"),
    ("24 cm^2", "24 cm^3"),
    ("A and C", "A and B"),
    ("a", "A=2"),
    ("50", r"0.5\%"),
    ("1", "1 or 2 or 3"),
    ("3", "2<x<4"),
    ("6", "1,2,3,4,5,6"),
    ("6", r"\mathbb{R}"),
    ("6", "x"),
    ("12", r"1 \cdot 2"),
    (r"\frac{1}{2}", r"\frac{1}{2}x"),
    ("42", "43"),
    ("A", "B"),
    ("A", ""),
    ("A", "A or B"),
    ("A", "A, B"),
    ("A", "B. A"),
    ("A", "A. 12 B. 13"),
    ("A", "not A"),
    ("A", "12"),
    ("A", "AB"),
    ("E", "2.718281828"),
    ("AC", "A"),
    ("AC", "AB"),
    ("A, C", "A"),
    ("ACB", "ABC"),
    ("A triangle", "A square"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", r"\{1,2\}"),
    ("[1,2)", "[1,2]"),
    (r"(-\infty,3]", r"(-\infty,3)"),
    ("1,2", "1"),
    ("1", "1,2"),
    ("1,2,2", "1,1,2"),
    ("1,2", "1,3"),
    ("(2,1)", "(5,3)"),
    (r"\pi", "3.14"),
    ("1/3", "0.33"),
    ("1/3", "0.333"),
    (r"\sqrt2", "1.414"),
    ("3", "-3"),
    ("3", r"\pm 3"),
    (r"\pm3", "3"),
    ("12 cm", "12 m"),
    ("12 cm", "12 cm^2"),
    ("10 m/s", "10 km/h"),
    ("5", "3x+2=5"),
    ("5", "7=5"),
    ("x=3", "y=3"),
    ("10^{-19}", "10^{-20}"),
    (r"1.6\times10^{-19}", r"1.7\times10^{-19}"),
    ("0.0000004", "0.0000003"),
    ("0", "0.0000001"),
    ("left", "felt"),
    ("left", "right"),
    ("yes", "no"),
    ("yes", "no, yes"),
    ("7", "1 6"),
    ("16", "1 6"),
    ("x^{10}", "10x"),
    ("1000000", "1000001"),
    ("1234567.8", "1234567.9"),
    ("9.12345", "9.12346"),
    ("100000000001", "100000000002"),
    ("k<2", "k>2"),
    ("k<2", r"k\le2"),
    ("k<2", "m<2"),
    ("x>3", r"x\ge3"),
    ("0.5", "0.5%"),
    ("50%", "5"),
    (r"\frac{1}{0}", r"\frac{2}{0}"),
    ("1.5", "1,5"),
    ("12", "12x"),
    ("3", "3x"),
    ("x", "y"),
    ("2x+1", "2x-1"),
    (r"\frac{355}{113}", r"\pi"),
    ("1:2:3", "1:6:1"),
    ("1:2:3", "3:2:1"),
    ("12", "about a dozen and 12"),
    ("12", "12 or 13"),
    ("3", r"3 \approx 4"),
    ("3", r"4 \approx 3"),
    ("12", "not 12"),
    (r"\sqrt{x^2}", "x"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"\frac{\pi}{3}", "60"),
    (r"30^\circ", r"\frac{\pi}{3}"),
    ("triangle", "square"),
    ("5", "five hundred"),
    ("5", r"\text{none}"),
    ("5", "?"),
    ("5", "..."),
    ("5", r"5 \text{ or } 6"),
    ("2", r"\{2,3\}"),
    (r"\emptyset", "0"),
    ("3/2", "11/2"),
    (r"1\frac12", r"\frac{11}{2}"),
    ("AB", "AC"),
    ("(3,4)", "3"),
    ("2^{10}", "2^10+1"),
    ("x^2", "x^3"),
    (r"\sin x", r"\cos x"),
    ("60", "60%0"),
    ("45", "4 5"),
    ("0.1", "0.01"),
    ("1e3", "1e4"),
    (r"-\frac12", r"\frac12"),
    ("3 hours", "3 minutes"),
    ("A. 12", "B. 12"),
    ("no solution", "0"),
    ("1,000", "1"),
    ("a+b", "ab"),
    ("6", "x = 2, y = 3"),
    ("yes", "yes, no"),
    ("yes", "yes no"),
]
# What can make a parser or a computer algebra system run forever, exhaust memory, recurse or raise.
HOSTILE = {
    "tower": r"10^{10^{10}}",
    "power": "9**9**9**9",
    "nested powers": r"9^{9^{9^{9}}}",
    "factorials": r"((9!)!)!",
    "long factorial": "99999999999!",
    "nested braces": "{" * 100_000 + "1" + "}" * 100_000,
    "nested brackets": "(" * 900 + "1" + ")" * 900,
    "nested fractions": r"\frac{1}{" * 200 + "2" + "}" * 200,
    "megabytes": "1+" * 2_000_000,
    "digits": "9" * 1_900,
    "spaces": "1" + " " * 1_900 + "+",
    "slashes": "/" * 1_900,
    "carets": "^" * 1_900,
    "backslashes": "\\" * 1_901,
    "unbalanced": r"\frac{1}{\sqrt{2}",
    "commands": r"\left(\begin{matrix}\frac\sqrt\sum_",
    "NUL": "4\x002",
    "surrogates": "\ud8004\udfff",
    "line ends": "4\r\n2\u2028\x85",
    "right to left": "\u202e42",
    "exponent": "1e999999999",
    "small exponent": "1e-999",
    "integral": r"\int_0^1 x^{x^{x}} \sin(e^{x}) dx",
    "sum": r"\sum_{n=1}^{10000000000} \frac{1}{n^{n}}",
    "code": "__import__('os').system('false')",
    "ligature": "\ufdfa" * 1_900,
}


MATH = rewards._workers["math"]


def process():
    """The process that graded last, and will grade next."""
    return MATH._idle.queue[-1].process


def boxed(content, think="thoughts"):
    return f"<think>{think}</think> The answer is \\boxed{{{content}}}."


@pytest.fixture(scope="module", autouse=True)
def worker():
    """The processes are closed with the file."""
    yield
    MATH.close()
    rewards._verdict_once.cache_clear()


@pytest.mark.parametrize("answer, candidate", RIGHT)
def test_right_answers(answer, candidate):
    assert accuracy_reward(boxed(candidate), answer) == 1.0


@pytest.mark.parametrize("answer, candidate", WRONG)
def test_wrong_answers(answer, candidate):
    assert accuracy_reward(boxed(candidate), answer) == 0.0


@pytest.mark.parametrize("text", sorted({text for pair in RIGHT for text in pair}))
def test_every_answer_equals_itself(text):
    assert accuracy_reward(boxed(text), text) == 1.0


def test_without_a_box_there_is_no_answer():
    assert accuracy_reward("<think>x</think> 42", "42") == 0.0
    assert accuracy_reward("", "42") == 0.0
    assert accuracy_reward(boxed(""), "42") == 0.0
    assert accuracy_reward(boxed(""), "") == 0.0


def test_the_last_box_counts():
    assert accuracy_reward(r"\boxed{41} no, \boxed{42}", "42") == 1.0
    assert accuracy_reward(r"\boxed{42} no, \boxed{41}", "42") == 0.0


@pytest.mark.parametrize(
    "text, content",
    [
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed {3}", "3"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"a {b \boxed{4} c", "4"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{6} and \boxed{7", "6"),  # cut by the length limit
        (r"\boxed{8 \boxed{9}", "9"),
        (r"\\boxed{10}", "10"),
        (r"\\\boxed{11}", "11"),
        (r"} \boxed{12}", "12"),
        ("\\boxed{\n13\n}", "13"),
        (r"\boxed{}", ""),
        (r"\boxed14", None),
        (r"\boxed{15", None),
        ("boxed{16}", None),
        ("", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


def official_format(response):
    """The rule as its authors state it: white space around the three characters dropped, then one expression."""
    response = re.sub(r"\s*(<|>|/)\s*", r"\1", response)
    return float(re.fullmatch(r"<think>.*</think>.*\\boxed\{.*\}.*", response, re.DOTALL) is not None)


PIECES = [
    "<think>",
    "</think>",
    r"\boxed{",
    "}",
    "<",
    ">",
    "/",
    " ",
    "\n",
    "think",
    "x",
    r"\boxed {",
    "< think >",
    "< / think\t>",
]


@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.permutations(PIECES[:6]).map("".join))
@settings(max_examples=500, deadline=None)
def test_format_agrees_with_the_official_rule(response):
    assert format_reward(response) == official_format(response)
    assert format_reward("<think>" + response) == official_format("<think>" + response)


@pytest.mark.parametrize(
    "response, reward",
    [
        (r"<think>a</think>\boxed{1}", 1.0),
        (" \n< think > a < / think > so \\boxed{1}. ", 1.0),
        (r"<think></think>\boxed{}", 1.0),
        (r"a <think>b</think>\boxed{1}", 0.0),
        (r"<think>a \boxed{1}</think>", 0.0),
        (r"<think>a</think> 1", 0.0),
        (r"<think>a</think> \boxed{1", 0.0),
        (r"<think>a \boxed{1}", 0.0),
        (r"\boxed{1}", 0.0),
        ("", 0.0),
    ],
)
def test_format(response, reward):
    assert format_reward(response) == reward == official_format(response)


def test_combine_weighs_nine_to_one():
    assert (
        combine(1.0, 0.0) == 0.9 and combine(0.0, 1.0) == 0.1 and combine(1.0, 1.0) == 1.0 and combine(0.0, 0.0) == 0.0
    )
    assert combine(1.0, 0.0, format_weight=0.25) == 0.75


@pytest.mark.parametrize(
    "text", ["<" * 10**6, " " * 10**6, "< " * 10**6, "<think>" * 10**5, r"\boxed{" * 10**5, "\\" * 10**6, "{" * 10**6]
)
def test_reading_is_linear_in_hostile_text(text):
    # Milliseconds each; the quadratic ways to do it take minutes. 5 s leave room for a busy machine.
    start = time.process_time()
    format_reward("<think>" + text)
    format_reward("<think></think>" + text)
    last_boxed(text)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_wrong_and_never_hangs(name):
    # At most half a second of processor time, twice; 30 s leave room for a busy machine.
    start = time.monotonic()
    assert accuracy_reward(boxed(HOSTILE[name]), "7") == 0.0
    assert accuracy_reward(boxed("7"), HOSTILE[name]) == 0.0
    assert time.monotonic() - start < 30
    assert accuracy_reward(boxed(r"\log_2 {16}"), "4") == 1.0  # and the next one is graded as if nothing had been


def test_threads_share_one_worker():
    rewards._verdict_once.cache_clear()
    verdicts = {}

    def grade(i):
        verdicts[i] = [accuracy_reward(boxed(rf"\log_2 {{{2**n}}}"), str(n + i % 2)) for n in range(i, i + 8)]

    threads = [threading.Thread(target=grade, args=(i,)) for i in range(100, 108)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {i: [float(i % 2 == 0)] * 8 for i in range(100, 108)}


# Nothing in the text tells how long they take.
HEAVY = [r"\sqrt[7]{9999!+x}", r"\sqrt[7]{9998!+x}"]


def test_a_thread_survives_what_needs_the_worker_killed(caplog):
    rewards._verdict_once.cache_clear()
    MATH._losses = 0
    verdicts = []
    with caplog.at_level(logging.WARNING, logger=grading_worker.__name__):
        thread = threading.Thread(target=lambda: verdicts.append(accuracy_reward(boxed(HEAVY[0]), "3x")))
        thread.start()
        thread.join(30)
        assert accuracy_reward(boxed(HEAVY[1]), "2x") == 0.0
    assert verdicts == [0.0]
    assert MATH._losses == 2 and len(caplog.records) == 1  # said once


def test_the_worker_is_replaced_when_it_dies():
    assert accuracy_reward(boxed(r"\log_2 {32}"), "5") == 1.0
    dead = process()
    dead.send_signal(signal.SIGTERM)
    dead.wait()
    accuracy_reward(boxed(r"\log_2 {64}"), "6")  # this verdict is the one that is lost
    assert accuracy_reward(boxed(r"\log_2 {128}"), "7") == 1.0


def test_the_wall_clock_limit_holds_where_the_worker_has_none(monkeypatch):
    assert accuracy_reward(boxed(r"\log_2 {512}"), "9") == 1.0
    stopped = process()
    monkeypatch.setattr(grading_worker, "WALL_SECONDS", 0.3)
    stopped.send_signal(signal.SIGSTOP)  # uses no processor time, never answers
    assert accuracy_reward(boxed(r"\log_2 {1024}"), "10") == 0.0
    assert stopped.returncode is not None
    monkeypatch.undo()
    assert accuracy_reward(boxed(r"\log_2 {2048}"), "11") == 1.0


def test_a_late_reply_answers_no_other_request():
    assert accuracy_reward(boxed(r"\log_2 {4096}"), "12") == 1.0
    real = process()

    class Interrupted:
        def __getattr__(self, name):
            return getattr(real.stdout, name)

        def readline(self):
            raise KeyboardInterrupt

    class Process:
        stdout = Interrupted()

        def __getattr__(self, name):
            return getattr(real, name)

    MATH._idle.queue[-1].process = Process()
    with pytest.raises(KeyboardInterrupt):
        accuracy_reward(boxed(r"\log_2 {8192}"), "13")
    assert real.returncode is not None
    assert accuracy_reward(boxed(r"\log_2 {8193}"), "13") == 0.0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_its_own_worker():
    assert accuracy_reward(boxed(r"\log_2 {16384}"), "14") == 1.0
    parent = process().pid
    read, write = os.pipe()
    with MATH._idle.mutex:  # as if another thread were grading at this moment
        child = os.fork()
        if child == 0:
            verdict = accuracy_reward(boxed(r"\log_2 {32768}"), "15")
            os.write(write, f"{verdict} {process().pid != parent}".encode())
            MATH.close()
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "1.0 True"
    os.waitpid(child, 0)
    assert process().pid == parent
    assert accuracy_reward(boxed(r"\log_2 {65536}"), "16") == 1.0


def test_a_program_without_a_main_guard_ends_cleanly(tmp_path):
    script = tmp_path / "user.py"
    script.write_text(
        "print('main')\n"
        "from papo_hub.rewards import accuracy_reward, _workers\n"
        "print(accuracy_reward(r'\\boxed{\\log_2 {8}}', '3'), _workers['math']._idle.queue[-1].process.pid)\n"
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    main, verdict, *rest = result.stdout.split()
    assert (result.returncode, result.stderr, main, verdict, len(rest)) == (0, "", "main", "1.0", 1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(rest[0]), 0)  # no worker is left behind


def test_the_worker_imports_no_framework_and_nothing_else_of_papo_hub():
    *python, start, package, grader, seconds = grading_worker.command("math")
    start += (
        "\nloaded = {name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'papo_hub', 'numpy'}\n"
        "print(sorted(loaded), file=sys.stderr)"
    )
    command = [*python, start, package, grader, seconds]
    result = subprocess.run(command, input="", capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.stderr.splitlines()[-1]) == ("true\n", "[]")


@pytest.mark.parametrize("folder", [".", "grading"], ids=["current folder", "package"])
def test_files_beside_the_worker_do_not_shadow_libraries(monkeypatch, tmp_path, folder):
    package = shutil.copytree(Path(grading_worker.PACKAGE).parent, tmp_path / "grading")
    monkeypatch.setattr(grading_worker, "PACKAGE", str(package / "__init__.py"))
    (tmp_path / folder / "sympy.py").write_text("raise ImportError('the wrong one')\n")
    command = grading_worker.command("math")
    result = subprocess.run(command, cwd=tmp_path, input="", capture_output=True, text=True, timeout=120)
    assert result.stdout == "true\n"


def test_a_worker_that_cannot_start_is_an_error_and_no_zero(monkeypatch, tmp_path):
    (tmp_path / "worker.py").write_text("import no_such_library\n")
    monkeypatch.setattr(grading_worker, "PACKAGE", str(tmp_path / "__init__.py"))
    with pytest.raises(RuntimeError, match="did not start") as error:
        grading_worker.Worker("math").grade("1", r"\log_2 {2}")
    command = str(error.value).partition("see its error: ")[2]
    assert "no_such_library" in subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120).stderr


def test_equal_pairs_are_graded_once(monkeypatch):
    assert accuracy_reward(boxed(r"\log_2 {262144}"), "18") == 1.0
    monkeypatch.setattr(MATH, "grade", lambda *_: pytest.fail("graded again"))
    assert accuracy_reward(boxed(r"\log_2 {262144}", think="other thoughts"), "18") == 1.0


def test_what_text_can_decide_needs_no_worker(monkeypatch):
    monkeypatch.setattr(MATH, "grade", lambda *_: pytest.fail("needed the worker"))
    rewards._verdict_once.cache_clear()
    for answer, candidate in [
        ("A", "(B)"),
        ("42", "42.0"),
        ("1/2", r"\frac{1}{3}"),
        ("12 cm", "0.12 m"),
        (r"3\sqrt{2}", r"\frac{6}{\sqrt{2}}"),
        ("1,2", "2,1"),
        ("red", "blue"),
    ]:
        accuracy_reward(boxed(candidate), answer)


@given(st.text(alphabet=r"0123456789 +-*/^_=<>(){}[]\,.;:%$xAé√π°", max_size=30))
@settings(max_examples=300, deadline=None)
def test_the_text_rules_are_reflexive_and_raise_nothing(text):
    def equal(answer, candidate, factor, tolerance):
        return answer == candidate and factor == 1

    assert same(text, text, equal) == bool(normalise(text))
    same("12", text, equal)
    same(text, "(1, 2)", equal)


@pytest.mark.parametrize(
    "text, value",
    [
        ("42", Fraction(42)),
        ("-3.50", Fraction(-7, 2)),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        (r"2\frac{1}{4}", Fraction(9, 4)),
        (r"-1\frac{1}{2}", Fraction(-3, 2)),
        (r"\frac{-1}{2}", Fraction(-1, 2)),
        ("1.6e-3", Fraction(16, 10_000)),
        (r"3 \times 10^{8}", Fraction(300_000_000)),
        ("1/0", None),
        ("1 6", None),
        ("x", None),
        ("", None),
    ],
)
def test_numbers_are_exact(text, value):
    assert number(text) == value


def test_constants_agree_with_computer_algebra():
    texts = [
        r"\frac{3\sqrt{2}}{4}+2\pi", r"2\sqrt{3}(1+\sqrt{5})", r"-\frac{\pi}{3}", r"\sqrt{2+\sqrt{3}}", r"2^{10}",
        r"10^{-3}\cdot 7", r"3 \times 4/5", r"(1-\sqrt{2})^3", r"\frac{1}{1+\frac{1}{\sqrt{7}}}", r"\sqrt{\frac{2}{3}}",
        r"1-2-3+5", r"12/3/2", r"-2^2",
    ]  # fmt: skip
    for text in texts:
        value = constant(text)
        decimal = f"{float(value):.12f}"
        assert mathematics(text, decimal, Fraction(1), Fraction(0)), (text, decimal)
        assert not mathematics(text, f"{float(value) + 1e-4:.12f}", Fraction(1), Fraction(0))


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "1/2\\pi",
        "2\\frac{1}{3}",
        "2^{0.5}",
        "9^{99999}",
        "\\sqrt{-1}",
        "1/0",
        "(1",
        "1)",
        "2 3",
        "",
        "\\frac12",
        "\\sqrt{2}-\\sqrt{2}",
    ],
)
def test_what_is_no_plain_constant_is_left_to_computer_algebra(text):
    assert constant(text) is None


def test_huge_and_tiny_numbers_are_numbers():
    assert accuracy_reward(boxed("1e999"), "7.5") == 0.0 and accuracy_reward(boxed("1e-999"), "7.5") == 0.0
    assert accuracy_reward(boxed("10e998"), "1.0e999") == 1.0
