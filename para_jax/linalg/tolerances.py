"""Numbers that the NumPy and the traced back ends share."""

import numpy as np

RESOLUTION = float(np.finfo(np.float32).eps)
"""What float32 factors resolve, relative to the largest, a column."""


ROUNDINGS = 8
"""So many of the sum of its parts' norms is what a product may be off by.

Where parts cancel, 4.1 were seen, of 6 columns of length 16,384 through LAPACK's QR;
less at higher ranks. In float64: in float32, values of graded factors are as small.
"""


SIGNING = 512
"""So many of the first entries of a new row of `b` say which sign it has."""
