"""Test the look-up of PEFT's patterns against the regular expressions that it states.

Source: PEFT 0.21.2, `utils/other.py`, `get_pattern_key`.
"""

import re

import pytest
from hypothesis import given, strategies as st

from para_jax.formats.peft.patterns import Patterns, is_plain

# Few letters, so that names are often ends of one another.
NAMES = st.text("ab.", max_size=6)
KEYS = st.one_of(
    NAMES,
    st.text("ab._1", max_size=4),
    NAMES.map(lambda x: "^" + re.escape(x)),
    NAMES.map(lambda x: "^" + x),
    st.sampled_from(["a.*b", ".*", "(a|b)", "a+", r"a\.b", "^a.b", "[ab]$", r"^\a"]),
)


def matches(key, module):
    return re.match(rf"(.*\.)?({key})$", module) is not None


@given(st.lists(KEYS, unique=True, max_size=6), st.lists(NAMES, min_size=1))
def test_the_first_and_all_are_those_of_the_regular_expression(keys, modules):
    keys = [key for key in keys if is_plain(key) or re.compile(key)]
    found = Patterns(tuple(keys))

    for module in modules:
        want = [key for key in keys if matches(key, module)]
        assert found.all(module) == set(want)
        assert found.first(module) == (want[0] if want else None)


@pytest.mark.parametrize(
    ("key", "is_one"),
    [
        ("model.layers.0.self_attn.q_proj", True),
        (r"^model\.layers\.0\.q_proj", True),
        (r"^lora\-te", True),
        ("^model.layers", False),
        (r"^model\.layers\.\d+", False),
        ("q_proj|v_proj", False),
        ("^", True),
        ("", True),
    ],
)
def test_names_are_told_from_expressions(key, is_one):
    assert is_plain(key) == is_one


def test_a_dot_of_a_key_stands_for_any_character():
    found = Patterns(("q.proj", r"^a\.b"))

    assert found.first("layer.q_proj") == "q.proj"
    assert found.first("a.b") == r"^a\.b"
    assert found.first("a_b") is None
    assert found.first("x.a.b") is None


def test_names_are_looked_up_not_compiled(monkeypatch):
    names = [f"model.layers.{i}.mlp.{x}_proj" for i in range(100) for x in "uvw"]
    anchored = [f"^{re.escape(x)}" for x in names]
    monkeypatch.setattr(re, "compile", None)

    for keys in (names, anchored):
        found = Patterns(tuple(keys))
        assert [found.first(x) for x in names] == keys
