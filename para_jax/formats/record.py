"""The part of a checkpoint without a place in any format, as one JSON text."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from para_jax._adapters.checkpoint import Checkpoint, Layer, Spelling


class Facts(NamedTuple):
    """The fields of a checkpoint to restore from its JSON text.

    Attributes:
      layers: The kinds of layers, including those of absent modules.
      absent: The shapes of the modules that kept nothing.
      shared: The owner of each shared update, by module.
      nominal: The ranks that budgets count, if they differ from the factors'.
      provenance: The history of the adapters.
      renamed: The original names of other tensors, by their names in the file.
      spelling: The names of the factors in their original single file.
    """

    layers: Mapping[str, Layer]
    absent: Mapping[str, tuple[int, int]]
    shared: Mapping[str, str]
    nominal: Mapping[str, int]
    provenance: Mapping[str, Any]
    renamed: Mapping[str, str]
    spelling: Mapping[str, Spelling]


def to_json(checkpoint: Checkpoint, renamed: Mapping[str, str] | None = None) -> str:
    """Serialise the facts of a checkpoint. The inverse is `from_json`."""
    adapters, layers = checkpoint.adapters, checkpoint.layers
    return json.dumps(
        {
            "layers": {path: [x.kind, list(x.window)] for path, x in layers.items()},
            "absent": {path: list(shape) for path, shape in checkpoint.absent.items()},
            "shared": dict(checkpoint.shared),
            "nominal": {p: x.nominal for p, x in adapters.items() if x.nominal},
            "provenance": dict(checkpoint.provenance),
            "renamed": {new: old for new, old in (renamed or {}).items() if new != old},
            "spelling": {
                path: [x.a, x.b, x.alpha, x.bias]
                for path, x in checkpoint.spelling.items()
                if path in adapters  # Names of absent modules have no tensors.
            },
        }
    )


def from_json(text: str) -> Facts:
    """Parse the text written by `to_json`.

    Raises:
      ValueError: if the text is something else.
    """
    try:
        found = json.loads(text)
        return Facts(
            layers={
                path: Layer(kind=kind, window=tuple(window))
                for path, (kind, window) in found["layers"].items()
            },
            absent={p: (int(m), int(n)) for p, (m, n) in found["absent"].items()},
            # Files written before modules could share an update lack the next one.
            shared=dict(found.get("shared", {})),
            nominal={path: int(rank) for path, rank in found["nominal"].items()},
            provenance=dict(found["provenance"]),
            renamed=dict(found["renamed"]),
            spelling={
                path: Spelling(a=a, b=b, alpha=alpha, bias=bias)
                for path, (a, b, alpha, bias) in found.get("spelling", {}).items()
            },
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its metadata 'para_jax' is damaged ({error}).") from error


def restored(checkpoint: Checkpoint, facts: Facts) -> Checkpoint:
    """Combine a checkpoint read from a file with its facts."""
    extra = {facts.renamed.get(name, name): x for name, x in checkpoint.extra.items()}
    adapters = {
        path: dataclasses.replace(x, nominal=facts.nominal.get(path))
        for path, x in checkpoint.adapters.items()
    }
    return dataclasses.replace(
        checkpoint,
        adapters=adapters,
        extra=extra,
        # The tensors' own shapes and names are right even where a record is stale.
        layers={**facts.layers, **checkpoint.layers},
        absent=facts.absent,
        shared=facts.shared,
        provenance=facts.provenance,
        spelling={**facts.spelling, **checkpoint.spelling},
    )
