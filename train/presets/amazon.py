"""Product reviews: three-way sentiment.

python -m train run amazon

The method is LoRA of rank 16, unless --method names another.
"""

from train.run import Run

RUN = Run(task="amazon")
