"""What to expect of an adapter's children, from its spectrum alone.

The limits are fitted on the sentence tasks of `train/results`, and on its word
problems, whose adapters are the only flat ones there. The shares in the sentences are
what became of the children of PARA in all results; `docs/results.md` has the table.

Runs on the host.
"""

import numpy as np

from para_jax.linalg import energy

FLAT = 0.8
"""Below this share of the energy in the largest quarter of components, it is flat."""

ENOUGH = 0.9
"""Below this share of the energy, children of adapters that are not flat lose."""


def notes(s: np.ndarray) -> tuple[str, ...]:
    """Return remarks on the children of an adapter, in words.

    Args:
      s: All singular values of the model, `[N]`, in any order.
    """
    values = np.sort(energy.near_one(np.asarray(s, np.float64), np))[::-1] ** 2
    total = values.sum()
    # Of fewer than four components there is no quarter, and of zeros no share.
    if len(values) < 4 or not total > 0:
        return ()
    shares = np.cumsum(values) / total
    quarter = float(shares[len(values) // 4 - 1])
    if quarter < FLAT:
        flat = (
            f"The spectrum is flat: the largest quarter of the components holds "
            f"{quarter:.0%} of the energy. So it is for word problems, where a child "
            "with 99% of the energy lost 1.7 points of accuracy, and one with 90% lost "
            "38. Evaluate each child."
        )
        return (flat,)
    needed = int(np.searchsorted(shares, ENOUGH) + 1)
    rest = (
        f"A child of fewer than {needed} ranks keeps less than {ENOUGH:.0%} of the "
        "energy. Of such children 93% lost more than a point of accuracy on the tasks "
        "that this was fitted on, and 27% on others; of the rest 8% and none."
    )
    return (rest,)
