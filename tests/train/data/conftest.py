"""Small data sets in the hub's own form, and a cache for one test."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest


@pytest.fixture
def data(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty folder for data sets; the library has no others, and prints nothing."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("PARA_DATA", raising=False)
    datasets.disable_progress_bars()
    yield tmp_path / "data"
    datasets.enable_progress_bars()


@pytest.fixture
def write(data) -> Callable[..., None]:
    """Write parquet files as the hub has them, and the README of configurations."""

    def write(hub: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
        lines = ["---", "configs:"]
        for config, splits in configs.items():
            folder = data / hub / (config or "data")
            folder.mkdir(parents=True)
            lines += [f"- config_name: {config}", "  data_files:"]
            for split, rows in splits.items():
                rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
                path = f"{config}/{split}-*"
                lines += [f"  - split: {split}", f"    path: {path}"]
        if list(configs) != [""]:
            (data / hub / "README.md").write_text("\n".join([*lines, "---", ""]))

    return write


@pytest.fixture
def counts(monkeypatch) -> Callable[..., None]:
    """Changes how many rows a set's parts should have."""
    from train.data import sources

    def counts(name: str, **new: int) -> None:
        source = sources.SOURCES[name]
        parts = {
            part: wanted._replace(count=new.get(part, wanted.count))
            for part, wanted in source.parts.items()
        }
        changed = dataclasses.replace(source, parts=parts)
        monkeypatch.setattr(sources, "SOURCES", {**sources.SOURCES, name: changed})

    return counts
