"""Armenian letters: 76 classes new to the encoder, by LoRA or --method.

    python -m train run armenian
    python -m train run armenian --method para

The second command trains the parent unless the first has, and keeps a quarter of its
ranks. `--task` takes the other image tasks: digits, mnist, georgian, letters.

Expect an accuracy of 86.3 % on the test part, and the same at a quarter of the ranks:
the means of five seeds on an H200. They vary by 0.9 points (standard deviation).
"""

from train.runs.settings import Run

RUN = Run(task="armenian", learning_rates=(1e-3,), steps=600, backbone="")
