import dataclasses
import io
import json
import math

import numpy as np
import pytest
import rich.console
from scipy import stats

from tests.train.experiments import synthetic
from train.experiments import store
from train.experiments.missing import Missing
from train.experiments.results import Files
from train.experiments.statistics import Interval
from train.experiments.tables import TABLES, table

NAMES = sorted(TABLES)


def cells(tables, block, first):
    """One row of one block, by column."""
    found = tables[block]
    (row,) = [x for x in found.rows if x[0] == first]
    return dict(zip(found.columns, row, strict=True))


def accuracies(folder, name, method, policy):
    """`[tasks, seeds]` in percent, straight from the file."""
    rows = json.loads((folder / f"{name}.json").read_text())["rows"]
    return 100 * np.array(
        [
            [
                x["accuracy"]
                for x in rows
                if (x["task"], x["method"], x["policy"]) == (task, method, policy)
                and "accuracy" in x
            ]
            for task in synthetic.TASKS
        ]
    )


def number(text):
    return float(text.split("±")[0].split(" ")[-1])


def spread(text):
    return float(text.split("±")[1])


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_a_cell_for_each_column(files, name):
    for block in TABLES[name](files):
        assert block.rows
        assert {len(row) for row in block.rows} == {len(block.columns)}


@pytest.mark.parametrize("name", NAMES)
def test_a_table_fits_into_100_columns(files, name):
    console = rich.console.Console(file=io.StringIO(), width=100)
    for block in TABLES[name](files):
        console.print(table.terminal(block))

    shown = console.file.getvalue()
    assert "…" not in shown
    rows = [x for x in table.markdown(TABLES[name](files)).splitlines() if x[:1] == "|"]
    assert max(map(len, rows)) <= 100


def test_table_a_holds_means_and_deviations(files, folder):
    got = cells(TABLES["a"](files), 0, "GoRA")

    want = accuracies(folder, "trained", "gora", "rank 4")
    means = [number(got[x]) for x in (*synthetic.TASKS, "mean")]
    np.testing.assert_allclose(means, [*want.mean(1), want.mean()], atol=0.0051)
    spreads = [spread(got[x]) for x in (*synthetic.TASKS, "mean")]
    deviations = [*want.std(1, ddof=1), want.mean(0).std(ddof=1)]
    np.testing.assert_allclose(spreads, deviations, atol=0.0051)
    assert got["rank"] == "4"


def test_table_a_holds_paired_intervals_of_para_minus_the_method(files, folder):
    got = cells(TABLES["a"](files), 1, "GoRA")

    para = accuracies(folder, "children", "para", "rank 4")
    gora = accuracies(folder, "trained", "gora", "rank 4")
    pairs = dict(zip(synthetic.TASKS, zip(para, gora, strict=True), strict=True))
    pairs["mean"] = para.mean(0), gora.mean(0)
    for column, (left, right) in pairs.items():
        low, high = stats.ttest_rel(left, right).confidence_interval(0.95)
        assert number(got[column]) == pytest.approx((low + high) / 2, abs=0.0051)
        assert spread(got[column]) == pytest.approx((high - low) / 2, abs=0.051)
        assert got[column].startswith("▲ ") == (low > 0)


def test_table_a_has_the_parent_and_all_methods(files):
    accuracy, difference = TABLES["a"](files)

    names = [row[0] for row in accuracy.rows]
    assert names[:2] == ["LoRA r=16, parent", "LoRA r=4"]
    assert names[-1] == "PARA γ=.25"
    assert len(names) == 3 + len(synthetic.AT_FOUR) + 6
    assert [row[0] for row in difference.rows] == names[:-1]
    assert accuracy.notes == [
        "Accuracy in %, mean and standard deviation over 3 seeds."
    ]


def test_a_method_with_another_rank_is_shown_with_it(files):
    assert cells(TABLES["a"](files), 0, "SoRA")["rank"] == "4.81"  # 173 of 36 modules.


def test_a_method_that_was_not_trained_is_named(folder, tmp_path):
    for name in ("trained", "children"):
        found = Files(folder).file(name)
        rows = [x for x in found.rows if x.method != "gora"]
        # Of DyLoRA two seeds are left.
        rows = [x for x in rows if x.method != "dylora" or x.seed < 2]
        store.write(
            tmp_path / f"{name}.json",
            synthetic.results(rows, found.configs),
        )

    accuracy, _ = TABLES["a"](Files(tmp_path))

    assert "Not in the results: GoRA." in accuracy.notes
    assert accuracy.notes[-1].endswith("over 3 seeds; fewer for DyLoRA: 2.")


def test_a_method_that_was_trained_on_some_tasks_is_told_of_and_not_compared(
    folder, tmp_path
):
    for name in ("trained", "children"):
        found = Files(folder).file(name)
        rows = [x for x in found.rows if x.method != "gora" or x.task == "movie"]
        store.write(tmp_path / f"{name}.json", synthetic.results(rows, found.configs))
    mine = [x.accuracy for x in found_rows(tmp_path, "gora") if x.accuracy is not None]

    accuracy, difference = TABLES["a"](Files(tmp_path))

    told = f"Trained on some tasks only: GoRA (movie {100 * np.mean(mine):.2f})."
    assert told in accuracy.notes
    for compared in (accuracy, difference):
        assert "GoRA" not in [row[0] for row in compared.rows]


def found_rows(folder, method):
    return [x for x in Files(folder).rows("trained") if x.method == method]


def test_table_b_is_global_minus_local(files, folder):
    tables = TABLES["b"](files)

    assert [row[0] for row in tables[1].rows] == [
        f"rank {x:g}" for x in synthetic.RANKS
    ]
    para = accuracies(folder, "children", "para", "rank 0.5")
    local = accuracies(folder, "children", "local", "rank 0.5")
    got = number(cells(tables, 1, "rank 0.5")["mean"])
    assert got == pytest.approx((para - local).mean(), abs=0.0051)


def test_scores_are_compared_with_the_singular_value(files, folder):
    ranks, _ = tables = TABLES["scores"](files)

    assert ranks.columns == ["score", "8", "4", "2", "1", "0.5", "all"]
    got = cells(tables, 0, "whitened")
    sigma, whitened = (
        [accuracies(folder, "children", x, f"rank {r:g}") for r in synthetic.RANKS]
        for x in ("para", "whitened")
    )
    want = np.mean(whitened[2] - sigma[2])
    assert number(got["2"]) == pytest.approx(want, abs=0.0051)
    # Over all budgets and tasks, one number a seed.
    left, right = (np.mean(x, axis=(0, 1)) for x in (whitened, sigma))
    low, high = stats.ttest_rel(left, right).confidence_interval(0.95)
    assert number(got["all"]) == pytest.approx((low + high) / 2, abs=0.0051)
    assert spread(got["all"]) == pytest.approx((high - low) / 2, abs=0.0051)


def test_a_score_without_a_budget_has_a_dash(folder, tmp_path):
    found = Files(folder).file("children")
    rows = [x for x in found.rows if (x.method, x.policy) != ("fisher", "rank 2")]
    store.write(tmp_path / "children.json", synthetic.results(rows, found.configs))

    got = cells(TABLES["scores"](Files(tmp_path)), 0, "Fisher")

    assert (got["2"], got["all"]) == ("–", "–")
    assert got["4"] != "–"


def test_children_that_were_trained_on_are_compared_with_native_lora(files, folder):
    accuracy, native, _ = tables = TABLES["retuned"](files)

    assert accuracy.columns[:5] == ["average", "0%", "1%", "5%", "10%"]
    assert [row[0] for row in native.rows] == ["rank 2", "rank 1", "rank 0.5"]
    mine = accuracies(folder, "retuned", "retuned", "rank 1 steps 0.05").mean()
    cut = accuracies(folder, "children", "para", "rank 1").mean()
    lora = accuracies(folder, "trained", "lora", "rank 1").mean()
    whole = accuracies(folder, "trained", "lora", "rank 16").mean()
    row = cells(tables, 1, "rank 1")
    assert number(row["5%"]) == pytest.approx(mine - lora, abs=0.0051)
    assert number(row["0%"]) == pytest.approx(cut - lora, abs=0.0051)
    row = cells(tables, 2, "rank 1")
    assert number(row["5%"]) == pytest.approx(mine - whole, abs=0.0051)


def test_a_foreign_policy_among_the_retuned_is_refused(folder, tmp_path):
    found = Files(folder).file("retuned")
    rows = [found.rows[0].__class__(**vars(found.rows[0]) | {"policy": "rank 2"})]
    store.write(tmp_path / "retuned.json", synthetic.results(rows, found.configs))

    with pytest.raises(ValueError, match=r"'rank 2' .* such as 'rank 2 steps 0.05'"):
        TABLES["retuned"](Files(tmp_path))


def test_costs_are_relative_to_lora(files, folder):
    rows = json.loads((folder / "cost.json").read_text())["rows"]
    by_name = {(x["method"], x["policy"]): x for x in rows}
    mine, small = by_name["gora", "rank 4"], by_name["lora", "rank 4"]

    (found,) = TABLES["cost"](files)
    (row,) = [x for x in found.rows if x[0].startswith("GoRA")]

    assert float(row[3]) == pytest.approx(
        mine["step_seconds"] / small["step_seconds"], abs=0.0051
    )
    assert float(row[6]) == pytest.approx(
        mine["peak_bytes"] / small["peak_bytes"], abs=0.0051
    )


def test_costs_without_their_reference_are_refused(tmp_path, files):
    rows = [x for x in files.file("cost").rows if x.method != "lora"]
    store.write(tmp_path / "cost.json", synthetic.results(rows))

    with pytest.raises(ValueError, match=r"no row of lora rank 16.*`python -m train"):
        TABLES["cost"](Files(tmp_path))


def test_a_rate_at_the_end_of_the_grid_is_marked(row, tmp_path):
    best = {"movie": 0.2, "nyt": 0.4}
    # A model of many ranks, which has the rate of another: nothing was chosen for it.
    rows = [row(task="movie", policy="rank 8", learning_rate=0.2, validation=0.7)]
    rows += [
        row(task=task, learning_rate=rate, validation=0.9 if rate == x else 0.5)
        for task, x in best.items()
        for rate in (0.1, 0.2, 0.4)
    ]
    store.write(tmp_path / "trained.json", synthetic.results(rows, ["lora"]))

    (found,) = TABLES["rates"](Files(tmp_path))

    assert found.rows == [["LoRA rank 4", "2e-1", "4e-1*", "1e-1 to 4e-1"]]


def shown(rows, folder):
    """The rows of the table of learning rates."""
    store.write(folder / "trained.json", synthetic.results(rows, ["lora"]))
    (found,) = TABLES["rates"](Files(folder))
    return found.rows


def test_a_method_whose_choices_cover_the_grid_keeps_its_row(row, tmp_path):
    best = {"movie": 5e-5, "amazon": 2e-4, "tweets": 1e-3}
    rows = [
        row(task=task, learning_rate=rate, validation=0.9 if rate == x else 0.5)
        for task, x in best.items()
        for rate in best.values()
    ]

    assert shown(rows, tmp_path) == [
        ["LoRA rank 4", "5e-5*", "2e-4", "1e-3*", "5e-5 to 1e-3"]
    ]


def test_methods_that_tried_one_rate_keep_their_rows(row, tmp_path):
    policies = {"lora": ["rank 4"], "dylora": ["rank 8", "rank 4"]}
    rows = [
        row(task=task, method=method, policy=policy, learning_rate=5e-5)
        for method, found in policies.items()
        for policy in found
        for task in ("movie", "nyt")
    ]

    assert shown(rows, tmp_path) == [
        [name, "5e-5", "5e-5", "5e-5"]
        for name in ("LoRA rank 4", "DyLoRA rank 8", "DyLoRA rank 4")
    ]


def test_other_ranks_of_a_model_that_was_searched_at_one_have_no_row(row, tmp_path):
    best = {"movie": 0.1, "nyt": 0.2}
    rows = [
        row(task=task, learning_rate=rate, validation=0.9 if rate == x else 0.5)
        for task, x in best.items()
        for rate in (0.1, 0.2, 0.4)
    ]
    rows += [
        row(task=task, policy="rank 8", learning_rate=x) for task, x in best.items()
    ]

    assert [x[0] for x in shown(rows, tmp_path)] == ["LoRA rank 4"]


def test_a_rate_has_a_second_digit_if_it_needs_one(row, tmp_path):
    rows = [
        row(learning_rate=rate, validation=0.9 if rate == 0.003 else 0.5)
        for rate in (0.00025, 0.003, 0.016)
    ]

    (got,) = shown(rows, tmp_path)

    assert got[1:] == ["3e-3", "2.5e-4 to 1.6e-2"]


@pytest.fixture
def of_sets(row, tmp_path):
    """Results of one training a seed, tested on two sets; PARA is a point better."""
    tested = {("gsm8k", 0): 0.5, ("gsm8k", 1): 0.52, ("math", 0): 0.2, ("math", 1): 0.3}
    lost = row(task="mathematics", learning_rate=0.1, validation=0.6, accuracy=None)
    made = {"trained": ("lora", "rank 16", 0), "children": ("para", "rank 4", 0.01)}
    for name, (method, policy, more) in made.items():
        rows = [
            row(task=task, seed=seed, accuracy=x + more, method=method, policy=policy)
            for (task, seed), x in tested.items()
        ]
        if name == "trained":
            rows.append(dataclasses.replace(lost, policy=policy))
        store.write(tmp_path / f"{name}.json", synthetic.results(rows, ["lora"]))
    return Files(tmp_path)


def test_sets_have_a_column_each_and_their_mean(of_sets):
    found = TABLES["a"](of_sets)

    parent = cells(found, 0, "LoRA r=16, parent")
    assert found[0].columns == ["method", "gsm8k", "math", "mean", "rank", "params"]
    assert [parent[x] for x in ("gsm8k", "math", "mean")] == [
        "51.00±1.4",
        "25.00±7.1",
        "38.00±4.2",
    ]
    minus = cells(found, 1, "LoRA r=16, parent")
    assert {minus[x] for x in ("gsm8k", "math", "mean")} == {"▲ +1.00±.00"}


@pytest.fixture
def of_glue(row, tmp_path):
    """Three tasks of GLUE, their further metrics, and PARA's child."""
    accuracies = {"mnli": 0.6, "sst2": 0.9, "cola": 0.8, "mrpc": 0.7}
    beside = {"mnli": "mismatched", "cola": "matthews", "mrpc": "f1"}
    made = {"trained": ("lora", "rank 16", 0), "children": ("para", "rank 4", 0.01)}
    for name, (method, policy, more) in made.items():
        rows = [
            row(task=task, seed=seed, accuracy=x + more, method=method, policy=policy)
            for task, x in accuracies.items()
            for seed in range(2)
        ]
        rows = [
            dataclasses.replace(x, measures={beside[x.task]: 0.1 * x.seed - more})
            if x.task in beside
            else x
            for x in rows
        ]
        store.write(tmp_path / f"{name}.json", synthetic.results(rows, ["lora"]))
    return Files(tmp_path)


def test_what_glue_reports_beside_the_accuracy_has_a_block_of_its_own(of_glue):
    first, second, beside = TABLES["a"](of_glue)

    assert beside.columns == [
        "method",
        "mnli, mismatched",
        "cola, matthews",
        "mrpc, f1",
    ]
    parent, child = beside.rows
    names = ["LoRA r=16, parent", "PARA γ=.25"]
    assert [row[0] for row in beside.rows] == names
    assert {*parent[1:]} == {"5.00±7.1"}
    assert {*child[1:]} == {"4.00±7.1"}
    columns = ["method", "mnli", "sst2", "cola", "mrpc", "mean"]
    assert first.columns == [*columns, "rank", "params"]
    assert second.columns == columns
    assert cells([first], 0, names[0])["mean"] == "75.00±.00"  # Of 60, 90, 80 and 70.
    (rates,) = TABLES["rates"](of_glue)
    assert rates.columns == ["method", "mnli", "sst2", "cola", "mrpc", "tried"]


def test_a_method_without_the_further_measures_has_none(of_glue):
    results = of_glue.file("trained")
    rows = [*results.rows]
    rows += [
        dataclasses.replace(x, method="gora", policy="rank 4", measures=None)
        for x in rows
    ]
    store.write(of_glue.folder / "trained.json", synthetic.results(rows, ["lora"]))

    *_, beside = TABLES["a"](Files(of_glue.folder))

    assert beside.rows[1] == ["GoRA", "-", "-", "-"]


def test_what_was_trained_once_has_one_rate_in_one_column(of_sets):
    (found,) = TABLES["rates"](of_sets)

    assert found.columns == ["method", "mathematics", "tried"]
    assert found.rows == [["LoRA rank 16", "1e-3*", "1e-3 to 1e-1"]]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_without_its_files_names_the_command(tmp_path, name):
    with pytest.raises(Missing, match=r"\.json is missing: `(.*)` makes it"):
        TABLES[name](Files(tmp_path))


@pytest.mark.parametrize(
    ("interval", "want"),
    [
        (Interval(0.0052, 0.0031, 5), "▲ +0.52±.31"),
        (Interval(-0.0152, 0.0131, 5), "▼ -1.52±1.3"),
        (Interval(0.0052, 0.00997, 5), "+0.52±1.0"),
        (Interval(-0.00001, 0.0031, 5), "+0.00±.31"),
        (Interval(0.0052, math.inf, 1), "+0.52"),
    ],
)
def test_how_a_difference_looks(interval, want):
    assert table.points(interval) == want


def test_the_source_says_what_made_the_files(files):
    got = table.source(files, "trained", "children")

    assert got == (
        "From `trained.json`, `children.json`, by `python -m train grid` at "
        "0123456789abcdef, a device, jax 0.11.2, flax 0.12.8."
    )


def test_the_energy_of_a_rank_is_that_of_the_largest_of_all_modules():
    from train.experiments.rows import Spectrum
    from train.experiments.tables import energy

    def spectrum(seed, module, values):
        return Spectrum(task="movie", seed=seed, module=module, m=3, n=3, values=values)

    spectra = [
        spectrum(0, "q", (3.0, 2.0)),
        spectrum(0, "v", (1.0, 0.0)),
        spectrum(1, "q", (1.0, 1.0)),
        spectrum(1, "v", (1.0, 1.0)),
    ]

    assert energy.kept(spectra, 1) == {"movie": [pytest.approx(13 / 14), 0.5]}
    assert energy.kept(spectra, 0.5) == {"movie": [pytest.approx(9 / 14), 0.25]}
