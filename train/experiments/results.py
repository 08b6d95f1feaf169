"""The folder of results; each file is read on first use."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from train.experiments import choice, measured, store
from train.experiments.measured import Measured
from train.experiments.missing import Missing
from train.experiments.rows import Cost, Row, Spectrum

FOLDER = pathlib.Path(__file__).parent.parent / "results"
"""The folder of the committed results."""

_GRID = "python -m train grid && python -m train collect"
MADE_BY = {
    "trained": _GRID,
    "children": _GRID,
    "retuned": _GRID,
    "spectra": _GRID,
    "cost": "python -m train cost",
}
"""The command for each file, on the sentiment tasks."""

PARENT = ("lora", "rank 16")
"""The method and the policy of the parents of all children."""

_KINDS: dict[str, Any] = {"spectra": Spectrum, "cost": Cost}  # All others: `Row`.


class Files:
    """The results in one folder: the files of `MADE_BY`, with the suffix `.json`."""

    def __init__(self, folder: pathlib.Path = FOLDER) -> None:
        self.folder = folder
        # Read once: tables share the files.
        self._files: dict[str, store.Results[Any]] = {}
        self._rows: dict[str, Sequence[Row]] = {}

    def file(self, name: str) -> store.Results[Any]:
        """Return all rows of a file: every learning rate in the search.

        Raises:
          Missing: if it is not there; the message names the command to make it.
          ValueError: if it is corrupt, or not of this form.
        """
        if name not in self._files:
            path = self._path(name)
            if not path.is_file():
                raise Missing(
                    f"{path} is missing: {self.remedy(name)}", what=f"no {path.name}"
                )
            self._files[name] = store.read(path, _KINDS.get(name, Row))
        return self._files[name]

    def rows(self, name: str) -> Sequence[Row]:
        """Return the rows of the learning rates chosen by validation.

        Args:
          name: `trained`, `children` or `retuned`.

        Raises:
          Missing: as `file`.
          ValueError: as `file`, and if no rate can be chosen.
        """
        if name not in self._rows:
            self._rows[name] = choice.chosen(self.file(name).rows)
        return self._rows[name]

    def measure(self, name: str, method: str, policy: str) -> Measured:
        """Return the measurements of one method under one policy.

        Args:
          name: `trained`, `children` or `retuned`.
          method: The rows' method.
          policy: The rows' policy.

        Raises:
          Missing: as `file`, and if it was not measured, or not on all tasks.
          ValueError: as `rows`.
        """
        path, rows = self._path(name), self.rows(name)
        try:
            return measured.measure(rows, method, policy)
        except Missing as error:
            raise Missing(
                f"{path}: {error} What is missing: {self.remedy(name)}",
                what=f"{error.what} in {path.name}",
            ) from None

    def remedy(self, name: str) -> str:
        """Return the remedy for a missing file or row, as the end of a sentence.

        The remedy is the command for the file, or for others of its folder.
        """
        there = [x for x in (name, *MADE_BY) if self._path(x).is_file()]
        if not there:
            return f"`{MADE_BY[name]}` makes it."
        verb = "cost" if name == "cost" else "grid"
        # The file's own command, with its options.
        made = re.sub("train (grid|cost)", f"train {verb}", self.file(there[0]).command)
        return f"`{made}` and then `collect` make it, if that comparison has it."

    def parent(self) -> Measured:
        """Return the measurements of the parents."""
        return self.measure("trained", *PARENT)

    def has(self, name: str, method: str, policy: str) -> bool:
        """Test whether a file has rows of this method and policy."""
        return measured.has(self.rows(name), method, policy)

    def partial(self, name: str, method: str, policy: str) -> dict[str, float]:
        """Return the accuracies by task, for a method without results on all tasks."""
        return measured.partial(self.rows(name), method, policy)

    def _path(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.json"
