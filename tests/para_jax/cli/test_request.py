"""Test that a request keeps its command's words, in manifests and across processes."""

import dataclasses
import json
import pathlib
import pickle
import shlex

import numpy as np
import pytest

import para_jax as para
from para_jax._pruning.policies import POLICIES
from para_jax.cli import commands, fleet_run, parser
from para_jax.cli.request import Compress, Convert, Fleet, Inspect, Sweep
from para_jax.cli.words import BUDGETS

# A fleet's words, and their manifest line from before there were requests, byte for
# byte: older fleets must be able to continue.
RECIPES = [
    (
        "in/* out --gamma 0.25",
        (
            b'{"recipe": {"adapters_only": false, "gamma": 0.25, "method": "auto", '
            b'"scope": "global", "min_rank": 0, "multiple_of": 1}}\n'
        ),
    ),
    (
        (
            "in/* out --bytes 1.5MB --for vllm --adapters-only --min-rank 1 "
            "--max-rank 8 --multiple-of 2 --scope local --dtype bfloat16 --method qr "
            "--jobs 2 --json --overwrite --debug"
        ),
        (
            b'{"recipe": {"adapters_only": true, "bytes": 1500000, "engine": "vllm", '
            b'"method": "qr", "scope": "local", "min_rank": 1, "max_rank": 8, '
            b'"multiple_of": 2, "dtype": "bfloat16"}}\n'
        ),
    ),
    (
        (
            "in/* out --rank 4 --format peft --profile padded --model gemma3 "
            "--ecosystem tunix --head-dim 256 --layers 26 --layout qwix --alpha 16 "
            "--stack-axis none --ray"
        ),
        (
            b'{"recipe": {"adapters_only": false, "rank": 4, "format": "peft", '
            b'"profile": "padded", "model": "gemma3", "ecosystem": "tunix", '
            b'"head_dim": 256, "layers": 26, "method": "auto", "scope": "global", '
            b'"min_rank": 0, "multiple_of": 1, "layout": "qwix", "alpha": 16, '
            b'"stack_axis": "none"}}\n'
        ),
    ),
    (
        "a b out --epsilon 0.9 --scale 0.5 --stack-axis 0",
        (
            b'{"recipe": {"adapters_only": false, "epsilon": 0.9, "method": "auto", '
            b'"scope": "global", "min_rank": 0, "multiple_of": 1, "scale": 0.5, '
            b'"stack_axis": 0}}\n'
        ),
    ),
]


@pytest.mark.parametrize(("words", "line"), RECIPES)
def test_a_recipe_is_the_line_of_older_manifests(words, line):
    request = parser.parse(["fleet", *shlex.split(words)])

    assert json.dumps({"recipe": request.recipe()}).encode() + b"\n" == line


def test_a_fleet_of_an_older_manifest_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(8, 4)), rng.normal(size=(4, 6))
    para.save({"q": para.Adapter(a=a, b=b)}, tmp_path / "in" / "one")
    words, line = RECIPES[0]
    manifest = tmp_path / "out" / "manifest.jsonl"
    manifest.parent.mkdir()
    manifest.write_bytes(line)
    request = parser.parse(["fleet", *shlex.split(words), "--json"])

    assert [commands.run(request), commands.run(request)] == [0, 0]

    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["written"], second["there"]) == (1, 1)
    assert manifest.read_bytes().startswith(line)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Compress, "compress a b --gamma 0.5 --report r.json"),
        (Inspect, "inspect a --engines"),
        (Sweep, "sweep a b --gamma 0.5 0.25 --rank 4"),
        (Fleet, "fleet a b c --gamma 0.5 --ray"),
        (Convert, "convert a b --alpha 16"),
    ],
)
def test_a_request_is_of_its_command_and_is_never_changed(kind, words):
    request = parser.parse(shlex.split(words))

    assert type(request) is kind
    assert pickle.loads(pickle.dumps(request)) == request
    assert hash(request) == hash(parser.parse(shlex.split(words)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.json = True


def test_every_policy_has_a_flag():
    assert list(BUDGETS) == list(POLICIES)


def test_budgets_are_in_the_order_of_the_help():
    request = parser.parse(shlex.split("sweep a b --rank 4 --gamma 0.5 100k"))

    assert request.cut.budgets == (("gamma", 0.5), ("gamma", 100000), ("rank", 4))


def test_a_tenant_has_the_words_of_its_fleet_and_replaces_its_child():
    words = "fleet in/* out --gamma 0.5 --for vllm --alpha 16 --model gemma3"
    request = parser.parse(shlex.split(words))
    source, target = pathlib.Path("in/a"), pathlib.Path("out/a")

    tenant = request.tenant(source, target)

    assert (tenant.source, tenant.target) == (source, target)
    assert (tenant.hints, tenant.cut) == (request.hints, request.cut)
    assert tenant.output == dataclasses.replace(request.output, overwrite=True)
    assert not request.output.overwrite


def test_what_makes_a_child_is_sent_to_other_processes():
    request = parser.parse(["fleet", "in/*", "out", "--gamma", "0.5"])

    work = pickle.loads(pickle.dumps((fleet_run.compressed, request)))

    assert work == (fleet_run.compressed, request)
