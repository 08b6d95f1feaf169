"""The command `check`: the needs of a preset, and the size of its downloads.

    python -m train check PRESET [--model REPO] [--data DIR] [--weights DIR]

Nothing is downloaded, trained or allocated. Runs on the host.
"""

import pathlib
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence

import rich.console
import rich.table

from train.commands import needs, output
from train.commands.needs import Finding, Needs
from train.data import hub


def command(
    presets: Mapping[str, Needs], ready: Collection[str] = ()
) -> Callable[..., None]:
    """Return the command `check`.

    Args:
      presets: The needs of presets, by name.
      ready: The presets that download nothing.
    """

    def check(
        preset: str,
        /,
        *,
        model: str = "",
        data: pathlib.Path | None = None,
        weights: pathlib.Path | None = None,
    ) -> None:
        """Show the needs of a preset: present, missing, and to be downloaded.

        Args:
          preset: The preset's name.
          model: Another model for a preset of the paper: its repository on the hub.
          data: A folder of data sets, instead of the hub.
          weights: A folder of models, instead of the hub.
        """
        if preset in ready and model:
            raise ValueError(
                f"The preset '{preset}' has a model of its own, and --model is "
                f"'{model}'. Leave it out, or choose one of the presets that take "
                f"another: {', '.join(presets)}."
            )
        if preset in ready:
            print(f"{preset} downloads nothing: what it needs ships, or is in packages")
            print("that `make demo` and pip install '.[train]' install.")
            return
        if preset not in presets:
            raise ValueError(
                f"Nothing is known of the needs of '{preset}', expected "
                f"{', '.join([*presets, *ready])}."
            )
        wanted = needs.with_model(presets[preset], model)
        found = needs.survey(wanted, data=data, weights=weights)
        console = rich.console.Console()
        console.print(table(found, title=preset))
        for line in summary(found):
            output.say(console, line)
        if not all(x.there for x in found):
            sys.exit(1)

    return check


def table(found: Sequence[Finding], *, title: str) -> rich.table.Table:
    """Return a table of the needs, a row each."""
    result = output.table(title)
    for name in ("need", "name", "there"):
        result.add_column(name, no_wrap=True)
    result.add_column("download", justify="right", no_wrap=True)
    # Paths are broken here; `summary` repeats on one line what is missing, without the
    # remarks: these are no reasons.
    result.add_column("note", overflow="fold")
    for x in found:
        download = "" if x.download == 0 else needs.size(x.download)
        there, note = (
            "yes" if x.there else "no",
            "; ".join(filter(None, (x.note, x.remark))),
        )
        result.add_row(x.kind, x.name, there, download, note)
    return result


def summary(found: Sequence[Finding]) -> list[str]:
    """Summarise the table in a few lines."""
    missing = [x for x in found if not x.there]
    if not missing:
        return ["All is there."]
    known = sum(x.download or 0 for x in missing)
    unknown = sum(x.download is None for x in missing)
    more = f", and {unknown} of unknown size" if unknown else ""
    lines = [f"{len(missing)} of {len(found)} missing:"]
    lines += [f"    {x.name}: {x.note}".removesuffix(": ") for x in missing]
    if known or unknown:
        cache = _cache()
        lines.append(
            f"A run would download {needs.size(known)}{more} to {cache}, where "
            f"{needs.size(_free(cache))} are free."
        )
    # Two sets may be of one repository.
    if commands := dict.fromkeys(x.command for x in missing if x.command):
        lines += ["To bring it here beforehand:", *(f"    {x}" for x in commands)]
    if any(x.kind == "data" and x.download != 0 for x in missing):
        lines.append(f"and set {hub.FOLDER_VARIABLE} to the folder DATA.")
    return lines


def _cache() -> pathlib.Path:
    import huggingface_hub.constants

    return pathlib.Path(huggingface_hub.constants.HF_HOME)


def _free(place: pathlib.Path) -> int:
    # The cache may not exist yet; its file system does.
    existing = next(x for x in (place, *place.parents) if x.exists())
    return shutil.disk_usage(existing).free
