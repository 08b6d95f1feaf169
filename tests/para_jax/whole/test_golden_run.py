"""Test that each call of the golden run still matches its record.

Results match bit for bit on the machine that recorded them, and elsewhere in everything
independent of the machine. `golden.py` gives the command to record anew.
"""

import json

import pytest

from tests.para_jax.whole import describe, golden

pytestmark = pytest.mark.user_defaults


@pytest.fixture(scope="module")
def recorded():
    return golden.read()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return golden.make(tmp_path_factory.mktemp("golden"))


def test_every_call_is_recorded_and_no_other(recorded):
    assert list(recorded["calls"]) == list(golden.CALLS)


@pytest.mark.parametrize("name", golden.CALLS)
def test_a_call_does_what_it_did(name, recorded, root):
    found = json.loads(json.dumps(golden.record(name, root)))

    exact = recorded["machine"] == golden.machine()
    lines = describe.differences(recorded["calls"][name], found, exact=exact)
    assert not lines, "\n".join(lines)
