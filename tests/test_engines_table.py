"""Test that the engine tables in the documents match the code."""

import re

import pytest

from tests.engines import table


@pytest.mark.parametrize("file", table.FILES, ids=lambda x: x.name)
def test_the_tables_of_engines_are_as_the_code_has_them(file):
    text = file.read_text()

    assert table.filled(text) == text, "run python -m tests.engines"


def test_every_table_is_in_a_document():
    found = {
        name
        for file in table.FILES
        for name in re.findall(r"<!-- engines: (\w+) -->", file.read_text())
    }

    assert found == set(table.TABLES)
