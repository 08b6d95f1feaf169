import json

import numpy as np
import pytest
from matplotlib.text import Text

from tests.train.experiments import synthetic
from train.experiments import stability, store
from train.experiments.figures import FIGURES, rank_maps, style
from train.experiments.missing import Missing
from train.experiments.results import Files

NAMES = sorted(FIGURES)


def texts(figure):
    """All text in a figure, with its place in pixels."""
    figure.draw_without_rendering()
    shown = [
        x
        for x in figure.findobj(Text)
        if x.get_visible() and x.get_text().strip() and _axes_visible(x)
    ]
    found = {x: x.get_window_extent() for x in shown}
    ticks = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not _is_within(axis, tick)
    }
    return {x: box for x, box in found.items() if x not in ticks and box.width}


def _axes_visible(text):
    return text.axes is None or text.axes.get_visible()


def _is_within(axis, tick):
    """Matplotlib makes labels also for ticks beyond the ends, and never draws them."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    return low - slack <= tick.get_loc() <= high + slack


@pytest.fixture(scope="module")
def figures(files):
    return {name: draw(files) for name, draw in FIGURES.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_text_is_inside_the_canvas(figures, name):
    figure = figures[name]
    written = texts(figure)

    assert len(written) > 8
    canvas = figure.bbox
    for text, box in written.items():
        inside = box.x0 >= 0 and box.y0 >= 0
        inside &= box.x1 <= canvas.x1 and box.y1 <= canvas.y1
        assert inside, f"{text.get_text()!r} at {box} in {canvas}"


@pytest.mark.parametrize("name", NAMES)
def test_no_text_lies_over_another(figures, name):
    written = list(texts(figures[name]).items())

    for number, (text, box) in enumerate(written):
        over = [x.get_text() for x, other in written[:number] if box.overlaps(other)]
        assert not over, f"{text.get_text()!r} over {over}"


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_figure_is_small(figures, name, tmp_path):
    style.save(figures[name], tmp_path / "x.png")

    assert 5_000 < (tmp_path / "x.png").stat().st_size < 150_000


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_without_its_files_names_the_command(tmp_path, name):
    with pytest.raises(Missing, match=r"\.json is missing: `python -m"):
        FIGURES[name](Files(tmp_path))


@pytest.fixture(scope="module")
def partial(files, tmp_path_factory):
    """Two tasks and two seeds: the results of an unfinished grid."""
    folder = tmp_path_factory.mktemp("partial")
    for name in ("trained", "children", "retuned", "spectra"):
        found = files.file(name)
        rows = [x for x in found.rows if x.task in ("movie", "nyt") and x.seed < 2]
        store.write(folder / f"{name}.json", synthetic.results(rows, found.configs))
    return Files(folder)


@pytest.mark.parametrize("name", NAMES)
def test_two_tasks_and_two_seeds_are_enough(partial, name):
    figure = FIGURES[name](partial)

    assert len(texts(figure)) > 5


def test_a_cell_of_a_rank_map_is_the_mean_over_seeds(figures, files):
    maps = stability.maps(files.file("spectra").rows)["movie"]
    path = "bert/encoder/layer/2/attention/self/value"
    want = np.mean([maps[seed][path] for seed in synthetic.SEEDS])

    axes = figures["rank-maps"].axes[0]

    names = [x.get_text() for x in axes.get_yticklabels()]
    row = names.index("attention/value")
    (cell,) = [x for x in axes.texts if x.get_position() == (2, row)]
    assert axes.get_title() == "movie, 3 seeds"
    assert cell.get_text() == f"{want:.1f}"


def test_a_task_has_one_marker_in_both_panels_whatever_the_order_of_the_rows(
    files, tmp_path
):
    for name in ("trained", "children"):
        found = files.file(name)
        rows = list(reversed(found.rows))
        store.write(tmp_path / f"{name}.json", synthetic.results(rows, found.configs))

    above, below = FIGURES["energy"](Files(tmp_path)).axes

    def looks(lines):
        return {x.get_color(): x.get_marker() for x in lines}

    handles, labels = above.get_legend_handles_labels()
    assert labels == list(synthetic.TASKS)
    wanted = looks(x[0] for x in handles)
    assert len(wanted) == len(set(wanted.values())) == 4
    assert looks(below.get_lines()) == wanted


def test_a_module_without_a_layer_number_is_refused():
    with pytest.raises(ValueError, match="'pooler/dense' has no layer number"):
        rank_maps.place("pooler/dense")


def test_the_lines_of_the_ranks_are_means_over_seeds(figures, folder):
    rows = json.loads((folder / "trained.json").read_text())["rows"]
    want = np.mean(
        [
            100 * x["accuracy"]
            for x in rows
            if (x["task"], x["method"], x["policy"]) == ("amazon", "lora", "rank 8")
            and "accuracy" in x
        ]
    )
    axes = figures["ranks"].axes[1]
    handles, labels = axes.get_legend_handles_labels()
    (line, *_) = handles[labels.index("LoRA")]

    assert axes.get_title() == "amazon"
    assert line.get_ydata()[1] == pytest.approx(want)
    assert line.get_xdata()[1] == pytest.approx(8, rel=0.1)


def test_the_spectra_count_every_component(figures):
    for axes in figures["spectra"].axes:
        mean = axes.patches[0]
        assert mean.get_data().values.sum() == pytest.approx(36 * 16)


def test_no_two_tasks_of_a_comparison_look_alike():
    from train import presets
    from train.experiments.figures import style
    from train.experiments.rows import SETS

    compared = [plan.tasks for plan in presets.PLANS.values()]
    for tasks in (*compared, *SETS.values()):
        colours = [style.TASKS[task] for task in tasks]
        assert len(set(colours)) == len(colours) <= len(style.MARKERS)
