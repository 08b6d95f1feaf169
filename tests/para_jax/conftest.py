"""Run the library's tests in double precision, with strict dtype promotion."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_double_precision(request):
    """Turn on x64 and strict promotion, except for tests marked `user_defaults`.

    Public functions must work without either. Put the mark on a parameter to run one
    test both ways:

        @pytest.mark.parametrize(
            "dtype",
            ["float64", pytest.param("float32", marks=pytest.mark.user_defaults)],
        )
    """
    if request.node.get_closest_marker("user_defaults"):
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
            yield
    else:
        with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
            yield
