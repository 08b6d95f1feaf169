"""Test that the command line rewords every sentence of the library."""

import argparse
import ast
import pathlib
import re

import pytest

import para_jax as para
from para_jax._adapters.messages import Argument, Message, Remedy
from para_jax.cli import errors, parser

LIBRARY = pathlib.Path(para.__file__).parent
OURS = ("_adapters/messages.py",)  # Where the remedies' words are.
KEYWORDS = (
    *("layout", "alpha", "scale", "stack_axis", "adapters_only"),
    *("ecosystem", "head_dim", "layers", "min_rank", "max_rank", "dtype"),
)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Argument("alpha"), "--alpha"),
        (Argument("alpha", 16), "--alpha 16"),
        (Argument("scale", -1.5), "--scale -1.5"),
        (Argument("stack_axis", 0), "--stack-axis 0"),
        (Argument("adapters_only", True), "--adapters-only"),
        (Argument("ecosystem", "'flax'"), "--ecosystem 'flax'"),
        *((x, errors._REMEDIES[x]) for x in Remedy),
    ],
)
def test_an_argument_is_a_flag_and_a_remedy_has_words_of_its_own(part, words):
    assert errors.spoken(Message("Say ", part, ".")) == f"Say {words}."
    assert errors.sentence(ValueError(Message("Say ", part, "."))) == f"Say {words}."


@pytest.mark.parametrize(
    "text", ["'runs/alpha=16' is odd", "dtype=float32 of others", "overwrite it"]
)
def test_text_is_not_reworded(text):
    assert errors.spoken(Message(text, Argument("alpha"))) == f"{text}--alpha"
    assert errors.sentence(ValueError(text)) == text


def test_a_failure_that_is_no_mistake_names_its_kind():
    error = TypeError(Message("\n no ", Argument("alpha"), "\n"))

    assert errors.sentence(error) == "TypeError: no --alpha (--debug shows where)"


def sources():
    """Return the syntax trees of the library, without those of the command line."""
    for path in sorted(LIBRARY.rglob("*.py")):
        name = path.relative_to(LIBRARY).as_posix()
        if not name.startswith("cli/") and name not in OURS:
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def strings(tree):
    """Yield the strings of a module other than docstrings."""
    alone = {id(x.value) for x in ast.walk(tree) if isinstance(x, ast.Expr)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in alone:
            yield node


def test_no_sentence_names_an_argument_in_its_text():
    pattern = re.compile(
        rf"\b({'|'.join(KEYWORDS)})=|{'|'.join(str(x) for x in Remedy)}"
    )
    found = [
        f"{name}:{node.lineno}: {node.value}"
        for name, tree in sources()
        for node in strings(tree)
        if pattern.search(node.value)
    ]
    assert not found, "Build these with `Message` and `Argument`, or a `Remedy`."


def test_no_sentence_names_an_argument_by_a_variable():
    """Search for `f"{name}={value}"`, as `name` may be a flag's."""
    found = [
        f"{name}:{after.lineno}"
        for name, tree in sources()
        for raised in ast.walk(tree)
        if isinstance(raised, ast.Raise)
        for node in ast.walk(raised)
        if isinstance(node, ast.JoinedStr)
        for before, after in zip(node.values, node.values[1:], strict=False)
        if isinstance(before, ast.FormattedValue) and isinstance(after, ast.Constant)
        if re.match(r"=(?!=)", after.value)
    ]
    assert not found, "Build these with `Message` and `Argument`."


def test_an_error_of_ours_is_quoted_with_its_parts():
    """An f-string of the error would keep only its text."""
    found = [
        f"{name}:{node.lineno}"
        for name, tree in sources()
        for handler in ast.walk(tree)
        if isinstance(handler, ast.ExceptHandler)
        if isinstance(handler.type, ast.Name) and handler.type.id == "ValueError"
        for node in ast.walk(handler)
        if isinstance(node, ast.FormattedValue)
        if isinstance(node.value, ast.Name) and node.value.id == handler.name
    ]
    assert not found, "Give the error to `Message` as a part."


def test_every_argument_that_a_sentence_names_is_a_flag():
    flags = {
        option
        for action in parser.parser()._actions
        if isinstance(action, argparse._SubParsersAction)
        for command in action.choices.values()
        for option in command._option_string_actions
    }
    named = {
        node.args[0].value
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id == "Argument" and isinstance(node.args[0], ast.Constant)
    }
    assert named
    assert {errors.spoken(Message(Argument(x))) for x in named} <= flags
