import bz2
import json
import os
import pathlib

import numpy as np
import PIL.Image
import pytest

from train.data import clones, hub, images, mathematics, sources

GLUE = "F0restL1n/BERT/glue_data"
# Found before the fixtures hide it.
REAL = pathlib.Path(os.environ.get("PARA_DATA", "nowhere"))


@pytest.fixture
def put(data):
    """Writes a file of a clone."""

    def put(path, text):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        content = text if isinstance(text, bytes) else text.encode()
        (data / path).write_bytes(content)
        return data / path

    return put


def table(*rows):
    return "".join("\t".join(x) + "\n" for x in rows)


def missing(name, data):
    return hub.missing(sources.find(name), data)


def test_a_clone_has_the_parts_of_its_set_and_our_columns():
    for name, clone in clones.CLONES.items():
        source = sources.find(name)
        assert clone.parts.keys() == source.parts.keys()
        if clone.columns.keys() != source.columns.keys():
            assert set(clone.columns) == set(clones.WRITTEN)
        if clone.classes:
            assert len(clone.classes) == source.classes
    on_github = {x.name for x in sources.SOURCES.values() if not x.hub}
    assert on_github <= clones.CLONES.keys()


def test_sentences_with_their_names_and_without_them(put, counts, data):
    """As in GLUE: SST-2 has a line of names, CoLA has none."""
    put(f"{GLUE}/SST-2/train.tsv", table(("sentence", "label"), ("nice ", "1")))
    put(
        f"{GLUE}/CoLA/dev.tsv",
        table(("x1", "0", "*", "Goes he."), ("x1", "1", "", "A")),
    )
    counts("sst2", train=1)
    counts("cola", test=2)

    rows = hub.load("sst2", "train", data=data)
    assert rows.to_list() == [{"first": "nice ", "label": 1}]
    assert hub.class_names(rows) == ("negative", "positive")

    rows = hub.load("cola", "test", data=data)
    assert rows["first"][:] == ["Goes he.", "A"]
    assert rows["label"][:] == [0, 1]
    assert hub.class_names(rows) == ("unacceptable", "acceptable")


def test_labels_may_be_names(put, counts, data):
    names = ("index", "sentence1", "sentence2", "label")
    rows = ("0", "A.", "B.", "not_entailment"), ("1", "C.", "D.", "entailment")
    put(f"{GLUE}/RTE/dev.tsv", table(names, *rows))
    counts("rte", test=2)

    got = hub.load("rte", "test", data=data)

    assert got.to_list() == [
        {"first": "A.", "second": "B.", "label": 1},
        {"first": "C.", "second": "D.", "label": 0},
    ]


MRPC = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")


def test_mrpc_is_trained_on_what_it_is_not_tested_on(put, counts, data):
    pairs = [
        ("1", "5", "6", "a", "b"),
        ("0", "6", "5", "c", "d"),
        ("1", "7", "8", "e", "f"),
    ]
    mark = "\ufeff"
    put(f"{GLUE}/MRPC/msr_paraphrase_train.txt", mark + table(MRPC, *pairs))
    put(f"{GLUE}/MRPC/dev.tsv", mark + table(MRPC, pairs[1]))
    counts("mrpc", train=2, test=1)

    train, test = (hub.load("mrpc", x, data=data) for x in ("train", "test"))

    assert train["first"][:] == ["a", "e"]
    assert train["second"][:] == ["b", "f"]
    assert train["label"][:] == [1, 1]
    assert test.to_list() == [{"first": "c", "second": "d", "label": 0}]
    assert not missing("mrpc", data)


def test_hellaswag_has_the_hub_s_columns(put, counts, data):
    lines = ["Baking: A bowl. she", "1", "sings.", "stirs.", "sits.", "runs."]
    packed = bz2.compress("".join(f"{x}\n" for x in lines).encode())
    put("klosax/hellaswag_text_data/hellaswag_val_full.txt.bz2", packed)
    counts("hellaswag", test=1)

    assert hub.load("hellaswag", "test", data=data).to_list() == [
        {
            "activity_label": "Baking",
            "ctx": "A bowl. she",
            "endings": lines[2:],
            "label": "1",
        }
    ]


def test_gsm8k_is_read_from_its_authors_files(put, counts, data):
    rows = [{"question": "How many?", "answer": "Two.\n#### 2"}] * 2
    text = "".join(json.dumps(x) + "\n" for x in rows)
    put("openai/grade-school-math/grade_school_math/data/test.jsonl", text)
    counts("gsm8k", test=2)

    got = mathematics.problems("gsm8k", data=data)

    assert [x.answer for x in got] == ["2", "2"]


@pytest.fixture
def competition(put, counts):
    """MATH with a problem in each file, that names it."""
    for folder in ("train", "val", "test"):
        for subject in sources.find("math").configs:
            name = f"{folder}/{subject}"
            row = {"problem": name, "level": "Level 1", "type": "T"}
            rows = [row | {"solution": "\\boxed{1}"}]
            put(f"MChatzakis/ChatMGL/data/MATH/{name}.json", json.dumps(rows))
    counts("math", train=14, test=7)


def test_math_s_training_part_is_joined_from_two(competition, data):
    train, test = (hub.load("math", x, data=data) for x in ("train", "test"))

    subjects = sources.find("math").configs
    both = [f"{part}/{x}" for x in subjects for part in ("train", "val")]
    assert train["question"][:] == both
    assert test["question"][:] == [f"test/{x}" for x in subjects]


def test_a_missing_file_is_named_with_the_command(competition, data):
    file = data / "MChatzakis/ChatMGL/data/MATH/val/geometry.json"
    assert not missing("math", data)
    file.unlink()

    with pytest.raises(FileNotFoundError) as caught:
        hub.load("math", "train", data=data)
    folder = data / "MChatzakis" / "ChatMGL"
    assert f"'math', train, not found: there is no '{file}'" in str(caught.value)
    assert (
        f"git clone --depth 1 https://github.com/MChatzakis/ChatMGL {folder}"
    ) in str(caught.value)
    assert len(hub.load("math", "test", data=data)) == 7
    want = f"no files of data/MATH/val/geometry.json in {folder}"
    assert missing("math", data) == want


def test_another_number_of_rows_is_an_error_but_for_a_subset(competition, counts, data):
    for count in (13, 15):
        counts("math", train=count)
        message = rf"'math' \(.*ChatMGL\), train has 14 rows, expected {count}. Is it i"
        with pytest.raises(ValueError, match=message):
            hub.load("math", "train", data=data)

    assert len(hub.load("math", "train", data=data, subset=True)) == 14
    counts("math", train=13)
    with pytest.raises(ValueError, match="has 14 rows, expected 1 to 13 of a subset"):
        hub.load("math", "train", data=data, subset=True)


def test_bad_rows_are_named(put, data):
    put(f"{GLUE}/SST-2/dev.tsv", table(("sentence", "label"), ("a", "1"), ("b", "2")))
    message = (
        "SST-2/dev.tsv', line 3 has the label '2', expected one of 0, 1, negative, posi"
    )
    with pytest.raises(ValueError, match=message):
        hub.load("sst2", "test", data=data)
    # GLUE's own test parts have no labels.
    put(f"{GLUE}/SST-2/dev.tsv", table(("index", "sentence"), ("0", "a")))
    with pytest.raises(
        ValueError, match="line 2 has index, sentence, expected 'label'"
    ):
        hub.load("sst2", "test", data=data)


def test_what_is_on_github_alone_says_how_to_get_it(data):
    folder = data / "AGI-Edgerunners" / "LLM-Adapters"
    command = "git clone --depth 1 https://github.com/AGI-Edgerunners/LLM-Adapters "
    assert missing("commonsense17k", data) == f"not in {folder}"
    with pytest.raises(FileNotFoundError, match=command + str(folder)):
        hub.load("commonsense17k", "train", data=data)

    assert missing("commonsense17k", None) == "not prepared"
    with pytest.raises(FileNotFoundError, match="is not on the hub") as caught:
        hub.load("commonsense17k", "train")
    for words in (command + "DATA/AGI-Edgerunners/LLM-Adapters", "set PARA_DATA"):
        assert words in str(caught.value)
    source = sources.find("commonsense17k")
    assert hub.command(source, folder) == command + str(folder)
    assert hub.folder_of(source, data) == folder


def test_what_is_nowhere_says_both_ways(data):
    with pytest.raises(FileNotFoundError) as caught:
        hub.load("gsm8k", "test", data=data)
    for words in (
        f"hf download openai/gsm8k --repo-type dataset --local-dir {data}/openai/gsm8k",
        f"https://github.com/openai/grade-school-math {data}/openai/grade-school-math",
    ):
        assert words in str(caught.value)


def test_the_hub_s_folder_goes_first(put, counts, data):
    put("openai/grade-school-math/grade_school_math/data/test.jsonl", "no JSON")
    source = sources.find("gsm8k")
    assert hub.folder_of(source, data) == data / "openai" / "grade-school-math"
    (data / "openai" / "gsm8k").mkdir()

    assert hub.folder_of(source, data) == data / "openai" / "gsm8k"
    assert missing("gsm8k", data).startswith("no files of main/train, main/test in ")


CLASSES = [f"class {x}" for x in range(10)]


@pytest.fixture
def cifar(data, counts):
    """CIFAR-10 with two pictures of each class to test on, of which all are unequal."""
    folder = data / "cyizhuo" / "CIFAR-10-dataset" / "test"
    generator = np.random.default_rng(0)
    arrays = generator.integers(256, size=(20, 3, 5, 3), dtype=np.uint8)
    for number, array in enumerate(arrays):
        place = folder / CLASSES[number // 2]
        place.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(array).save(place / f"{number:02}.png")
    counts("cifar10", test=20)
    return arrays


def test_folders_of_pictures_are_read(cifar, data):
    got = images.load("cifar10", "test", data=data)

    assert got.classes == tuple(CLASSES)
    np.testing.assert_array_equal(got.labels, np.arange(20) // 2)
    for array, picture in zip(cifar, got.pictures, strict=True):
        np.testing.assert_array_equal(picture, array)
    with pytest.raises(FileNotFoundError, match="'cifar10', train, not found: there i"):
        images.load("cifar10", "train", data=data)


def test_a_missing_class_is_an_error_of_a_subset_too(cifar, data):
    """Or else the numbers of the classes behind it would be others."""
    place = data / "cyizhuo" / "CIFAR-10-dataset" / "test" / CLASSES[3]
    for file in place.iterdir():
        file.unlink()
    assert len(images.load("cifar10", "test", data=data, subset=True).labels) == 18
    place.rmdir()
    with pytest.raises(ValueError, match="has 9 classes, expected 10"):
        images.load("cifar10", "test", data=data, subset=True)


def test_the_documented_table_has_every_clone_with_its_counts():
    page = pathlib.Path(__file__).parents[3] / "docs" / "models.md"
    cells = [x.split("|")[1:-1] for x in page.read_text().splitlines()]
    rows = {x[0].strip(" `"): x for x in cells if len(x) == 5 and "/" in x[1]}

    for name, clone in clones.CLONES.items():
        _, repo, _, *counts = (x.strip(" `").replace(",", "") for x in rows.pop(name))
        assert repo == clone.repo
        parts = sources.find(name).parts
        want = {x: str(parts[x].count) for x in parts}
        assert counts == [want.get(x, "") for x in ("train", "test")]
    assert not rows.keys() - {"set"}


@pytest.mark.parametrize("name", clones.CLONES)
def test_the_real_files_have_their_counts(name, data):
    """With PARA_DATA, a folder of clones."""
    source = sources.find(name)
    folder = REAL / clones.CLONES[name].repo
    if hub.folder_of(source, REAL) != folder or not folder.is_dir():
        pytest.skip(f"no clone of {clones.CLONES[name].repo} in PARA_DATA")
    for part, wanted in source.parts.items():
        assert len(hub.load(name, part, data=REAL)) == wanted.count
