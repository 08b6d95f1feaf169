"""Test the remarks on spectra, and their numbers against the results behind them."""

import collections
import json
import pathlib
import re

import numpy as np
import pytest

import para_jax as para
from para_jax._pruning import outlook

RESULTS = pathlib.Path(__file__).parents[3] / "train/results"


def adapter(s):
    return para.Adapter(
        np.eye(20, len(s), dtype=np.float32),
        np.diag(np.float32(s)) @ np.eye(len(s), 20, dtype=np.float32),
    )


def children(folder):
    """Return the energy that PARA's children kept, and the points that they lost."""
    place = RESULTS / folder
    spectra = collections.defaultdict(list)
    for x in json.loads((place / "spectra.json").read_text())["rows"]:
        spectra[x["task"], x["seed"]] += x["values"]
    parents = {
        (x["task"], x["seed"]): x["accuracy"]
        for x in json.loads((place / "trained.json").read_text())["rows"]
        if (x["method"], x["policy"]) == ("lora", "rank 16") and "accuracy" in x
    }
    for x in json.loads((place / "children.json").read_text())["rows"]:
        # Of a budget in parameters the kept ones are not the largest.
        if x["method"] == "para" and not x["policy"].startswith("params"):
            key = x["task"], x["seed"]
            squares = np.sort(spectra[key])[::-1] ** 2
            share = squares[: x["rank_total"]].sum() / squares.sum()
            yield x["policy"], share, 100 * (parents[key] - x["accuracy"])


def lost(folders):
    """Return the percentages with a loss, of children below the limit and above."""
    found = [x for folder in folders for x in children(folder)]
    below, above = (
        [loss > 1 for _, share, loss in found if (share < outlook.ENOUGH) == side]
        for side in (True, False)
    )
    return round(100 * np.mean(below)), round(100 * np.mean(above))


def test_the_shares_are_those_of_the_results():
    (note,) = para.inspect({"x": adapter([9, 2, 1, 1])}).notes
    assert lost([""]) == (93, 8)
    assert lost(["vision", "glue"]) == (27, 0)
    assert "93% lost more than a point of accuracy on the tasks" in note
    assert "27% on others; of the rest 8% and none" in note


def test_the_losses_of_a_flat_spectrum_are_those_of_the_results():
    (note,) = para.inspect({"x": adapter([4, 4, 4, 4])}).notes
    losses = collections.defaultdict(list)
    for policy, _, loss in children("problems"):
        losses[policy].append(loss)
    mean = {policy: np.mean(x) for policy, x in losses.items()}
    assert f"{mean['epsilon 0.99']:.1f} points" == "1.7 points"
    assert round(mean["epsilon 0.9"]) == 38
    assert "lost 1.7 points of accuracy, and one with 90% lost 38" in note


def test_only_the_word_problems_are_flat():
    for folder, flat in {
        "": 0,
        "vision": 0,
        "glue": 0,
        "choose": 0,
        "problems": 5,
    }.items():
        pools = collections.defaultdict(list)
        rows = json.loads((RESULTS / folder / "spectra.json").read_text())["rows"]
        for x in rows:
            pools[x["task"], x["seed"]] += x["values"]
        found = [outlook.notes(np.array(x)) for x in pools.values()]
        assert sum("is flat" in note for (note,) in found) == flat


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_the_ranks_are_those_of_the_energy(scale):
    s = np.float32(scale) * np.array([8, 4, 3, 2, 1, 1, 1, 1], np.float32)
    shares = np.cumsum(s.astype(float) ** 2) / np.sum(s.astype(float) ** 2)
    (note,) = para.inspect({"x": adapter(s)}).notes
    (needed,) = re.findall(r"fewer than (\d+) ranks", note)
    assert shares[int(needed) - 2] < 0.9 <= shares[int(needed) - 1]


def test_of_too_few_components_nothing_is_said():
    assert para.inspect({"x": adapter([3, 2, 1])}).notes == ()
    assert para.inspect({"x": adapter([0, 0, 0, 0])}).notes == ()
