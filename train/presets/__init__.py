"""Runs to start from, one a file; each says its command, its time and its score."""

from train.presets import amazon, movie, nyt, problems, tiny, tweets
from train.run import Run

PRESETS: dict[str, Run] = {
    "movie": movie.RUN,
    "amazon": amazon.RUN,
    "tweets": tweets.RUN,
    "nyt": nyt.RUN,
    "problems": problems.RUN,
    "tiny": tiny.RUN,
}
"""Each preset by its name."""
