"""Write the tables of engines: `python -m tests.engines`, see `table.py`."""

import sys

from tests.engines import table

if __name__ == "__main__":
    sys.exit(table.main())
