"""The folder of results, each file read when it is first asked for."""

import pathlib
from collections.abc import Sequence
from typing import Any

from train.experiments import choice, measured, store
from train.experiments.measured import Measured
from train.experiments.rows import Cost, Row, Spectrum

FOLDER = pathlib.Path(__file__).parent.parent / "results"
"""Where the committed results are."""

_GRID = "python -m train grid && python -m train collect"
MADE_BY = {
    "trained": _GRID,
    "children": _GRID,
    "retuned": _GRID,
    "spectra": _GRID,
    "cost": "python -m train cost",
}
"""Each file, and the command that makes it."""

PARENT = ("lora", "rank 16")
"""The method and the policy of the parents of all children."""

_KINDS: dict[str, Any] = {"spectra": Spectrum, "cost": Cost}  # All others: `Row`.


class Files:
    """The results in one folder: the files of `MADE_BY`, with the suffix `.json`."""

    def __init__(self, folder: pathlib.Path = FOLDER) -> None:
        self.folder = folder
        self._files: dict[str, store.Results[Any]] = {}
        self._rows: dict[str, Sequence[Row]] = {}

    def file(self, name: str) -> store.Results[Any]:
        """Returns all that a file holds: every learning rate that was tried.

        Raises:
          FileNotFoundError: if it is missing; the message names what makes it.
          ValueError: if it is corrupt, or not of this form.
        """
        if name not in self._files:
            path = self._path(name)
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is missing: `{MADE_BY[name]}` makes it."
                )
            self._files[name] = store.read(path, _KINDS.get(name, Row))
        return self._files[name]

    def rows(self, name: str) -> Sequence[Row]:
        """Returns the rows of the learning rates that the validation part chose.

        Args:
          name: `trained`, `children` or `retuned`.

        Raises:
          FileNotFoundError: as `file`.
          ValueError: as `file`, and if no rate can be chosen.
        """
        if name not in self._rows:
            self._rows[name] = choice.chosen(self.file(name).rows)
        return self._rows[name]

    def measure(self, name: str, method: str, policy: str) -> Measured:
        """Returns what a file says of one method under one policy.

        Args:
          name: `trained`, `children` or `retuned`.
          method: The rows' method.
          policy: The rows' policy.

        Raises:
          FileNotFoundError: as `file`.
          ValueError: as `rows`, and if it was not measured, or not on all tasks.
        """
        try:
            return measured.measure(self.rows(name), method, policy)
        except ValueError as error:
            raise ValueError(
                f"{self._path(name)}: {error} `{MADE_BY[name]}` makes what is missing."
            ) from None

    def parent(self) -> Measured:
        """Returns what was measured of the parents."""
        return self.measure("trained", *PARENT)

    def has(self, name: str, method: str, policy: str) -> bool:
        """Returns whether a file has any rows of this method and policy."""
        return measured.has(self.rows(name), method, policy)

    def partial(self, name: str, method: str, policy: str) -> dict[str, float]:
        """Returns the accuracies by task, of what was not measured on all tasks."""
        return measured.partial(self.rows(name), method, policy)

    def _path(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.json"
