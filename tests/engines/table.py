"""Generate the engine tables of the README and `docs/engines.md` from `ENGINES`.

    python -m tests.engines

writes them between the markers `<!-- engines: NAME -->` and `<!-- /engines: NAME -->`.
"""

import pathlib
import re

from para_jax._engines.registry import ENGINES

ROOT = pathlib.Path(__file__).parents[2]
FILES = (ROOT / "README.md", ROOT / "docs" / "engines.md")
FORMATS = {
    "peft": "a PEFT folder",
    "mlx": "a folder of mlx-lm",
    "kohya": "one file",
    "orbax": "an Orbax tree",
}
SCHEMES = {
    "hf": "transformers",
    "module": "a diffusers model",
    "diffusers": "a diffusers pipeline",
    "original": "the authors' code",
    "comfyui": "ComfyUI",
    "kohya": "kohya",
    "jax": "a JAX tree",
}
HOW = {
    "run": "outputs compared",
    "in part": "its loading code run",
    "read": "source read only",
}


def markdown(head, rows):
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(x)} |" for x in lines)


def written(engine):
    """Return the written form in words."""
    profile = f", {engine.profile}" if engine.form == "peft" else ""
    single = " or one file" if engine.one_file else ""
    return FORMATS[engine.form] + profile + single


def names(engine):
    """Return the naming schemes an engine reads, and whether others are converted."""
    if engine.layouts:
        return f"trees of {' and '.join(engine.layouts)}"
    wanted = [*engine.reads, engine.names, engine.one_file and engine.one_file.names]
    read = ", ".join(SCHEMES[x] for x in dict.fromkeys(wanted) if x)
    return f"{read}; others converted" if engine.names else read


def ranks(engine):
    """Return the ranks an engine accepts."""
    if not engine.ranks:
        return "any"
    start = tuple(range(1, len(engine.ranks) + 1))
    run = sum(x == y for x, y in zip(engine.ranks, start, strict=True))
    first = [f"1 to {run}"] if run > 2 else engine.ranks[:run]
    few = ", ".join(map(str, [*first, *engine.ranks[run:]]))
    return few if engine.exact else f"any, in buffers of {few}"


TOGETHER = {
    "fused": "q, k and v; gate and up",
    "paired": "both parameters of fused experts",
    "whole": "all experts of a layer, or none",
    "every": "a type of module in every layer",
}


def together(engine):
    """Return the modules an engine requires together."""
    return "; ".join(y for x, y in TOGETHER.items() if getattr(engine, x)) or "-"


def overview():
    """Return the README's table: the written form, and how and when it was checked."""
    head = ["engine", "written", "names of", "checked", "version", "date"]
    rows = [
        [name, written(x), names(x), HOW[x.known.how], x.known.version, x.known.date]
        for name, x in ENGINES.items()
    ]
    return markdown(head, rows)


def rules():
    """Return the table of each engine's requirements."""
    rows = []
    for name, x in ENGINES.items():
        kinds = ", ".join(x.kinds)
        if x.only:
            kinds += f" ({', '.join(x.only)})"
        if x.unseen:
            kinds += f" (not {', '.join(x.unseen)})"
        if x.heads:
            kinds += f"; whole {' or '.join(x.heads)}"
        rows.append([name, kinds, ranks(x), together(x), x.note])
    head = ["engine", "layers", "ranks", "together", "how to load"]
    return markdown(head, rows)


def evidence():
    """Return the table of evidence for each row."""
    rows = [
        [name, x.known.how, x.known.version, x.known.date, x.known.source]
        for name, x in ENGINES.items()
    ]
    return markdown(["engine", "how", "version", "date", "source"], rows)


TABLES = {"overview": overview, "rules": rules, "evidence": evidence}
BLOCK = re.compile(r"(<!-- (engines: (\w+)) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def filled(text):
    """Return the text with every table up to date."""
    return BLOCK.sub(lambda x: f"{x[1]}\n{TABLES[x[3]]()}\n\n{x[4]}", text)


def main():
    for file in FILES:
        file.write_text(filled(file.read_text()))
    return 0
