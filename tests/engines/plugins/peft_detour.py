"""A plugin for PEFT's own tests: each saved LoRA is rewritten by us, and then loaded.

    cd PEFT && PYTHONPATH=PLUGINS python -m pytest -p peft_detour tests/test_NAME.py

With `PEFT_DETOUR=count` saves are counted, and left as they are. A file of JSON, at
`PEFT_DETOUR_LOG`, tells of each test its outcome, and how many adapters were saved,
rewritten, and refused in which words.
"""

import collections
import json
import os
import pathlib
import shutil

import peft
import pytest

import para_jax as para

_SEEN = collections.defaultdict(lambda: {"saved": 0, "rewritten": 0, "refused": []})
_NOW = [""]


def _rewrite(folder: pathlib.Path, seen: dict) -> None:
    new = folder.with_name(f"{folder.name}.detour")
    try:
        para.save(para.compress(para.load(folder), para.Gamma(1.0)), new)
    except (ValueError, KeyError, FileNotFoundError) as error:
        seen["refused"].append(f"{type(error).__name__}: {error}")
        shutil.rmtree(new, ignore_errors=True)
        return
    for file in new.iterdir():
        shutil.move(file, folder / file.name)
    new.rmdir()
    seen["rewritten"] += 1


_save = peft.PeftModel.save_pretrained


def _saved(self, save_directory, *words, **options):
    _save(self, save_directory, *words, **options)
    top = pathlib.Path(save_directory)
    for config in sorted(top.rglob("adapter_config.json")):
        kind = json.loads(config.read_text()).get("peft_type")
        if kind != "LORA" or not (config.parent / "adapter_model.safetensors").exists():
            continue
        seen = _SEEN[_NOW[0]]
        seen["saved"] += 1
        # Of a conversion: it is subtracted from the trained adapter, not loaded.
        first = options.get("path_initial_model_for_weight_conversion") is None
        if os.environ.get("PEFT_DETOUR") != "count" and first:
            _rewrite(config.parent, seen)


peft.PeftModel.save_pretrained = _saved


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    _NOW[0] = item.nodeid
    return (yield)


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        _SEEN[report.nodeid]["outcome"] = report.outcome
        if report.outcome == "failed":
            _SEEN[report.nodeid]["why"] = str(report.longrepr).splitlines()[-8:]


def pytest_sessionfinish():
    if path := os.environ.get("PEFT_DETOUR_LOG"):
        pathlib.Path(path).write_text(json.dumps(_SEEN, indent=1))
