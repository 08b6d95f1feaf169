"""Tweets: three-way sentiment.

python -m train run tweets

The method is LoRA of rank 16, unless --method names another.
"""

from train.run import Run

RUN = Run(task="tweets")
