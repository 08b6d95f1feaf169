"""Test checkpoints of other programs: read as written, children in the same form."""

import json

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp0
import pytest
from orbax.checkpoint import v1 as ocp

import para_jax as para

R = 3


def array(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f4")


def params(layers=2):
    return {
        "body": {
            "layers": {
                str(i): {
                    "q": {
                        "kernel": array(8, 5, seed=i),
                        "kernel_lora_a": array(8, R, seed=i),
                        "kernel_lora_b": array(R, 5, seed=i),
                    },
                    "norm": {"scale": array(8, seed=i)},
                }
                for i in range(layers)
            }
        }
    }


def shapes(path):
    tree = ocp.metadata(path).metadata
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(key, simple=True, separator="/"): getattr(x, "shape", ())
        for key, x in leaves
    }


def compressed(source, target, **facts):
    child = para.compress(para.load(source, **facts), para.Gamma(0.5))
    para.save(child, target, format="orbax")
    return child


def test_the_child_has_the_tree_of_its_parent_with_smaller_factors(tmp_path):
    ocp.save(tmp_path / "run", params())

    child = compressed(tmp_path / "run", tmp_path / "child", alpha=6)

    got = shapes(tmp_path / "child")
    assert got.keys() == shapes(tmp_path / "run").keys()
    ranks = [len(child.adapters[f"body/layers/{i}/q"].b) for i in range(2)]
    assert sum(ranks) == 3
    for i, rank in enumerate(ranks):
        at = f"body/layers/{i}"
        assert got[f"{at}/q/kernel_lora_a"] == (8, rank)
        assert got[f"{at}/q/kernel_lora_b"] == (rank, 5)


def test_what_is_no_adapter_passes_through_bit_for_bit(tmp_path):
    ocp.save(tmp_path / "run", params())

    compressed(tmp_path / "run", tmp_path / "child", alpha=6)

    tree = ocp.load(
        tmp_path / "child",
        jax.tree.map(lambda _: np.ndarray, ocp.metadata(tmp_path / "child").metadata),
    )
    for i, layer in tree["body"]["layers"].items():
        want = params()["body"]["layers"][i]
        np.testing.assert_array_equal(layer["q"]["kernel"], want["q"]["kernel"])
        np.testing.assert_array_equal(layer["norm"]["scale"], want["norm"]["scale"])


def test_adapters_only_does_not_even_open_the_base_weights(tmp_path):
    saving = ocp0.args.PyTreeSave(params())
    with ocp0.Checkpointer(ocp0.PyTreeCheckpointHandler(use_ocdbt=False)) as writer:
        writer.save(tmp_path / "run", saving)  # One folder an array.
    weights = list(tmp_path.rglob("*.kernel/0*"))
    assert len(weights) == 2
    for path in weights:
        path.unlink()

    compressed(tmp_path / "run", tmp_path / "child", alpha=6, adapters_only=True)

    assert {x.rpartition("/")[2] for x in shapes(tmp_path / "child")} == {
        "kernel_lora_a",
        "kernel_lora_b",
    }


def test_the_moments_of_an_optimizer_are_no_adapters_and_are_left_out(tmp_path):
    tree = {"params": params(), "opt_state": {"0": {"mu": params()}}, "step": 7}
    ocp.save(tmp_path / "run", tree)

    child = compressed(tmp_path / "run", tmp_path / "child", alpha=6)

    assert all(path.startswith("body/layers") for path in child.adapters)
    kept = shapes(tmp_path / "child")
    assert not [path for path in kept if path.startswith("opt_state")]


def test_a_step_of_a_checkpoint_manager_is_read_by_its_folder(tmp_path):
    with ocp0.CheckpointManager(tmp_path / "run") as manager:
        manager.save(
            5,
            args=ocp0.args.Composite(
                model_params=ocp0.args.PyTreeSave(params()),
                optimizer_state=ocp0.args.PyTreeSave({"count": np.ones(1)}),
            ),
        )

    got = para.load(tmp_path / "run" / "5", alpha=6)

    assert list(got.adapters) == ["body/layers/0/q", "body/layers/1/q"]
    item = para.load(tmp_path / "run" / "5" / "model_params", alpha=6)
    assert item.adapters.keys() == got.adapters.keys()
    with pytest.raises(ValueError, match="Name one of the steps in it, such as '5'"):
        para.load(tmp_path / "run", alpha=6)


def test_alpha_is_found_where_maxtext_writes_it_and_written_as_the_rank(tmp_path):
    tree = {
        "decoder": {"q": {"kernel_lora_a": array(8, R), "kernel_lora_b": array(R, 5)}}
    }
    lora = {"lora_rank": R, "lora_alpha": 12.0, "enable_lora": True}
    ocp.save(
        tmp_path / "run", tree, custom_metadata={"lora": lora, "scan_layers": False}
    )

    assert para.load(tmp_path / "run").adapters["decoder/q"].scale == 4.0
    assert para.load(tmp_path / "run", alpha=3).adapters["decoder/q"].scale == 1.0
    child = compressed(tmp_path / "run", tmp_path / "child")

    rank = child.adapters["decoder/q"].rank
    metadata = ocp.metadata(tmp_path / "child").custom_metadata
    want = {"lora_rank": rank, "lora_alpha": rank, "enable_lora": True}
    assert metadata["lora"] == want
    assert metadata["scan_layers"] is False


def test_a_child_needs_no_hints_and_takes_none(tmp_path):
    ocp.save(tmp_path / "run", params())
    child = compressed(tmp_path / "run", tmp_path / "child", alpha=6)

    got = para.load(tmp_path / "child")

    for path, x in child.adapters.items():
        np.testing.assert_array_equal(
            got.adapters[path].a @ got.adapters[path].b, x.a @ x.b
        )
        assert got.adapters[path].scale == 1
    assert got.provenance["cuts"][0]["policy"] == "gamma 0.5"
    for hint in ({"alpha": 6.0}, {"layout": "qwix"}, {"stack_axis": 0}):
        with pytest.raises(ValueError, match=f"leave out {next(iter(hint))}"):
            para.load(tmp_path / "child", **hint)


def test_metadata_that_does_not_fit_the_tree_is_damage(tmp_path):
    ocp.save(tmp_path / "run", params())
    compressed(tmp_path / "run", tmp_path / "child", alpha=6)
    file = tmp_path / "child" / "_CHECKPOINT_METADATA"
    metadata = json.loads(file.read_text())
    metadata["custom_metadata"]["para_jax"]["pairs"][0]["a"][-1] = "elsewhere"
    file.write_text(json.dumps(metadata))

    with pytest.raises(ValueError, match="child' is damaged"):
        para.load(tmp_path / "child")


@pytest.mark.parametrize(
    ("hints", "match"),
    [
        ({}, r"'layers/0/q'.*Give alpha=: alpha of the qwix.LoraRule"),
        ({"layout": "gemma", "alpha": 6.0}, "not of the layout gemma, but of qwix"),
        ({"layout": "kandinsky"}, "Unknown layout 'kandinsky': expected one of nnx"),
        ({"alpha": 6.0, "scale": 2.0}, "alpha= or scale=, not both"),
        ({"alpha": float("nan")}, "alpha=nan: expected a finite number"),
    ],
)
def test_a_hint_that_is_wrong_is_answered_with_what_to_say(hints, match, tmp_path):
    ocp.save(tmp_path / "run", {"params": params()["body"]})

    with pytest.raises(ValueError, match=match):
        para.load(tmp_path / "run", **hints)


@pytest.mark.parametrize("form", ["peft", "orbax"])
def test_a_refused_tree_leaves_nothing_behind(form, tmp_path):
    tree = params()
    del tree["body"]["layers"]["1"]["q"]["kernel_lora_b"]
    ocp.save(tmp_path / "run", tree)

    with pytest.raises(ValueError, match=r"'body/layers/1/q' has.*alone"):
        para.save(para.load(tmp_path / "run", alpha=6), tmp_path / "child", format=form)
    assert [x.name for x in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("adapters_only", [False, True])
def test_a_whole_training_state_is_read_and_its_child_written(adapters_only, tmp_path):
    state = optax.adam(1e-3).init(params())  # Orbax keeps its tuples as lists.
    ocp.save(tmp_path / "run", {"params": params(), "opt_state": state, "step": 3})

    facts = {"alpha": 6, "adapters_only": adapters_only}
    child = compressed(tmp_path / "run", tmp_path / "child", **facts)

    got = shapes(tmp_path / "child")
    rank = child.adapters["body/layers/0/q"].rank
    assert got["params/body/layers/0/q/kernel_lora_a"] == (8, rank)
    assert ("step" in got) is not adapters_only
    assert not [path for path in got if path.startswith("opt_state")]


def test_a_list_of_layers_is_read_without_its_base_weights(tmp_path):
    layers = list(params()["body"]["layers"].values())
    ocp.save(tmp_path / "run", {"layers": [{"norm": array(3)}, *layers]})

    compressed(tmp_path / "run", tmp_path / "child", alpha=6, adapters_only=True)

    assert {path.split("/")[1] for path in shapes(tmp_path / "child")} == {"1", "2"}


@pytest.mark.parametrize("lora", [True, [1], {"lora_rank": R}])
def test_metadata_of_another_form_is_passed_over(lora, tmp_path):
    ocp.save(tmp_path / "run", params(), custom_metadata={"lora": lora})

    with pytest.raises(ValueError, match=r"Give alpha=: alpha of the qwix\.LoraRule"):
        para.load(tmp_path / "run")


def test_a_child_of_a_fused_projection_comes_back_with_the_ranks_it_kept(tmp_path):
    fused = {"lora": {"a": array(8, R), "b": array(R, 2, 2, 3)}}
    other = {"lora": {"a": array(8, R, seed=1), "b": array(R, 4, seed=1)}}
    ocp.save(tmp_path / "run", {"attn": {"kv_einsum": fused, "o": other}})

    child = compressed(tmp_path / "run", tmp_path / "child")

    got = para.load(tmp_path / "child").adapters
    want = {path: x.rank for path, x in child.adapters.items()}
    assert {path: x.rank for path, x in got.items()} == want
