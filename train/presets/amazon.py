"""Product reviews: three-way sentiment, by LoRA of rank 16 or --method.

    python -m train run amazon
    python -m train run amazon --method para

The second trains what the first has not trained yet, and keeps a quarter of its ranks.
About 20 minutes on two CPU cores.
"""

from train.run import Run

RUN = Run(task="amazon")
