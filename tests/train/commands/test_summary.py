import io

import rich.console

from train.commands import summary


def test_the_table_fits_80_columns_and_says_the_change():
    parent = summary.Row(
        name="parent",
        average_rank=16.0,
        max_rank=16,
        parameters=589824,
        size=2_370_000,
        energy=1.0,
        accuracy=0.8161,
    )
    child = summary.Row(
        name="gamma 0.0625",
        average_rank=1.0,
        max_rank=7,
        parameters=41856,
        size=172_000,
        energy=0.7521,
        accuracy=0.7977,
    )
    console = rich.console.Console(file=io.StringIO(), width=80)

    console.print(summary.table([parent, child], title="all"))

    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = [line.split() for line in lines if "0.0625" in line]
    want = "gamma 0.0625 1.00 7 41,856 172 kB 75.2% 79.77% -1.84"
    assert " ".join(row) == want
