"""What the tests of fleets share."""

import contextlib

import pytest


@pytest.fixture
def interrupted(monkeypatch):
    """Return a block that interrupts a fleet while it notes its third tenant."""
    from para_jax._fleet.manifest import Manifest

    append = Manifest.append

    def interrupted(self, row):
        append(self, row)
        if len(self.rows) == 3:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def block():
        with monkeypatch.context() as patch:
            patch.setattr(Manifest, "append", interrupted)
            yield

    return block
