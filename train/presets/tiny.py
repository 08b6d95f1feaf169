"""A short run on a CPU, to test an installation.

    python -m train run tiny

13 s on two cores, 2 s once it is complete. Expect an accuracy of 48.1 % on the test
part with seed 0: 20 steps teach little more than the commonest class.
"""

from train.runs.settings import Run

RUN = Run(task="amazon", steps=20, batch=8, max_length=16)
