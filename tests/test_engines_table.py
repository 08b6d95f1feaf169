"""Test that the engine tables in the documents match the code."""

import re

import pytest

from tests import engines_table


@pytest.mark.parametrize("file", engines_table.FILES, ids=lambda x: x.name)
def test_the_tables_of_engines_are_as_the_code_has_them(file):
    text = file.read_text()

    assert engines_table.filled(text) == text, "run python -m tests.engines_table"


def test_every_table_is_in_a_document():
    found = {
        name
        for file in engines_table.FILES
        for name in re.findall(r"<!-- engines: (\w+) -->", file.read_text())
    }

    assert found == set(engines_table.TABLES)
