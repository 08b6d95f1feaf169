"""Rewrite every adapter that PEFT's own tests save, as a pytest plugin.

`tests.engines.peft_suite` runs it. `PEFT_DETOUR` in the environment selects the change
to each LoRA folder that a test saves, in place:

    compress    as `para compress --gamma 1` does
    convert     as `para convert` does: the factors stay
    count       nothing

`PEFT_DETOUR_LOG` names a file for one line of JSON per test, and `PEFT_DETOUR_ONLY` one
with the ids of the tests to run, one a line. If `PEFT_DETOUR_RANDOM` is 1, `lora_B`
starts at random instead of zero.
"""

import contextlib
import functools
import importlib
import inspect
import json
import os
import pathlib
import shutil
import warnings

import peft
import pytest
import safetensors.torch
import torch
from peft.utils import other

import para_jax as para

_HOW = os.environ["PEFT_DETOUR"]
_LOG = pathlib.Path(os.environ["PEFT_DETOUR_LOG"])
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_now: dict = {}  # The record of the running test.
_parents: dict[pathlib.Path, dict[str, bytes]] = {}  # Original files.


def _updates(folder: pathlib.Path) -> dict[str, tuple[torch.Tensor, float]]:
    """Return every module's update by PEFT's rule, and the size of one rounding."""
    config = peft.LoraConfig.from_pretrained(str(folder))
    stored = safetensors.torch.load_file(folder / _WEIGHTS)
    updates = {}
    for name, a in stored.items():
        module, found, rest = name.partition(".lora_A.")
        if found:
            b = stored[f"{module}.lora_B.{rest}"]
        else:
            module, found, _ = name.partition(".lora_embedding_A")
            if not found:
                continue
            b = stored[f"{module}.lora_embedding_B"]
        path = module.removeprefix("base_model.model.")
        rank = _by_pattern(config.rank_pattern, path, config.r)
        alpha = _by_pattern(config.alpha_pattern, path, config.lora_alpha)
        scale = alpha / (rank**0.5 if config.use_rslora else rank)
        rounding = scale * torch.finfo(a.dtype).eps
        if (bias := stored.get(f"{module}.lora_B.bias")) is not None:
            bias = bias.double()
            updates[f"{module}.bias"] = scale * bias, rounding * float(bias.norm())
        a, b = a.double().flatten(1), b.double().flatten(1)
        # Experts' parameters have more ranks, and no names in the file.
        if b.shape[1] == a.shape[0] == rank and not config.target_parameters:
            updates[module] = scale * b @ a, rounding * float(a.norm() * b.norm())
    return updates


def _by_pattern(patterns: dict, path: str, default: float) -> float:
    key = other.get_pattern_key(patterns.keys(), path)
    return patterns.get(key, default)


def _error(old: dict, new: dict) -> float:
    """Return the largest error of an update, in roundings of the largest one."""
    zero = 0.0, 0.0  # A module with an update of zero may be left out.
    errors = [
        float((x - new.get(name, zero)[0]).norm()) for name, (x, _) in old.items()
    ]
    sizes = [size for _, size in old.values() if size]
    return max(errors) / max(sizes) if sizes else 0.0


def _rewrite(folder: pathlib.Path) -> None:
    new = folder.with_name(f"{folder.name}.detour")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's tests check warnings.
            adapters = para.load(folder)
            if _HOW == "compress":
                adapters = para.compress(adapters, para.Gamma(1.0))
            para.save(adapters, new)
    except (ValueError, FileNotFoundError) as error:  # Any other error fails the test.
        text = str(error).replace(str(folder), "ADAPTER")
        _now["refused"].append(" ".join(text.split()))
        return
    finally:
        if not (new / _CONFIG).exists():
            shutil.rmtree(new, ignore_errors=True)
    old = _updates(folder)
    _parents[folder] = {x: (folder / x).read_bytes() for x in (_CONFIG, _WEIGHTS)}
    for file in new.iterdir():
        shutil.move(file, folder / file.name)
    new.rmdir()
    _now["rewritten"] += 1
    _now["error"] = max(_now["error"], _error(old, _updates(folder)))


def _restore(folder: pathlib.Path) -> None:
    """Undo a rewrite, before PEFT reads the factors there with another config.

    A conversion (of PiSSA, say) subtracts an initial adapter from the trained one, by
    the trained one's ranks and scales.
    """
    for name, content in _parents.pop(folder, {}).items():
        (folder / name).write_bytes(content)


def _times(top: pathlib.Path) -> dict[pathlib.Path, int]:
    return {path: path.stat().st_mtime_ns for path in top.rglob(_CONFIG)}


def _detoured(save, target: str):
    """Wrap a function that saves to the folder in its argument `target`."""
    signature = inspect.signature(save)

    @functools.wraps(save)
    def saved(*words, **options):
        given = signature.bind(*words, **options).arguments
        top = pathlib.Path(given[target])
        if initial := given.get("path_initial_model_for_weight_conversion"):
            _restore(pathlib.Path(initial))
        before = _times(top)
        result = save(*words, **options)
        for path, time in sorted(_times(top).items()):
            kind = json.loads(path.read_text()).get("peft_type")
            if time == before.get(path) or kind != "LORA" or not _now:
                continue
            _now["saved"] += 1
            if _HOW != "count":
                _rewrite(path.parent)
        return result

    return saved


peft.PeftModel.save_pretrained = _detoured(
    peft.PeftModel.save_pretrained, "save_directory"
)
peft.save_as_lora = _detoured(peft.save_as_lora, "path")


def pytest_configure():
    # The original goes online for a model's first test, and waits long for an answer.
    testing_utils = importlib.import_module("tests.testing_utils")
    testing_utils.hub_online_once = contextlib.nullcontext
    if os.environ.get("PEFT_DETOUR_RANDOM") == "1":
        peft.LoraConfig.__post_init__ = _random(peft.LoraConfig.__post_init__)


def _random(begin):
    def begun(self):
        if self.init_lora_weights is True:
            self.init_lora_weights = False
        begin(self)

    return begun


def pytest_collection_modifyitems(config, items):
    if path := os.environ.get("PEFT_DETOUR_ONLY"):
        wanted = set(pathlib.Path(path).read_text().splitlines())
        left = [item for item in items if item.nodeid not in wanted]
        items[:] = [item for item in items if item.nodeid in wanted]
        config.hook.pytest_deselected(items=left)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    _now.update(id=item.nodeid, outcome="passed", why="", error=0.0)
    _now.update(saved=0, rewritten=0, refused=[])
    result = yield
    with _LOG.open("a") as log:
        log.write(json.dumps(_now) + "\n")
    _now.clear()
    _parents.clear()
    return result


def pytest_runtest_logreport(report):
    if report.passed or _now["outcome"] == "failed":
        return
    _now["outcome"] = report.outcome
    why = str(report.longrepr)
    if isinstance(report.longrepr, tuple):  # A skip: file, line, reason.
        why = report.longrepr[2]
    with contextlib.suppress(AttributeError):
        crash = report.longrepr.reprcrash
        why = f"{pathlib.Path(crash.path).name}:{crash.lineno}: {crash.message}"
    _now["why"] = " ".join(why.split())[:600]
