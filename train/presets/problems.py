"""Word problems: a small language model learns to solve them, by LoRA or --method.

    python -m train run problems
    python -m train run problems --method para --cut.gammas 0.5 0.25 0.125
    python -m train run problems --method lora --method.rank 4

Made for a GPU; on two CPU cores it takes hours. The second trains what the first has
not trained yet, and keeps a half, a quarter and an eighth of its ranks. An answer is
right if the number at the end of what the model writes is that of the solution.

Expect no score yet: the command was not measured on the model that ships.
"""

from train.run import Run
from train.subjects.problems import SHA256

RUN = Run(
    task="problems",
    learning_rates=(2e-3,),
    steps=2000,
    batch=64,
    backbone=SHA256,
)
