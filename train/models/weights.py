"""Verification of a file of weights by its hash. Runs on the host."""

import hashlib
import pathlib


def check(file: pathlib.Path, sha256: str, *, remedy: str) -> None:
    """Check the existence and the hash of a file.

    Args:
      file: The weights.
      sha256: The hash of the right ones.
      remedy: How to get them, a sentence.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it has another hash.
    """
    if (got := found(file, remedy=remedy)) != sha256:
        raise ValueError(
            f"{file} has the sha256 {got}, expected {sha256}. It is another model, or "
            f"damaged. {remedy}"
        )


def found(file: pathlib.Path, *, remedy: str) -> str:
    """Return the hash of a file of weights.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"The model's weights are not at '{file}'. {remedy}")
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
