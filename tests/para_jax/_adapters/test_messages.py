"""Test error messages with arguments and remedies: a string, and its parts."""

import copy
import json
import pickle
import warnings

import pytest

from para_jax._adapters.messages import (
    ALPHA_OR_SCALE,
    Argument,
    Message,
    Remedy,
    on_one_line,
    parts_of,
)

LONG = Message("'runs/alpha=16' exists: leave out ", Argument("alpha", 16), ".")
PARTS = ("'runs/alpha=16' exists: leave out ", Argument("alpha", 16), ".")


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def test_a_message_is_the_sentence_of_its_parts():
    assert LONG == "'runs/alpha=16' exists: leave out alpha=16."
    assert LONG.parts == PARTS
    assert f"{LONG}" == str(LONG) == json.loads(json.dumps(LONG))
    assert repr(LONG) == repr(str(LONG))


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (Argument("alpha"), "alpha="),
        (Argument("max_rank", 8), "max_rank=8"),
        (Argument("adapters_only", True), "adapters_only=True"),
        (Argument("stack_axis", 0), "stack_axis=0"),
        (Remedy.OVERWRITE, "pass overwrite=True"),
        (ALPHA_OR_SCALE, "alpha= or scale="),
    ],
)
def test_a_part_reads_as_python_writes_it(part, text):
    assert Message("Give ", part, ".") == f"Give {text}."


@pytest.mark.parametrize("kind", [ValueError, TypeError, OSError, FileExistsError])
def test_an_exception_reads_as_its_sentence_and_keeps_the_parts(kind):
    error = kind(LONG)

    assert str(error) == str(LONG)
    assert parts_of(error) == PARTS
    assert parts_of(pickled(error)) == PARTS


def test_an_error_that_is_quoted_keeps_its_parts():
    outer = Message("Cannot read it: ", ValueError(LONG), " Sorry.")

    assert outer == f"Cannot read it: {LONG} Sorry."
    assert outer.parts == (f"Cannot read it: {PARTS[0]}", PARTS[1], ". Sorry.")


def test_an_error_of_others_is_text_alone():
    assert parts_of(ValueError("alpha=16", 3)) == ("('alpha=16', 3)",)
    assert parts_of(OSError(28, "No space")) == ("[Errno 28] No space",)


def test_a_warning_keeps_the_parts():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warnings.warn(LONG, stacklevel=1)

    assert parts_of(found[0].message) == PARTS


@pytest.mark.parametrize(
    "other", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_has_the_same_parts(other):
    assert (other(LONG), other(LONG).parts) == (LONG, PARTS)


@pytest.mark.parametrize(
    "text", ["", " ", "a", " a\n  b\t", "\n'x': a [1]\n  b\n", "a\x1cb\u2003c"]
)
def test_white_space_is_a_single_space(text):
    wanted = " ".join(text.split())

    assert on_one_line(ValueError(text)) == wanted
    around = on_one_line(Message(text, Argument("alpha"), text))
    assert around == " ".join(f"{text}alpha={text}".split())
    assert Argument("alpha") in around.parts
