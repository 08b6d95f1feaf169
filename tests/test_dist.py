"""Test that the check of `make dist` finds faults in its output."""

import io
import tarfile
import zipfile

from tests import dist


def test_the_package_is_its_modules_and_the_mark_of_types():
    found = dist.package()

    assert {
        "para_jax/__init__.py",
        "para_jax/cli/__init__.py",
        "para_jax/py.typed",
    } <= found
    assert all(x.startswith("para_jax/") for x in found)


def test_a_wheel_with_tests_and_without_a_licence_is_found_out(tmp_path):
    path = tmp_path / "para_jax-1.0-py3-none-any.whl"
    expected = dist.wheel("1.0", {"para_jax/__init__.py"})
    with zipfile.ZipFile(path, "w") as file:
        for name in expected | {"tests/conftest.py"}:
            if not name.endswith("LICENSE"):
                file.writestr(name, "")

    assert dist.differences("it", dist.in_wheel(path), expected) == [
        "it: para_jax-1.0.dist-info/licenses/LICENSE is missing",
        "it: tests/conftest.py should not be there",
    ]


def test_an_sdist_with_the_experiments_is_found_out(tmp_path):
    path = tmp_path / "para_jax-1.0.tar.gz"
    expected = dist.sdist("1.0", {"para_jax/__init__.py"})
    with tarfile.open(path, "w:gz") as file:
        for name in expected | {"para_jax-1.0/train/__main__.py"}:
            file.addfile(tarfile.TarInfo(name), io.BytesIO())

    assert dist.differences("it", dist.in_sdist(path), expected) == [
        "it: para_jax-1.0/train/__main__.py should not be there"
    ]


def test_the_first_block_of_the_readme_is_found():
    assert "para" in dist.first_block((dist.ROOT / "README.md").read_text())
