"""A run to see whether everything works, on a CPU.

python -m train run tiny

The method is LoRA of rank 16, unless --method names another.
"""

from train.run import Run

RUN = Run(task="amazon", steps=20, batch=8, max_length=16)
