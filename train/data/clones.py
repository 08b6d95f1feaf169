"""Sets as repositories on GitHub have them, for a machine that cannot reach the hub.

A folder DATA holds each repository under its name, as

    git clone --depth 1 https://github.com/OWNER/NAME DATA/OWNER/NAME

leaves it; the files that are not named here may be missing. The rows have the columns
of `Source.columns`, by our names, and the classes have the hub's names and numbers. The
questions of LLM-Adapters are instructions already, as those to learn from: their
columns are `WRITTEN`. Runs on the host.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from train.data import forms, sources
from train.data.forms import Row

if TYPE_CHECKING:
    import datasets

WRITTEN = ("instruction", "output", "answer")
"""The columns of a question that is an instruction already."""


class Clone(NamedTuple):
    """The files of a set in a repository on GitHub.

    Attributes:
      repo: Its owner and name.
      parts: The files of each part, joined in this order; of pictures, a folder.
      read: Yields the rows of one of them.
      columns: The names of the columns that are read, by ours.
      classes: The classes by their labels; of pictures, the folders' names are taken.
    """

    repo: str
    parts: Mapping[str, tuple[str, ...]]
    read: Callable[[pathlib.Path], Iterator[Row]]
    columns: Mapping[str, str]
    classes: tuple[str, ...] = ()


def _written(part: str, *folders: str) -> Clone:
    return Clone(
        "AGI-Edgerunners/LLM-Adapters",
        {part: tuple(f"dataset/{x}/{part}.json" for x in folders)},
        forms.json_list,
        {x: x for x in WRITTEN},
    )


def _sentences(
    folder: str,
    columns: tuple[str, ...],
    classes: tuple[str, ...],
    *,
    train: str = "train.tsv",
    read: Callable[[pathlib.Path], Iterator[Row]] = forms.table,
) -> Clone:
    """Return a task of GLUE; the last of `columns` has the labels."""
    *texts, label = columns
    files = {"train": train, "test": "dev.tsv"}
    return Clone(
        "F0restL1n/BERT",
        {part: (f"glue_data/{folder}/{file}",) for part, file in files.items()},
        read,
        dict(zip(("first", "second"), texts, strict=False)) | {"label": label},
        classes,
    )


_WHOLE = "msr_paraphrase_train.txt"


def _paraphrases(path: pathlib.Path) -> Iterator[Row]:
    """Yield MRPC's rows; of Microsoft's file, those that GLUE does not test on.

    GLUE's training part was made in this way. The repository's train.tsv lacks one.
    """

    def pair(row: Row) -> tuple[str, ...]:
        return tuple(_value(row, x) for x in ("#1 ID", "#2 ID"))

    tested = set()
    if path.name == _WHOLE:
        tested = {pair(x) for x in forms.table(path.with_name("dev.tsv"))}
    return (x for x in forms.table(path) if pair(x) not in tested)


def _pictures(repo: str) -> Clone:
    parts = {x: (x,) for x in ("train", "test")}
    return Clone(repo, parts, forms.pictures, {x: x for x in ("image", "label")})


CLONES: Mapping[str, Clone] = {
    "cifar10": _pictures("cyizhuo/CIFAR-10-dataset"),
    "cifar100": _pictures("cyizhuo/CIFAR-100-dataset"),
    "sst2": _sentences("SST-2", ("sentence", "label"), ("negative", "positive")),
    "cola": _sentences(
        "CoLA",
        ("sentence", "label"),
        ("unacceptable", "acceptable"),
        read=functools.partial(
            forms.table, names=("source", "label", "mark", "sentence")
        ),
    ),
    "mrpc": _sentences(
        "MRPC",
        ("#1 String", "#2 String", "Quality"),
        ("not_equivalent", "equivalent"),
        train=_WHOLE,
        read=_paraphrases,
    ),
    "rte": _sentences(
        "RTE",
        ("sentence1", "sentence2", "label"),
        ("entailment", "not_entailment"),
    ),
    "commonsense17k": _written(
        "train", "boolq", "ARC-Easy", "ARC-Challenge", "openbookqa"
    ),
    "boolq": _written("test", "boolq"),
    "piqa": _written("test", "piqa"),
    "siqa": _written("test", "social_i_qa"),
    "hellaswag": Clone(
        "klosax/hellaswag_text_data",
        {"test": ("hellaswag_val_full.txt.bz2",)},
        forms.endings,
        {x: x for x in ("activity_label", "ctx", "endings", "label")},
    ),
    "winogrande": _written("test", "winogrande"),
    "arc-e": _written("test", "ARC-Easy"),
    "arc-c": _written("test", "ARC-Challenge"),
    "obqa": _written("test", "openbookqa"),
    "gsm8k": Clone(
        "openai/grade-school-math",
        {x: (f"grade_school_math/data/{x}.jsonl",) for x in ("train", "test")},
        forms.json_lines,
        {"question": "question", "solution": "answer"},
    ),
    "math": Clone(
        "MChatzakis/ChatMGL",
        {
            part: tuple(
                f"data/MATH/{folder}/{subject}.json"
                for subject in sources.find("math").configs
                for folder in folders
            )
            # Part of MATH's training part was set aside there.
            for part, folders in (("train", ("train", "val")), ("test", ("test",)))
        },
        forms.json_list,
        {"question": "problem", "solution": "solution"},
    ),
}
"""The files of those sets that are on GitHub, by the set's name."""


def command(name: str, folder: pathlib.Path) -> str:
    """Return the command to bring the repository of a set to `folder`."""
    return f"git clone --depth 1 https://github.com/{CLONES[name].repo} {folder}"


def missing(name: str, folder: pathlib.Path) -> list[str]:
    """Return the files of a set, all its parts, that are not in a clone."""
    files = [file for part in CLONES[name].parts.values() for file in part]
    return [x for x in files if not (folder / x).exists()]


def load(name: str, part: str, folder: pathlib.Path) -> "datasets.Dataset":
    """Load one part of a set from a clone; how many rows there are is not checked.

    Args:
      name: One of `CLONES`.
      part: One of the set's parts.
      folder: The clone.

    Raises:
      FileNotFoundError: if one of its files is not there.
      ValueError: if a row is not what it should be.
    """
    import datasets

    clone = CLONES[name]
    paths = [folder / x for x in clone.parts[part]]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"Data set '{name}', {part}, not found: there is no '{path}'. Bring "
                f"the whole repository here:\n    {command(name, folder)}"
            )
    rows = [row for path in paths for row in clone.read(path)]
    columns = {
        ours: [_value(row, theirs) for row in rows]
        for ours, theirs in clone.columns.items()
    }
    classes = clone.classes
    if clone.read is forms.pictures:
        classes = forms.classes(paths[0])
    if classes:
        pairs = zip(rows, columns["label"], strict=True)
        columns["label"] = [_label(row, x, classes) for row, x in pairs]
    return datasets.Dataset.from_dict(columns, _features(clone, classes))


def _features(clone: Clone, classes: tuple[str, ...]) -> "datasets.Features":
    import datasets

    text = datasets.Value("string")
    kinds: dict[str, Any] = {
        "image": datasets.Image(),
        "endings": datasets.Sequence(text),
    }
    if classes:
        kinds["label"] = datasets.ClassLabel(names=list(classes))
    return datasets.Features({x: kinds.get(x, text) for x in clone.columns})


def _value(row: Row, name: str) -> Any:
    if name not in row.values:
        raise ValueError(
            f"{row.where} has {', '.join(row.values)}, expected '{name}' among them. "
            "Is it another file?"
        )
    return row.values[name]


def _label(row: Row, label: str, classes: tuple[str, ...]) -> int:
    """Return the number of a class, from its name or its number."""
    if label in classes:
        return classes.index(label)
    numbers = [*map(str, range(len(classes)))]
    if label not in numbers:
        raise ValueError(
            f"{row.where} has the label '{label}', expected one of "
            f"{', '.join((*numbers, *classes))}. Is it a file without labels?"
        )
    return int(label)
