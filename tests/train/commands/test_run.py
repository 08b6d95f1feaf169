"""The command `run` as a user types it."""

import contextlib
import dataclasses
import json
import re

import pytest

import para_jax as para
from train import __main__
from train.commands import arguments
from train.methods import METHODS, lora
from train.models import pretrained
from train.presets import PRESETS
from train.runs import folder, outcome
from train.subjects import Folders

METHOD_LIST = f"There are: {', '.join(METHODS)}"


@pytest.fixture
def stop(capsys, tmp_path, monkeypatch):
    """Return a function to run a failing command and return its message."""
    monkeypatch.chdir(tmp_path)

    def run(*words, status=2):
        with pytest.raises(SystemExit) as stopped:
            __main__.main(words)
        assert stopped.value.code == status
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert not list(tmp_path.iterdir())
        return said.removeprefix("python -m train: ").rstrip("\n")

    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rnu", "Unknown command 'rnu'. Did you mean 'run'? There are: run, "),
        (
            "run moovie",
            "Unknown preset 'moovie'. Did you mean 'movie'? There are: movie, amazon, ",
        ),
        ("run x", "Unknown preset 'x'. There are: movie, "),
        ("run tiny --method", "--method wants a name after it."),
        (
            "run tiny --method lroa",
            f"Unknown method 'lroa'. Did you mean 'lora'? {METHOD_LIST}",
        ),
        ("run tiny --method=Para", "Unknown method 'Para'. Did you mean 'para'?"),
        (
            "run tiny --stepz 3",
            "Unknown option '--stepz'. Did you mean --steps? There are: --task, ",
        ),
        ("run tiny --method.rnk=3", "Unknown option '--method.rnk'. Did you mean --me"),
        ("run tiny --cut.gammas 0.5", "Unknown option '--cut.gammas'."),
        ("run tiny extra", "Unknown option 'extra'. There are: "),
        ("run tiny --steps x", "Error parsing --steps: invalid literal for int()"),
        ("run tiny --steps", "Missing value for argument '--steps'."),
        ("run tiny --dtype int8", "invalid choice 'int8' for argument '--dtype'."),
        ("run tiny --steps 0", "steps is 0, expected at least 1."),
        ("run tiny --seeds 1 1", "seeds is [1, 1], expected different numbers."),
        ("run tiny --seeds", "seeds is [], expected different numbers."),
        ("run tiny --batch 9 --accumulate 2", "A batch of 9 cannot be computed in 2 "),
        (
            "run tiny --batch 32 --devices 3",
            (
                "A batch of 32 cannot be computed in 1 equal parts on 3 devices. "
                "Choose a batch that is a multiple of 3, or fewer parts or devices."
            ),
        ),
        ("run tiny --devices 64 --batch 64", "devices is 64, and this machine has "),
        ("run tiny --method.rank 0", "rank is 0, expected at least 1."),
        ("run tiny --method.share 2", "share is 2, expected above 0, up to 1."),
        ("run tiny --checkpoint-every 0", "--checkpoint-every is 0, expected at"),
        ("run tiny --max-length 600", "max_length is 600, and the encoder has 512"),
        ("run tiny --steps 4 --method adalora", "steps is 4, expected at least 6"),
        ("run tiny --task film", "Unknown task 'film', expected movie, amazon, "),
        ("run tiny --method para --cut.gammas 2", "gamma must be in (0, 1], got 2."),
        (
            "run tiny --method para --cut.gammas",
            "Nothing is to be cut",
        ),
        ("grid --preset x", "Unknown preset 'x'. There are: sentiment, "),
        ("grid --tasks x", "Unknown task 'x'. There are: movie, "),
        ("grid --methods x", "Unknown method 'x'. There are: lora-16, "),
        ("cost --methods x", "Unknown method 'x'. There are: lora-16, "),
        ("table x", "'x' is unknown, expected one of a, b, "),
        ("figure x --out .", "'x' is unknown, expected one of rank-maps, "),
        ("grid --tiny --data x", "--tiny makes models and data of its own, so it "),
        ("cost --tiny --weights x", "--tiny makes models and data of its own, so it "),
        (
            "run movie --model a/b",
            "The task 'movie' has a model of its own, and model is 'a/b'. Leave",
        ),
        ("grid --model a/b", "The task 'movie' has a model of its own, and model is "),
        ("cost --model a/b", "The task 'movie' has a model of its own, and model is "),
        (
            "grid --preset paper/glue --tiny --model a/b",
            "--tiny makes its models, and --model is 'a/b', expected google/siglip2",
        ),
        ("check movie --model a/b", "The preset 'movie' has a model of its own, and"),
    ],
)
def test_a_mistake_is_one_sentence(stop, words, said):
    assert stop(*words.split()).startswith(said)


def test_all_that_may_be_overridden_is_listed(stop):
    said = stop("run", "tiny", "--method", "para", "--x", "1")

    for name in ("--steps", "--seed", "--method.rank", "--cut.gammas", "--weights"):
        assert f" {name}," in f"{said.rstrip('.')},"


def test_another_encoder_is_one_sentence(stop, backbone, monkeypatch):
    place, sha256 = backbone
    monkeypatch.setenv(pretrained.FOLDER_VARIABLE, str(place))

    said = stop("run", "tiny")

    assert f"has the sha256 {sha256}, expected {pretrained.SHA256}" in said


def test_a_missing_encoder_is_said(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(pretrained.FOLDER_VARIABLE, "nowhere")

    with pytest.raises(SystemExit) as stopped:
        __main__.main(["run", "tiny"])

    assert stopped.value.code == 2
    assert "not found: not in 'nowhere'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_foreign_folder_is_one_sentence(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(SystemExit) as stopped:
        __main__.main(["run", "tiny", "--out", str(tmp_path)])

    assert stopped.value.code == 2
    assert "so it is no run's folder. Choose another" in capsys.readouterr().err


def test_a_comparison_of_a_model_that_is_not_there_begins_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)

    for command in ("grid", "cost"):
        words = [command, "--preset", "paper/glue", "--weights", "x", "--model", "a/b"]
        with pytest.raises(SystemExit) as stopped:
            __main__.main(words)

        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith(
            "python -m train: The model a/b was not found: there is no folder 'x/a/b'. "
        )
        assert not list(tmp_path.iterdir())


def test_a_run_from_before_there_was_a_choice_of_models_goes_on(tmp_path):
    from train.commands import run

    # As they were recorded then: all fields of a run but the model.
    made = dataclasses.asdict(PRESETS["movie"])
    del made["model"]
    made["method"] = {"name": "lora", **made["method"]}
    (tmp_path / folder.CONFIG).write_text(json.dumps({"run": made}))

    folder.check(tmp_path, run.settings("lora", PRESETS["movie"]))

    other = dataclasses.replace(PRESETS["movie"], task="mrpc", model="a/b")
    assert run.settings("lora", other)["model"] == "a/b"
    with pytest.raises(ValueError, match='its model is "not there", and "a/b" is aske'):
        folder.check(
            tmp_path, run.settings("lora", dataclasses.replace(other, task="movie"))
        )


@pytest.mark.parametrize("command", ["grid", "grid --tiny", "cost", "collect"])
@pytest.mark.parametrize("below", ["", "/results"])
def test_a_file_is_no_place_for_results(command, below, tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    out = ["--out", f"{tmp_path / 'thesis.tex'}{below}"]

    with pytest.raises(SystemExit) as stopped:
        __main__.main([*command.split(), *out])

    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"python -m train: '{tmp_path / 'thesis.tex'}' is a file, expected a folder. "
        "Choose another place with --out.\n"
    )


def test_words_become_settings():
    words = "movie --method rslora --seed 3 --method.rank=8 --learning-rates 0.1 0.2"

    given = arguments.parse([*words.split(), "--dtype", "bfloat16", "--out", "x/y"])

    assert given.name == "rslora"
    assert given.run == dataclasses.replace(
        PRESETS["movie"],
        method=lora.RsLora(rank=8),
        seeds=(3,),
        learning_rates=(0.1, 0.2),
        dtype="bfloat16",
    )
    assert str(given.out) == "x/y"
    assert given.folders == Folders()
    assert given.cut is None
    assert arguments.parse(["tiny", "--model", "a/b"]).run.model == "a/b"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_named(method):
    given = arguments.parse(["nyt", "--method", method])

    assert given.run == dataclasses.replace(PRESETS["nyt"], method=METHODS[method])


@pytest.mark.parametrize(
    "words", [["-h"], ["run"], ["run", "-h"], ["run", "tiny", "-h"]]
)
def test_help_is_shown(words, capsys):
    with contextlib.suppress(SystemExit):
        __main__.main(words)

    shown, said = capsys.readouterr()
    assert shown.startswith("usage: python -m train")
    assert not said


def shown_table(text):
    """Return the numbers of the lines beginning with a seed."""
    return re.findall(r"^ +(\d+) +(\S+) +(\d+) +([\d,]+) +(\S+)% +(\S+)%$", text, re.M)


@pytest.fixture
def words(backbone, tmp_path, monkeypatch):
    place, sha256 = backbone
    monkeypatch.setenv(pretrained.FOLDER_VARIABLE, str(place))
    monkeypatch.chdir(tmp_path)
    return ["run", "tiny", "--method.rank", "4", "--backbone", sha256, "--seed", "5"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(words, tmp_path, capsys, method):
    words = [x for x in words if x not in ("--method.rank", "4")]

    __main__.main([*words, "--method", method])

    shown = capsys.readouterr().out
    assert len(shown_table(shown)) == 1
    noted = method in ("adalora", "sora", "dora")
    assert ("shrunk" in " ".join(shown.split())) == noted
    (place,) = (tmp_path / "runs" / "amazon").iterdir()
    config = json.loads((place / folder.CONFIG).read_text())
    assert config["run"]["method"]["name"] == method
    (row,) = folder.results(place)
    adapter = para.load(place / folder.PARENT / "seed-5-rate-0.001")
    assert sum(x.rank for x in adapter.adapters.values()) >= row["rank_total"] > 0


@pytest.mark.slow
def test_a_folder_says_what_it_is(words, tmp_path, capsys):
    __main__.main([*words, "--out", "here"])

    config = json.loads((tmp_path / "here" / folder.CONFIG).read_text())

    assert config["preset"] == "tiny"
    assert config["command"].startswith("python -m train run tiny --method.rank 4")
    assert config["run"]["method"] == {
        "name": "lora",
        "rank": 4,
        "scale": 2.0,
        "share": 1.0,
    }
    assert config["run"]["seeds"] == [5]
    names = {"para_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"}
    assert config["versions"].keys() == names
    assert "cpu" in config["device"]
    assert "here" in capsys.readouterr().out
    __main__.main([*words, "--out", "here"])
    assert "It is complete already." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        __main__.main([*words, "--out", "here", "--seed", "6"])
    assert "its seeds is [5], and [6] is asked for" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_trained_once_and_cut_twice(words, tmp_path, capsys):
    __main__.main(words)
    (first,) = shown_table(capsys.readouterr().out)
    __main__.main([*words, "--method", "para", "--cut.gammas", "0.5", "0.25"])
    parent, *children = shown_table(capsys.readouterr().out)
    __main__.main([*words, "--method", "local"])
    again, local = shown_table(capsys.readouterr().out)

    (place,) = (tmp_path / "runs" / "amazon").iterdir()
    assert place.name.startswith("lora-")
    assert first[:4] == ("5", "0.001", "24", f"{4 * (4 * 96 + 2 * 104):,}")
    assert first == parent == again
    assert [x[2] for x in children] == ["12", "6"]
    assert local[2:4] == ("6", f"{4 * 96 + 2 * 104}")
    names = {x.name for x in (place / folder.CHILDREN).iterdir()}
    assert names == {"para-gamma-0.5", "para-gamma-0.25", "local-gamma-0.25"}
    name = "seed-5-rate-0.001"
    kept = para.load(place / folder.CHILDREN / "para-gamma-0.25" / name)
    wanted = para.compress(para.load(place / folder.PARENT / name), para.Gamma(0.25))
    assert {p: x.rank for p, x in kept.adapters.items()} == {
        p: x.rank for p, x in wanted.adapters.items()
    }
    for path, x in kept.adapters.items():
        assert (x.a == wanted.adapters[path].a).all()


def test_a_run_that_goes_on_elsewhere_says_so(words, tmp_path, capsys):
    __main__.main([*words, "--out", "here"])
    (tmp_path / "here" / folder.RESULTS).unlink()
    path = tmp_path / "here" / folder.CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "device": "1 x abacus"}))
    capsys.readouterr()

    __main__.main([*words, "--out", "here"])

    shown = capsys.readouterr().out
    assert "It was begun with device 1 x abacus, and goes on with " in shown
    assert "Goes on from step 20." in shown
    assert "versions" not in shown


def test_ctrl_c_leaves_a_run_to_go_on_with(words, capsys):
    patch = pytest.MonkeyPatch()

    def interrupted(*args):
        raise KeyboardInterrupt

    patch.setattr(outcome, "save", interrupted)
    with pytest.raises(SystemExit) as stopped:
        __main__.main(words)
    assert stopped.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err

    patch.undo()
    __main__.main(words)
    assert "Goes on from step 20." in capsys.readouterr().out


def test_a_run_that_diverges_says_when(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main([*words, "--learning-rates", "1e38"])

    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert "Training diverged (seed 5): at step " in said
    assert "Lower it with --learning-rates" in said
    assert "Traceback" not in said
