import numpy as np
import pytest
from scipy import stats

from tests.train.experiments import synthetic
from train.experiments import stability
from train.experiments.rows import Spectrum


def spectra(task, seed, values):
    return [
        Spectrum(task=task, seed=seed, module=path, m=8, n=6, values=tuple(x))
        for path, x in values.items()
    ]


def test_a_map_holds_the_ranks_above_one_threshold(files):
    rows = files.file("spectra").rows

    got = stability.maps(rows)

    assert list(got) == list(synthetic.TASKS)
    for task, seed in (("movie", 0), ("nyt", 2)):
        mine = {x.module: x.values for x in rows if (x.task, x.seed) == (task, seed)}
        pooled = np.sort(np.concatenate(list(mine.values())))[::-1]
        threshold = pooled[4 * len(mine) - 1]
        want = {path: int(np.sum(np.array(x) >= threshold)) for path, x in mine.items()}
        assert got[task][seed] == want


def test_maps_are_compared_module_by_module():
    same = {"a": (9.0, 8.0, 7.0), "b": (6.0, 5.0, 0.1), "c": (4.0, 0.2, 0.1)}
    turned = dict(zip(same, reversed(same.values()), strict=True))
    rows = [
        *spectra("movie", 0, same),
        *spectra("movie", 1, same),
        *spectra("movie", 2, turned),
    ]

    got = stability.over_seeds(stability.maps(rows, rank=2))["movie"]

    assert got.pearson == pytest.approx([1, -1, -1])
    assert got.spearman == pytest.approx([1, -1, -1])


def test_correlations_are_those_of_scipy(files):
    maps = stability.maps(files.file("spectra").rows)

    got = stability.over_seeds(maps)["tweets"]

    seeds = [list(x.values()) for x in maps["tweets"].values()]
    assert len(got.pearson) == 3
    assert got.pearson[0] == pytest.approx(np.corrcoef(seeds[0], seeds[1])[0, 1])
    want = stats.spearmanr(seeds[1], seeds[2]).statistic
    assert got.spearman[-1] == pytest.approx(want)


def test_tasks_are_compared_at_equal_seeds(files):
    maps = stability.maps(files.file("spectra").rows)

    got = stability.over_tasks(maps)

    assert len(got.pearson) == 6 * 3
    first = [list(maps[x][0].values()) for x in ("movie", "amazon")]
    assert got.pearson[0] == pytest.approx(np.corrcoef(*first)[0, 1])


def test_one_seed_cannot_be_stable(files):
    rows = [x for x in files.file("spectra").rows if x.seed == 0]

    with pytest.raises(ValueError, match="needs two seeds"):
        stability.over_seeds(stability.maps(rows))
