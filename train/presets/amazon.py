"""Product reviews: three-way sentiment, by LoRA of rank 16 or --method.

    python -m train run amazon
    python -m train run amazon --method para

The second command trains the parent unless the first has, and keeps a quarter of its
ranks. About 20 minutes on two CPU cores; on an H200 half a minute, most of it to
compile.

Expect an accuracy of 75.7 % on the test part, and 75.7 % at a quarter of the ranks: the
means of ten seeds on an H200. The first varies by 1.1 points (standard deviation).
"""

from train.runs.settings import Run

RUN = Run(task="amazon", learning_rates=(0.001,))
