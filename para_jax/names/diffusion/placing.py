"""Place the names of a file in model families.

The names of a file are placed together: a family must know all names of a component,
and if several families do, they must agree on the meaning of every name. Runs on the
host.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from para_jax._adapters.adapter import ordered
from para_jax.names.diffusion import family, schemes, text, transformers
from para_jax.names.diffusion.family import Family, Form, Match, Vocabulary
from para_jax.names.diffusion.schemes import Name


class Place(NamedTuple):
    """The place of a module in a diffusers pipeline.

    Attributes:
      component: The attribute of the pipeline.
      parts: The dotted names inside the component.
      form: The order of the outputs of the parts.
    """

    component: str
    parts: tuple[str, ...]
    form: Form


class Placed(NamedTuple):
    """All modules of a file, with the families of each component.

    Attributes:
      places: The place of each path.
      families: By component, the families with all of its modules.
    """

    places: Mapping[str, Place]
    families: Mapping[str, tuple[Family, ...]]


def place(names: Mapping[str, Name]) -> Placed:
    """Find the name of each module in diffusers.

    Args:
      names: The result of `schemes.read`.

    Raises:
      ValueError: if no family has a name, or two give it different meanings. The
        message gives the name.
    """
    groups = _groups(names)
    places: dict[str, Place] = {}
    families: dict[str, tuple[Family, ...]] = {}
    # The denoiser comes first: it tells the T5 of FLUX.1 from that of SD3.
    for group in sorted(groups):
        paths = groups[group]
        known = schemes.ENCODERS if group else schemes.DENOISERS
        found = {x: _matches(x, [names[p] for p in paths]) for x in known}
        whole = tuple(x for x, matches in found.items() if None not in matches)
        if not whole:
            _refuse(paths, found)
        for i, path in enumerate(paths):
            by_family = {
                x.name: _place(x, found[x][i], names[path], families) for x in whole
            }
            places[path] = _agreed(path, by_family)
        component = places[paths[0]].component
        families[component] = whole
    return Placed(places, families)


def _groups(names: Mapping[str, Name]) -> dict[str, list[str]]:
    """Group the paths by text encoder; the denoiser's group is the empty string."""
    groups: dict[str, list[str]] = {}
    for path in ordered(names):
        component = names[path].component
        # `lora_unet_` is also the prefix of transformers, so denoisers are one group.
        group = component if component.startswith("text_encoder") else ""
        groups.setdefault(group, []).append(path)
    return groups


def _matches(one: Family, names: Sequence[Name]) -> list[Match | None]:
    return [_match(one, name) for name in names]


def _match(one: Family, name: Name) -> Match | None:
    vocabularies: dict[str, tuple[Vocabulary, ...]] = {
        "kohya": ("original", "diffusers"),
        "comfyui": ("original",),
        "original": ("original",),
    }
    rest = text.in_full(name.rest)
    # kohya's trainers follow the authors for some models and diffusers for others.
    for vocabulary in vocabularies.get(name.scheme, ("diffusers",)):
        found = family.match(one, rest, vocabulary, separator=name.separator)
        if found is not None:
            return found
    return None


def _place(
    one: Family,
    match: Match | None,
    name: Name,
    families: Mapping[str, tuple[Family, ...]],
) -> Place:
    assert match is not None
    # One part alone moves as it is: its outputs are its own.
    form: Form = match.module.form if match.part is None else "same"
    component = name.component or one.component
    if name.scheme == "kohya" and one.name == schemes.ENCODERS[1].name:
        component = _t5(name, families)
    return Place(component, match.parts, form)


def _t5(name: Name, families: Mapping[str, tuple[Family, ...]]) -> str:
    """Return the component of T5: the second encoder of FLUX.1, the third of SD3.

    sd-scripts calls it `te3` in both, OneTrainer `te2` in FLUX.1.
    """
    known = families.get("transformer", ())
    flux, sd3 = transformers.FLUX in known, transformers.SD3 in known
    if name.component == "text_encoder_2" or (flux and not sd3):
        return "text_encoder_2"
    if sd3 and not flux:
        return "text_encoder_3"
    raise ValueError(
        f"'{name.rest}' is of a T5 encoder, and the names do not tell of which "
        "pipeline: FLUX.1 has it as text_encoder_2, Stable Diffusion 3 as "
        "text_encoder_3."
    )


def _refuse(
    paths: Sequence[str], found: Mapping[Family, Sequence[Match | None]]
) -> NoReturn:
    """Raise ValueError with the first name missing in the most similar family."""
    nearest = max(found, key=lambda x: sum(y is not None for y in found[x]))
    path = paths[found[nearest].index(None)]
    models = ", ".join(x.name for x in found)
    others = "" if not any(found[nearest]) else f", though others are {nearest.name}'s"
    raise ValueError(
        f"'{path}' is not a module of a model with known names "
        f"({models}){others}. An adapter of another model keeps its names without "
        "an engine."
    )


def _agreed(path: str, by_family: Mapping[str, Place]) -> Place:
    """Return the place that all families give a name, or raise ValueError."""
    one, *others = by_family.items()
    for name, place in others:
        if place != one[1]:
            raise ValueError(
                f"'{path}' is one module in {one[0]} and another in {name}, and the "
                "other names do not tell which is meant."
            )
    return one[1]
