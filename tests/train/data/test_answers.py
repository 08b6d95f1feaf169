import fractions
import os
import signal
import subprocess
import sys

import pytest

from train.data import answers

# What MATH wants, what a model may write, whether that is right.
PAIRS = [
    # Fractions and decimals.
    (r"\frac{1}{2}", r"\frac12", True),
    (r"\frac{1}{2}", "1/2", True),
    (r"\frac{1}{2}", ".5", True),
    (r"\frac{1}{2}", r"\tfrac{2}{4}", True),
    (r"-\frac{1}{2}", r"\frac{1}{-2}", True),
    (r"\frac{1}{2}", r"\frac{1}{3}", False),
    (r"\frac{1}{2}", "2", False),
    (r"\frac{14}{3}", "4.666666666666667", True),
    (r"\frac{14}{3}", "4.6667", False),
    (r"2\frac{1}{3}", r"\frac{7}{3}", True),
    (r"2\frac{1}{3}", r"\frac{2}{3}", False),
    (r"1\frac{4}{5}", "1.8", True),
    ("7", "7.", True),
    ("7", "07", True),
    ("-5", "5", False),
    # Units, degrees, percent, currencies.
    (r"90^\circ", "90", True),
    (r"90^\circ", r"90^{\circ}", True),
    (r"90^\circ", r"90\text{ degrees}", True),
    (r"90^\circ", r"45^\circ", False),
    (r"10\%", "10", True),
    (r"10\%", "10%", True),
    (r"10\%", "11", False),
    (r"\$18.90", "18.9", True),
    ("5", "$5$", True),
    (r"5 \text{ cm}", "5", True),
    (r"864 \mbox{ inches}^2", "864", True),
    (r"5 \text{ miles per hour}", "5", True),
    (r"5 \text{ cm}", "6", False),
    (r"\frac{3}{4} \text{ cup}", "0.75", True),
    ("50\\ ", "50", True),
    # Separators.
    ("10,000", "10000", True),
    ("10{,}000", "10,000", True),
    (r"10,\!000", "10000", True),
    ("10,000", "1000", False),
    # Words and choices.
    (r"\text{Evelyn}", "Evelyn", True),
    (r"\text{Evelyn}", r"\text{Briana}", False),
    (r"\text{(B)}", "B", True),
    (r"\text{B}", r"\text{C}", False),
    (r"\text{east}", "west", False),
    ("6:00 PM", "6:00 PM", True),
    # Roots, constants, functions.
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"\sqrt{3}", r"\sqrt3", True),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
    (r"\sqrt{2}", "1.41", False),
    (r"\frac{\pi}{4}", r"\pi/4", True),
    (r"2\pi", "6.28", False),
    (r"\log_2 8", "3", True),
    (r"\binom{5}{2}", "10", True),
    ("5!", "120", True),
    (r"2.5\times 10^3", "2500", True),
    # Expressions and equations.
    ("x^2+2x+1", "(x+1)^2", True),
    ("x^2+2x+1", "(x-1)^2", False),
    ("3x+5", "5+3x", True),
    ("p - q", "q-p", False),
    (r"\frac{x+1}{x^2-1}", r"\frac{1}{x-1}", True),
    ("y = 2x + 3", "2x+3", True),
    ("x=5", "5", True),
    ("5", "x = 5", True),
    ("x=5", "x=6", False),
    ("3 + 4i", "4i+3", True),
    ("3+4i", "3-4i", False),
    # Points, intervals, sets, matrices.
    ("(1,2)", r"\left(1, 2\right)", True),
    ("(1,2)", "(2,1)", False),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)", True),
    ("[1,2]", "(1,2)", False),
    ("[0,1)", "[0,1]", False),
    (r"(-\infty, 2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)", True),
    (r"x \in [-2,7]", "[-2,7]", True),
    ("[-2,7]", r"-2 \le x \le 7", True),
    (r"(-\infty,5]", r"(-\infty, 5)", False),
    ("1,2,3", "3, 2, 1", True),
    ("1,2,3", "1,2,4", False),
    ("1,2", r"\{1,2\}", True),
    (r"1 \pm \sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}", True),
    (
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        r"\begin{bmatrix}1\\2\end{bmatrix}",
        True,
    ),
    (
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        r"\begin{pmatrix}2\\1\end{pmatrix}",
        False,
    ),
    (
        r"\begin{pmatrix} -1/3 \end{pmatrix}",
        r"\begin{pmatrix}-\frac{1}{3}\end{pmatrix}",
        True,
    ),
    # Other bases.
    ("1011_2", "1011_{2}", True),
    ("1011_2", "1011", True),
    ("1011_2", "1010_2", False),
    ("1011_2", "1011_3", False),
    # No answers.
    ("6", "", False),
    ("6", r"\frac{", False),
    ("6", "six", False),
    ("6", "\\", False),
    ("6", "\x00", False),
]


@pytest.fixture(scope="module")
def grader():
    with answers.Grader(seconds=30) as result:
        yield result


@pytest.mark.parametrize(("want", "got", "right"), PAIRS)
def test_answers_are_compared_as_mathematics(grader, want, got, right):
    assert grader.same(want, got) is right
    assert grader.same(want, want)


def test_no_answer_is_not_right(grader):
    assert not grader.same("6", None)


def test_equal_texts_need_no_process():
    with answers.Grader() as grader:
        assert grader.same(r"\text{Evelyn}", " $\\text{Evelyn}$. ")
        assert grader.same("1" * 5000, "1" * 5000)
        assert not grader.same("6", "1" * 5000)
        assert grader._process is None


@pytest.mark.parametrize(
    "hostile",
    [
        "9^{9^{9^9}}",
        r"\prod_{n=1}^{10^9} n",
        "x^{" * 40 + "2" + "}" * 40,
        "(" * 70 + "x" + ")" * 70,
    ],
)
def test_what_would_never_end_is_stopped_and_the_next_is_graded(hostile):
    with answers.Grader(seconds=0.5) as grader:
        assert grader._start().poll() is None
        first = grader._process

        assert not grader.same("1", hostile)

        assert first.poll() == -signal.SIGKILL
        grader._seconds = 30
        assert grader.same("1", "2/2")


@pytest.mark.parametrize("hostile", ["{" * 90 + "}" * 90, "2^" * 200, "1," * 400])
def test_what_is_deep_or_long_is_only_wrong(grader, hostile):
    assert not grader.same("1", hostile)
    assert grader.same("1", "2/2")


@pytest.mark.parametrize("form", ["{}", r"\text{{{}}}", "1 + {}"])
def test_nothing_is_run_as_code(grader, tmp_path, form):
    file = tmp_path / "made"
    code = f"__import__('pathlib').Path('{file}').touch()"
    assert not grader.same("1", form.format(code))
    assert not file.exists()


def test_a_process_that_was_killed_is_replaced():
    with answers.Grader(seconds=30) as grader:
        assert grader.same("1", "2/2")
        os.kill(grader._process.pid, signal.SIGKILL)
        grader._process.wait()
        assert not grader.same("1", "3/3")  # There was nobody to ask.
        assert grader.same("1", "4/4")
        last = grader._process
    assert last.poll() is not None


def test_a_worker_that_does_not_start_is_reported(monkeypatch, tmp_path):
    worker = tmp_path / "symbolic.py"
    worker.write_text("raise ModuleNotFoundError")
    monkeypatch.setattr(answers, "_WORKER", worker)
    with (
        answers.Grader() as grader,
        pytest.raises(RuntimeError, match=r"symbolic\.py' did not start"),
    ):
        grader.same("1", "2/2")


def test_the_worker_has_a_limit_of_memory():
    code = (
        "import resource, runpy, sys; sys.stdin = open('/dev/null');"
        f"runpy.run_path({str(answers._WORKER)!r}, run_name='__main__');"
        "sys.exit(resource.getrlimit(resource.RLIMIT_AS)[0] != 4 << 30)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout == b'"ready"\n'


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (r"so $\boxed{5}$", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"$\boxed{1}$ and then $\boxed{\sqrt{\frac{a}{b}}}$.", r"\sqrt{\frac{a}{b}}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"\boxed {7}", "7"),
        (r"\boxed 7.", "7"),
        (r"$\boxed 7$", "7"),
        (r"\fbox{x}", "x"),
        ("\\boxed{\n3\n}", "3"),
        (r"\boxed{", None),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed{}", None),
        (r"\boxed", None),
        ("5", None),
        ("", None),
    ],
)
def test_the_last_box_is_taken_with_its_braces(text, want):
    assert answers.boxed(text) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("2 + 3 = 5\n#### 5\nThe answer is: 5", "5"),
        ("The answer is: 1\nNo.\nThe answer is: 2\nThat is all.", "2"),
        ("#### 1,218", "1,218"),
        ("#### 3\n#### 4", "4"),
        ("#### 3\nThe answer is: 4", "4"),
        (r"The answer is: $\frac{1}{2}$.", r"$\frac{1}{2}$"),
        (r"The answer is: \boxed{8}. I hope it is correct.", "8"),
        (r"\boxed{3}, and the answer is: unknown", "3"),
        (r"thus \boxed{9}", "9"),
        ("The answer is: ", None),
        ("The answer is 5", None),
        ("", None),
    ],
)
def test_the_final_answer_is_behind_the_marker_or_in_the_box(text, want):
    assert answers.final(text) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("18", 18),
        ("18.", 18),
        ("18.00", 18),
        ("$18", 18),
        (r"\$1,234.50", fractions.Fraction(2469, 2)),
        ("-7", -7),
        ("−7", -7),
        ("-$7", -7),
        ("+7", 7),
        ("1,234,567", 1234567),
        (r"10{,}000", 10000),
        (r"10,\!000", 10000),
        ("3,4", 3),
        ("12,3456", 12),
        ("3/4", fractions.Fraction(3, 4)),
        ("-3 / 4", fractions.Fraction(-3, 4)),
        ("1/0", None),
        (".5", fractions.Fraction(1, 2)),
        ("10%", 10),
        ("18 dollars and 5 cents", 18),
        ("1" * 9999, None),
        ("no number", None),
        ("", None),
    ],
)
def test_the_first_number_is_read_exactly(text, want):
    assert answers.number(text) == want


@pytest.mark.parametrize(
    ("want", "got", "right"),
    [
        ("18", "18.0", True),
        ("1,218", "$1218", True),
        ("18", "18.5", False),
        ("18", "17.999999999999999999", False),
        ("18", "-18", False),
        ("18", "eighteen", False),
        ("18", None, False),
        ("0", "0", True),
        ("10000000000000000000001", "10000000000000000000000", False),
    ],
)
def test_numbers_are_equal_or_not(want, got, right):
    assert answers.same_number(want, got) is right
