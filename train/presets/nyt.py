"""Editorials of the New York Times: three-way sentiment.

python -m train run nyt

The method is LoRA of rank 16, unless --method names another.
"""

from train.run import Run

RUN = Run(task="nyt")
