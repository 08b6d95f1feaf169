"""Runs and comparisons to start from, one a file.

Each says its command, its time and its score.
"""

from train.commands.needs import Needs
from train.grid import plan
from train.presets import (
    amazon,
    armenian,
    choose,
    glue,
    movie,
    nyt,
    problems,
    tiny,
    tweets,
)
from train.presets.paper import commonsense, glue as paper_glue, math, vision
from train.runs.settings import Run

PRESETS: dict[str, Run] = {
    "movie": movie.RUN,
    "amazon": amazon.RUN,
    "tweets": tweets.RUN,
    "nyt": nyt.RUN,
    "armenian": armenian.RUN,
    "problems": problems.RUN,
    "tiny": tiny.RUN,
}
"""Each preset of a run by its name."""

PLANS: dict[str, plan.Plan] = {
    "sentiment": plan.SENTIMENT,
    "vision": plan.VISION,
    "problems": plan.PROBLEMS,
    "choose": choose.PLAN,
    "glue": glue.PLAN,
    "paper/vision": vision.PLAN,
    "paper/glue": paper_glue.PLAN,
    "paper/commonsense": commonsense.PLAN,
    "paper/math": math.PLAN,
}
"""Each comparison by its name."""

NEEDS: dict[str, Needs] = {
    "choose": choose.NEEDS,
    "glue": glue.NEEDS,
    "paper/vision": vision.NEEDS,
    "paper/glue": paper_glue.NEEDS,
    "paper/commonsense": commonsense.NEEDS,
    "paper/math": math.NEEDS,
}
"""Needs of the presets beyond the shipped files and the packages."""

READY = tuple(name for name in {**PRESETS, **PLANS} if name not in NEEDS)
"""Presets without such needs."""
