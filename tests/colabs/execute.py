"""Execute the notebooks of `colabs/` from top to bottom and print how long each took.

    python -m tests.colabs.execute
    python -m tests.colabs.execute 02 --pictures /tmp/pictures
    python -m tests.colabs.execute --out build/notebooks

Each runs by itself, in a new empty folder, with this checkout's packages. Outputs are
not written back: notebooks are committed without them. `--out` keeps the executed
notebooks for the documentation, and `--pictures` the pictures alone.
"""

import argparse
import asyncio
import base64
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))

LIMIT = 600
"""Seconds: the longest that a notebook may take, on a machine that does other work too.

Alone, on two cores, each is to take less than 180.
"""


def read(path: pathlib.Path) -> nbformat.NotebookNode:
    """Return a notebook as committed to git."""
    return nbformat.read(path, as_version=4)


def executed(
    notebook: nbformat.NotebookNode, folder: pathlib.Path, *, limit: float = LIMIT
) -> nbformat.NotebookNode:
    """Run the notebook in a process of its own and return it with its outputs.

    Args:
      notebook: The notebook to run. Its outputs are filled in in place.
      folder: The working directory, as Jupyter would use the notebook's own folder.
      limit: The time limit for all cells together, in seconds.

    Raises:
      nbclient.exceptions.CellExecutionError: if a cell raises.
      TimeoutError: if it takes longer than `limit`.
    """
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
    )
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(x for x in paths if x),
        "IPYTHONDIR": str(folder / ".ipython"),  # No settings of the user's.
    }
    run = client.async_execute(cwd=str(folder), env=environment)
    return asyncio.run(asyncio.wait_for(run, limit))


def pictures(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, bytes]]:
    """Yield the cell name and the PNG of each picture shown in a run."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if image := output.get("data", {}).get("image/png"):
                yield cell["id"], base64.b64decode(image)


def main() -> None:
    parser = argparse.ArgumentParser(description="Executes the notebooks of colabs/.")
    parser.add_argument(
        "names", nargs="*", help="how their names begin; all by default"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="FOLDER", help="keep what ran"
    )
    parser.add_argument("--pictures", type=pathlib.Path, metavar="FOLDER")
    given = parser.parse_args()
    for path in NOTEBOOKS:
        if given.names and not path.stem.startswith(tuple(given.names)):
            continue
        print(f"{path.stem:32}", end=" ", flush=True)
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            shown = executed(read(path), pathlib.Path(folder))
        print(f"{time.monotonic() - start:6.1f} s", flush=True)
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            nbformat.write(shown, given.out / path.name)
        if given.pictures:
            given.pictures.mkdir(parents=True, exist_ok=True)
            for name, image in pictures(shown):
                (given.pictures / f"{path.stem}-{name}.png").write_bytes(image)


if __name__ == "__main__":
    main()
