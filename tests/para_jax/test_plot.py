import io

import matplotlib.image
import numpy as np
import pytest

from para_jax import plot
from para_jax._pruning.report import ModuleReport, Report

THRESHOLDS = {"gamma 0.5": 0.2, "gamma 0.25": 0.21, "epsilon 0.9": 0.22, "tau": 3.0}


def module(path, kept, *, sigma=None):
    sigma = np.array([3.0, 2.0, 0.5, 0.1] if sigma is None else sigma)
    return ModuleReport(
        path=path,
        inputs=8,
        outputs=6,
        rank=sigma.size,
        itemsize=4,
        sigma=sigma,
        mask=np.arange(sigma.size) < kept,
    )


def report(*modules):
    return Report(policy="gamma 0.5", modules=modules)


@pytest.fixture
def bert():
    names = ("attention/self/query", "attention/output/dense", "output/dense")
    return report(
        *(
            module(f"bert/encoder/layer/{depth}/{name}", (depth + row) % 4)
            for row, name in enumerate(names)
            for depth in (0, 2, 10)
        )
    )


def cells(figure):
    """Return the number in each cell, by row and column name."""
    axes = figure.axes[0]
    rows = [x.get_text() for x in axes.get_yticklabels()]
    columns = [x.get_text() for x in axes.get_xticklabels()]
    return {
        (rows[round(text.get_position()[1])], columns[round(text.get_position()[0])]): (
            text.get_text()
        )
        for text in axes.texts
    }


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    return matplotlib.image.imread(file)


def test_a_cell_holds_the_kept_rank_of_a_module(bert):
    got = cells(plot.rank_map(bert))

    names = ("query", "attention/output/dense", "output/dense")
    assert got == {
        (name, str(depth)): str((depth + row) % 4)
        for row, name in enumerate(names)
        for depth in (0, 2, 10)
    }


def test_depth_is_found_in_the_names_of_other_models():
    modules = [
        module("vision/layers_0/fc1", 1),
        module("vision/layers_1/fc1", 2),
        module("text/layers_0/fc1", 3),
        module("head", 4),
    ]

    got = cells(plot.rank_map(report(*modules)))

    assert got == {
        ("vision/layers_*/fc1", "0"): "1",
        ("vision/layers_*/fc1", "1"): "2",
        ("text/layers_*/fc1", "0"): "3",
        ("head", "–"): "4",
    }


def test_modules_without_numbers_share_a_column():
    figure = plot.rank_map(report(module("a/dense", 1), module("b/dense", 0)))

    assert cells(figure) == {("a/dense", "–"): "1", ("b/dense", "–"): "0"}
    assert figure.axes[0].get_xlabel() == "no layer number"


def test_the_title_says_what_was_kept(bert):
    title = plot.rank_map(bert).axes[0].get_title()

    assert "gamma 0.5" in title
    assert f"{bert.average_rank:.2f}" in title


def test_all_positive_singular_values_are_counted(bert):
    zeros = module("pooler/dense", 0, sigma=[0.7, 0.0, 0.0])
    axes = plot.spectrum(report(*bert.modules, zeros)).axes[0]

    assert sum(x.get_height() for x in axes.patches) == 9 * 4 + 1
    assert axes.get_xscale() == "log"
    assert "2 zeros" in axes.get_xlabel()


def test_every_threshold_is_a_line_with_its_label(bert):
    axes = plot.spectrum(bert, THRESHOLDS).axes[0]

    drawn = {float(line.get_xdata()[0]) for line in axes.lines}
    assert drawn == set(THRESHOLDS.values())
    want = {f"{name}: σ ≥ {value:.3g}" for name, value in THRESHOLDS.items()}
    assert {text.get_text() for text in axes.texts} == want


@pytest.mark.parametrize("factor", [1.0, 0.1, 10.0])
def test_no_label_overlaps_another_or_the_histogram(bert, factor):
    thresholds = {name: factor * value for name, value in THRESHOLDS.items()}
    figure = plot.spectrum(bert, thresholds)
    figure.draw_without_rendering()

    axes = figure.axes[0]
    labels = [text.get_window_extent() for text in axes.texts]
    bars = [patch.get_window_extent() for patch in axes.patches if patch.get_height()]
    for number, label in enumerate(labels):
        others = labels[:number] + bars
        assert label.count_overlaps(others) == 0


def test_a_threshold_beyond_the_spectrum_is_drawn_at_its_edge(bert):
    axes = plot.spectrum(bert, {"none": np.inf, "all": 0.0}).axes[0]

    drawn = sorted(float(line.get_xdata()[0]) for line in axes.lines)
    np.testing.assert_allclose(drawn, axes.get_xlim())
    assert {text.get_text() for text in axes.texts} == {"none: σ ≥ inf", "all: σ ≥ 0"}


def test_by_default_the_threshold_is_that_of_the_report(bert):
    (line,) = plot.spectrum(bert).axes[0].lines

    assert line.get_xdata()[0] == bert.threshold


@pytest.mark.parametrize("draw", [plot.rank_map, plot.spectrum])
def test_a_saved_picture_is_not_empty(bert, draw):
    got = pixels(draw(bert))

    assert min(got.shape[:2]) > 200
    assert got[..., :3].std() > 0.05


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no modules"):
        plot.rank_map(report())
    with pytest.raises(ValueError, match="none of the 3 singular values"):
        plot.spectrum(report(module("a", 0, sigma=[0.0, 0.0, 0.0])))
