import datasets
import numpy as np
import pytest

from train.data import glue

# As on the hub: the columns of the texts, the names of the classes.
TASKS = {
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "sst2": (("sentence",), ("negative", "positive")),
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment")),
}
SPLITS = {
    ("mnli", "test"): "validation_matched",
    ("mnli", "mismatched"): "validation_mismatched",
}


def rows(columns, classes, labels, mark=""):
    features = {x: datasets.Value("string") for x in columns}
    features |= {
        "label": datasets.ClassLabel(names=list(classes)),
        "idx": datasets.Value("int32"),
    }
    texts = {x: [f"{x} {i}{mark}" for i in range(len(labels))] for x in columns}
    ids = list(range(len(labels)))
    return datasets.Dataset.from_dict(
        {**texts, "label": labels, "idx": ids}, datasets.Features(features)
    )


@pytest.mark.parametrize("part", ["train", "test", "mismatched"])
@pytest.mark.parametrize("task", TASKS)
def test_a_task_gives_its_texts_and_labels(write, counts, data, task, part):
    if part == "mismatched" and task != "mnli":
        with pytest.raises(ValueError, match="has no part 'mismatched'"):
            glue.load(task, part, data=data)
        return
    columns, classes = TASKS[task]
    labels = [1, 0, len(classes) - 1]
    splits = {
        name: rows(columns, classes, labels, f" of {name}")
        for name in ("train", "validation", "validation_matched", *SPLITS.values())
    }
    write("nyu-mll/glue", {task: splits})
    counts(task, **{part: 3})

    got = glue.load(task, part, data=data)

    split = SPLITS.get((task, part), "validation" if part == "test" else part)
    texts = [tuple(f"{x} {i} of {split}" for x in columns) for i in range(3)]
    assert got.texts == tuple(x if len(x) == 2 else x[0] for x in texts)
    np.testing.assert_array_equal(got.labels, labels)
    assert got.classes == classes


def test_a_tokenizer_takes_pairs_as_they_come(write, counts, data, folder):
    from train.data import tokens

    write("nyu-mll/glue", {"mrpc": {"train": rows(*TASKS["mrpc"], [0])}})
    counts("mrpc", train=1)
    texts = glue.load("mrpc", "train", data=data).texts
    tokenizer = tokens.load_tokenizer(folder, 128)

    (encoding,) = tokenizer.encode_batch(texts)

    # [CLS] sentence1 0 [SEP] sentence2 0 [SEP]: two texts, not one.
    assert encoding.ids.count(102) == 2
    assert tokenizer.decode(encoding.ids) == "sentence1 0 sentence2 0"


def test_unlabelled_rows_are_refused(write, counts, data):
    write("nyu-mll/glue", {"cola": {"validation": rows(*TASKS["cola"], [1, -1])}})
    counts("cola", test=2)
    with pytest.raises(ValueError, match="label -1, expected 0 to 1"):
        glue.load("cola", "test", data=data)


def test_other_tasks_are_refused():
    with pytest.raises(ValueError, match="Unknown task 'qqp', expected mnli, sst2, "):
        glue.load("qqp", "train")
    assert set(glue.NAMES) == set(TASKS)
    assert set(glue.TASKS) == set(TASKS) - {"rte"}


@pytest.fixture(params=[0, 1, 2])
def predictions(request):
    generator = np.random.default_rng(request.param)
    labels = (generator.random(97) < 0.7).astype(np.int32)
    flips = generator.random(97) < 0.3
    return np.where(flips, 1 - labels, labels), labels


def test_matthews_is_the_correlation_of_predictions_and_labels(predictions):
    assert glue.matthews(*predictions) == pytest.approx(np.corrcoef(*predictions)[0, 1])


def test_the_metrics_are_those_of_sklearn(predictions):
    metrics = pytest.importorskip("sklearn.metrics")
    got, labels = predictions

    def scores(task):
        return {name: score(got, labels) for name, score in glue.scores(task).items()}

    matthews = metrics.matthews_corrcoef(labels, got)
    assert scores("cola") == pytest.approx({"matthews": matthews})
    assert scores("mrpc") == pytest.approx({"f1": metrics.f1_score(labels, got)})
    assert scores("mnli") == scores("sst2") == scores("qnli") == {}


def test_mnli_has_a_second_part_to_test_on():
    parts = {task: glue.parts(task) for task in glue.TASKS}

    assert parts.pop("mnli") == ("train", "test", "mismatched")
    assert {*parts.values()} == {("train", "test")}


def test_a_constant_prediction_correlates_with_nothing():
    labels, ones = np.array([0, 1, 1, 0, 1]), np.ones(5, int)

    assert glue.matthews(ones, labels) == 0
    assert glue.f1(ones, labels) == pytest.approx(6 / 8)
    assert glue.f1(0 * ones, labels) == 0


def test_counts_of_a_large_set_do_not_overflow():
    labels = np.arange(400_000) % 2
    predictions = np.where(np.arange(400_000) % 10 < 2, 1 - labels, labels)
    assert glue.matthews(predictions, labels) == pytest.approx(0.6)
