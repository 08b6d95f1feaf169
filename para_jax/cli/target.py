"""Check DST before any work, and write it afterwards."""

import dataclasses
import pathlib

import numpy as np

import para_jax as para
from para_jax._engines import prepare, registry, rules as engine_rules
from para_jax._pruning.report import human_bytes
from para_jax.cli.request import Conversion
from para_jax.formats import FORMATS, Format, atomic, is_one_file, recognise


def form(request: Conversion) -> Format:
    """Choose the format of DST: the engine's, else --format, else SRC's."""
    output = request.output
    if output.engine:
        return _engine_form(output.engine, request.target)
    return output.format or recognise(request.source)


# An engine may read two formats: then the place of DST chooses between them.
def _engine_form(engine: str, target: pathlib.Path) -> Format:
    one_file = is_one_file(target)
    return engine_rules.form(registry.known(engine), one_file=one_file)


def ending(request: Conversion) -> str:
    """Choose the ending of the names of several children."""
    return FORMATS[form(request)].suffix


def check(request: Conversion) -> None:
    """Raise an error before any work if DST could not be written after it."""
    check_form(request)
    one_file = is_one_file(request.target)
    check_place = atomic.check_file if one_file else atomic.check_target
    check_place(request.target, overwrite=request.output.overwrite)


def check_form(request: Conversion) -> None:
    """Raise ValueError if the place of DST, or its profile, is not of its format."""
    wanted, target, profile = form(request), request.target, request.output.profile
    one_file = is_one_file(target)
    if profile and profile not in FORMATS[wanted].profiles:
        raise ValueError(
            f"--profile {profile} applies to PEFT only, and '{target}' is to be "
            f"{wanted}: leave it out, or give --format peft."
        )
    suffix = FORMATS[wanted].suffix
    if suffix and not one_file:
        raise ValueError(f"'{target}' must be a single file: end it in '{suffix}'.")
    if one_file and not suffix:
        raise ValueError(
            f"'{target}' must be a folder of {wanted}: leave out '{target.suffix}', "
            "or give --format kohya for one file."
        )


def check_engine(request: Conversion, parent: para.Checkpoint) -> None:
    """Raise an error before any work if an engine would refuse every child."""
    if not request.output.engine:
        return
    # A child of rank one: the smallest that any budget could give.
    one_rank = {
        path: para.Adapter(
            a=np.ones((*x.stack, x.inputs, 1), x.a.dtype),
            b=np.ones((*x.stack, 1, x.outputs), x.a.dtype),
        )
        for path, x in parent.adapters.items()
    }
    smallest = dataclasses.replace(parent, adapters=one_rank)
    one_file = is_one_file(request.target)
    prepare.prepare(smallest, request.output.engine, one_file=one_file)


def save(request: Conversion, checkpoint: para.Checkpoint) -> None:
    """Write DST in the form of the request."""
    output = request.output
    para.save(
        checkpoint,
        request.target,
        # `save` takes no other format beside an engine: that decides.
        format="peft" if output.engine else form(request),
        profile=output.profile or "ragged",
        engine=output.engine,
        overwrite=output.overwrite,
    )


def on_disk(place: pathlib.Path) -> str:
    """Measure a file, or all files in a folder."""
    files = [place] if place.is_file() else place.rglob("*")
    return human_bytes(sum(x.stat().st_size for x in files if x.is_file()))


def note(engine: str, target: pathlib.Path) -> str:
    """Return an engine's advice on loading DST."""
    rules = registry.known(engine)
    text = engine_rules.note(rules, _engine_form(engine, target))
    return f"{engine}: {text}"
