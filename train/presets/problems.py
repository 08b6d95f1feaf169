"""Word problems: a small language model learns to solve them, by LoRA or --method.

    python -m train run problems
    python -m train run problems --method para --cut.gammas 0.5 0.25 0.125
    python -m train run problems --method lora --method.rank 4

Made for a GPU. The second trains what the first has not trained yet, and keeps a half,
a quarter and an eighth of its ranks. What the model writes is right if it ends with the
right number. Sequences are as long as the longest problem with its solution, whatever
--max-length says.

The time and the scores are not measured yet, nor is the learning rate chosen.
"""

from train.run import Run

RUN = Run(
    task="problems",
    learning_rates=(2e-3,),
    steps=2000,
    batch=64,
    backbone="",
)
