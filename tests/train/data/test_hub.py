import json
import pathlib
import shutil

import datasets
import pytest

from train.data import hub, sources

TEXTS = {"question": ["one?", "two?", "three?"], "answer": ["1", "2", "3"]}


def problems(**columns):
    return datasets.Dataset.from_dict({**TEXTS, **columns})


def gsm8k(write, counts, count=3):
    write("openai/gsm8k", {"main": {"test": problems()}})
    counts("gsm8k", test=count)


def test_columns_that_are_read_have_our_names_and_others_are_left_out(
    write, counts, data
):
    write("openai/gsm8k", {"main": {"test": problems(hint=["a", "b", "c"])}})
    counts("gsm8k", test=3)

    rows = hub.load("gsm8k", "test", data=data)

    assert rows.to_dict() == {
        "question": TEXTS["question"],
        "solution": ["1", "2", "3"],
    }


def test_what_the_library_saved_is_read_from_the_configuration_s_folder(data, counts):
    folder = data / "openai" / "gsm8k" / "main"
    datasets.DatasetDict({"test": problems()}).save_to_disk(folder)
    counts("gsm8k", test=3)

    assert hub.load("gsm8k", "test", data=data)["solution"][:] == ["1", "2", "3"]
    with pytest.raises(ValueError, match="has no split 'train', got test"):
        hub.load("gsm8k", "train", data=data)


def test_json_is_read(data, counts):
    folder = data / "meta-math" / "MetaMathQA"
    folder.mkdir(parents=True)
    rows = [{"type": "t", "query": "2?", "original_question": "", "response": "2"}]
    (folder / "MetaMathQA-395K.json").write_text(json.dumps(rows))
    counts("metamathqa", train=1)

    got = hub.load("metamathqa", "train", data=data)

    assert got.to_list() == [{"question": "2?", "solution": "2"}]


def test_what_the_hub_has_converted_is_read_without_a_readme(data, counts):
    row = {"goal": "g", "sol1": "a", "sol2": "b", "label": 1}
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        folder = data / "ybisk" / "piqa" / "plain_text" / split
        folder.mkdir(parents=True)
        datasets.Dataset.from_list([row] * count).to_parquet(folder / "0000.parquet")
    counts("piqa", test=2)

    assert hub.load("piqa", "test", data=data).to_list() == [row] * 2


def test_the_environment_names_the_folder(write, counts, data, monkeypatch):
    gsm8k(write, counts)
    monkeypatch.setenv("PARA_DATA", str(data))

    assert len(hub.load("gsm8k", "test")) == 3


def test_configurations_are_joined_in_their_order(write, counts, data):
    configs = sources.find("math").configs
    write(
        "EleutherAI/hendrycks_math",
        {
            name: {
                "test": datasets.Dataset.from_dict(
                    {
                        "problem": [name],
                        "level": ["Level 1"],
                        "solution": ["\\boxed{1}"],
                    }
                )
            }
            for name in reversed(configs)
        },
    )
    counts("math", test=7)

    assert tuple(hub.load("math", "test", data=data)["question"][:]) == configs


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_rows_is_an_error(write, counts, data, count):
    gsm8k(write, counts, count)
    message = (
        rf"'gsm8k' \(.*openai/gsm8k\), test has 3 rows, expected {count}. Is it "
        "incomplete"
    )
    with pytest.raises(ValueError, match=message):
        hub.load("gsm8k", "test", data=data)


def test_a_subset_is_taken_where_it_is_meant_but_no_more_than_all(write, counts, data):
    gsm8k(write, counts, 1319)
    assert len(hub.load("gsm8k", "test", data=data, subset=True)) == 3

    counts("gsm8k", test=2)
    with pytest.raises(ValueError, match="has 3 rows, expected 1 to 2 of a subset"):
        hub.load("gsm8k", "test", data=data, subset=True)


def test_a_subset_is_taken_though_the_readme_states_more(write, counts, data):
    gsm8k(write, counts, 1319)
    info = [
        "dataset_info:",
        "- config_name: main",
        "  features:",
        *(f"  - name: {x}\n    dtype: string" for x in TEXTS),
        "  splits:",
        "  - name: test\n    num_bytes: 7\n    num_examples: 1319",
        "---",
    ]
    readme = data / "openai" / "gsm8k" / "README.md"
    lines = readme.read_text().splitlines()[:-1]
    readme.write_text("\n".join([*lines, *info, ""]))
    with pytest.raises(datasets.exceptions.NonMatchingSplitsSizesError):
        datasets.load_dataset(str(data / "openai" / "gsm8k"), "main", split="test")

    assert len(hub.load("gsm8k", "test", data=data, subset=True)) == 3


def test_a_set_without_the_columns_is_refused(write, counts, data):
    write("openai/gsm8k", {"main": {"test": problems().remove_columns("answer")}})
    counts("gsm8k", test=3)
    message = r"has the columns \['question'\], and not \['answer'\]. Is it openai/gsm8"
    with pytest.raises(ValueError, match=message):
        hub.load("gsm8k", "test", data=data)


def test_another_number_of_classes_is_an_error(write, counts, data):
    label = datasets.ClassLabel(names=["a", "b", "c"])
    rows = datasets.Dataset.from_dict(
        {"sentence": ["x"], "label": [1]},
        datasets.Features({"sentence": datasets.Value("string"), "label": label}),
    )
    write("nyu-mll/glue", {"sst2": {"validation": rows}})
    counts("sst2", test=1)
    with pytest.raises(ValueError, match=r"'sst2' .* has 3 classes, expected 2"):
        hub.load("sst2", "test", data=data)


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="'boolq' has no part 'train', expected test"):
        hub.load("boolq", "train")


def test_a_missing_folder_says_how_to_get_it(data):
    with pytest.raises(FileNotFoundError) as caught:
        hub.load("piqa", "test", data=data)

    assert (
        "hf download ybisk/piqa --repo-type dataset --revision refs/convert/parquet "
        f"--local-dir {data}/ybisk/piqa"
    ) in str(caught.value)


def test_without_a_network_the_error_says_how_to_bring_the_set(data):
    with pytest.raises(
        ConnectionError, match="--local-dir DATA/openai/gsm8k"
    ) as caught:
        hub.load("gsm8k", "test")
    assert "set PARA_DATA" in str(caught.value)


def missing(name, data=None):
    return hub.missing(sources.find(name), data)


def all_of_gsm8k(write):
    write("openai/gsm8k", {"main": {"train": problems(), "test": problems()}})


def test_a_set_is_there_if_the_files_of_its_parts_are(write, data):
    all_of_gsm8k(write)

    assert not missing("gsm8k", data)
    assert missing("math", data) == f"not in {data / 'EleutherAI/hendrycks_math'}"


def test_files_that_are_not_there_are_named(write, data):
    folder = data / "openai" / "gsm8k"
    folder.mkdir(parents=True)
    (folder / "main").mkdir()
    nothing = f"no files of main/train, main/test in {folder}"
    assert missing("gsm8k", data) == nothing
    shutil.rmtree(folder)
    all_of_gsm8k(write)

    (folder / "main" / "train-00000-of-00001.parquet").unlink()
    for split in ("train", "test"):
        with pytest.raises((OSError, ValueError)):
            hub.load("gsm8k", split, data=data)
    assert missing("gsm8k", data) == nothing


def test_a_configuration_s_files_are_not_those_of_another(write, data):
    write("nyu-mll/glue", {"mrpc": {x: problems() for x in ("train", "validation")}})

    assert not missing("mrpc", data)
    assert missing("cola", data) == (
        f"no files of cola/train, cola/validation in {data / 'nyu-mll' / 'glue'}"
    )


def test_few_of_many_names_are_said(data):
    (data / "EleutherAI" / "hendrycks_math").mkdir(parents=True)

    assert missing("math", data).startswith(
        "no files of algebra/train, algebra/test, counting_and_probability/train and "
        "11 more in "
    )


def test_what_the_library_saved_is_there_if_its_splits_are(data):
    folder = data / "openai" / "gsm8k" / "main"
    datasets.DatasetDict({"train": problems(), "test": problems()}).save_to_disk(folder)
    assert not missing("gsm8k", data)

    for file in (folder / "test").glob("*.arrow"):
        file.unlink()

    assert missing("gsm8k", data).startswith("no files of main/test in ")


def test_json_and_what_the_hub_has_converted_are_there(data):
    folder = data / "meta-math" / "MetaMathQA"
    folder.mkdir(parents=True)
    (folder / "README.md").touch()
    assert missing("metamathqa", data) == f"no files of train in {folder}"
    (folder / "MetaMathQA-395K.json").write_text("[not read")
    assert not missing("metamathqa", data)
    folder = data / "ybisk" / "piqa" / "plain_text" / "validation"
    folder.mkdir(parents=True)
    (folder / "0000.parquet").touch()
    assert not missing("piqa", data)


@pytest.mark.parametrize(
    ("name", "config", "folder"),
    [
        ("gsm8k", "main", "openai___gsm8k"),
        ("metamathqa", "default", "meta-math___meta_math_qa"),
    ],
)
def test_a_set_is_there_if_the_library_has_prepared_it(
    write, counts, data, name, config, folder
):
    """A set that the library finds without a network counts as there."""
    source = sources.find(name)
    columns = source.columns["question"], source.columns["solution"]
    rows = datasets.Dataset.from_dict({x: ["a", "b"] for x in columns})
    part = "train" if name == "metamathqa" else "test"
    write(source.hub, {config if source.configs else "": {part: rows}})
    counts(name, **{part: 2})
    assert hub.missing(source) == "not prepared"

    hub.load(name, part, data=data)  # It writes what a download would, under no name.
    cache = pathlib.Path(datasets.config.HF_DATASETS_CACHE)
    (prepared,) = (x for x in cache.iterdir() if x.is_dir())
    prepared.rename(cache / folder)
    shutil.rmtree(data)

    assert not hub.missing(source)
    found = datasets.load_dataset(source.hub, config, split=part)
    assert len(found) == 2
