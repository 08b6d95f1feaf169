"""The names that an argument of several functions may be.

Apart from the code behind them, so that the command line knows them without JAX.
"""

import typing
from typing import Literal

Format = Literal["peft", "orbax", "kohya", "mlx", "keras"]
Profile = Literal["ragged", "padded", "uniform-by-type", "per-tensor-alpha"]
PROFILES: tuple[Profile, ...] = typing.get_args(Profile)
StackAxis = Literal[0, 1, "none"]
ScoreName = Literal["sigma", "relative"]
SCORES: tuple[ScoreName, ...] = typing.get_args(ScoreName)
"""The scores with a name, see `para_jax.Score`."""
Method = Literal["auto", "qr", "gram"]
"""The caller's choice of a way to the `R` factors, see `para_jax.decompose`."""
