"""Tests of diffusers, on tiny UNets and transformers, against truncations by NumPy.

Parents are PEFT folders, files of diffusers' training scripts and of sd-scripts, with
alphas and without; children have unequal ranks. They are loaded by the code that the
command prints, or by the pipeline's own loader of files.
"""

import contextlib
import io
import re

import numpy as np
import pytest

from tests.engines import harness, image_adapters

MODELS = {
    "sd": "unet",
    "flux": "transformer",
    "sd3": "transformer",
    "wan": "transformer",
}
PARENTS = {
    "PEFT, alpha 6 of 6": ("peft", 6),
    "PEFT, alpha 9 of 6": ("peft", 9),
    "diffusers": ("diffusers", None),
    "kohya, alpha 3": ("kohya", 3),
    "kohya, an alpha for each": ("kohya", "each"),
    "kohya, without": ("kohya", None),
}
# For all models; the others only for the UNet, which has the plainest kohya names.
EVERYWHERE = ("PEFT, alpha 9 of 6", "diffusers")
FORMS = ("folder", "file")


def written(path, kind, alpha, parent, component):
    """Write a parent, and return its path and the scale of each module."""
    own = {name: 1 + i % 7 for i, name in enumerate(parent)}
    alphas = own if alpha == "each" else dict.fromkeys(parent, alpha)
    if alpha is None:
        alphas = dict.fromkeys(parent, image_adapters.RANK)
    scales = {name: x / image_adapters.RANK for name, x in alphas.items()}
    if kind == "peft":
        return image_adapters.peft(path / "parent", parent, alpha), scales
    file = path / "parent.safetensors"
    if kind == "diffusers":
        return image_adapters.diffusers(file, parent, component), scales
    stored = {} if alpha is None else alphas
    return image_adapters.kohya(file, parent, stored), scales


def compressed(source, target):
    """Write a child for diffusers, and return the printed code for loading it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        words = (*image_adapters.BUDGET, "--for", "diffusers")
        harness.compress(source, target, *words)
    out = " ".join(said.getvalue().split())
    return re.search(r"((?:model|pipe)\.load_\w+\([^)]*\))", out)[1]


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    """Load all files in one process."""
    top = tmp_path_factory.mktemp("diffusers")
    shapes = harness.run("diffusers", {"shapes": list(MODELS)}, top / "shapes").facts
    files = {}
    for name, component in MODELS.items():
        parent = image_adapters.factors(shapes["shapes"][name])
        for label, (kind, alpha) in PARENTS.items():
            if name != "sd" and label not in EVERYWHERE:
                continue
            folder = top / f"{name} {label}"
            folder.mkdir()
            source, scales = written(folder, kind, alpha, parent, component)
            whole = image_adapters.updates(parent, scales)
            kept = image_adapters.KEPT * len(whole)
            np.savez(folder / "wanted", **image_adapters.truncated(whole, kept))
            for form in FORMS:
                child = folder / ("child" if form == "folder" else "child.safetensors")
                words = compressed(source, child)
                assert words.startswith("model" if form == "folder" else "pipe")
                files[f"{name}, {label}: {form}"] = {
                    "model": name,
                    "path": child,
                    "words": words if form == "folder" else "",
                    "wanted": folder / "wanted.npz",
                }
    return files, harness.run("diffusers", {"files": files}, top)


CASES = [
    f"{name}, {label}: {form}"
    for name in MODELS
    for label in PARENTS
    for form in FORMS
    if name == "sd" or label in EVERYWHERE
]


@pytest.mark.parametrize("label", CASES)
def test_a_child_is_the_truncation(label, answer, row):
    files, found = answer
    assert label not in found.refused, found.refused[label]
    with np.load(files[label]["wanted"]) as arrays:
        wanted = dict(arrays)
    start = f"{label}/updates/"
    got = {x.removeprefix(start): y for x, y in found.arrays.items() if start in x}
    assert len(image_adapters.ranks(wanted, wanted)) > 2

    updates = image_adapters.largest(got, wanted)
    output = np.abs(found.arrays[f"{label}/output"] - found.arrays[f"{label}/wanted"])
    effect = np.abs(found.arrays[f"{label}/wanted"] - found.arrays[f"{label}/base"])

    row(
        engine="diffusers",
        version=found.version,
        loaded=label,
        difference=max(updates, float(output.max())),
        of="updates and outputs",
    )
    assert updates < 1e-6
    assert output.max() < 1e-4 < effect.max() / 100
