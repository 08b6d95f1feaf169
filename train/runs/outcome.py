"""Results of the members of a run: adapters on disk, and accuracies.

The learning rate is chosen on the validation part. The test part is read for the
members of that learning rate alone. Runs on the host.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import para_jax as para
from train.evaluation import evaluate
from train.methods.method import size
from train.models import pretrained
from train.runs import settings as runs, trainer
from train.subjects.subject import Subject


class Member(NamedTuple):
    """One member of a run, after training.

    Attributes:
      seed: The member's seed.
      rate: The member's learning rate.
      adapter: The trained adapter, with its classifier; None if it diverged.
    """

    seed: int
    rate: float
    adapter: para.Checkpoint | None

    @property
    def name(self) -> str:
        """The folder of the adapter."""
        return f"seed-{self.seed}-rate-{self.rate:g}"


def trained(
    given: runs.Inputs,
    learners: trainer.Learner,
    diverged: Sequence[int | None],
    peft: Mapping[str, Any],
) -> list[Member]:
    """Return the trained members of a run.

    Args:
      given: The run.
      learners: The members at their end.
      diverged: The step of each member's divergence, or None.
      peft: The model's entries in the adapters' configuration.
    """
    learners, method = jax.device_get(learners), given.trainer.method
    result = []
    for i, (pair, step) in enumerate(zip(given.run.members, diverged, strict=True)):
        # `finish` runs on the host, for one member at a time: ranks become shapes.
        one = jax.tree.map(lambda x: jnp.asarray(x[i]), learners)  # noqa: B023
        adapter = None
        if step is None:
            adapter = para.Checkpoint(
                adapters=method.finish(one.state),
                extra=pretrained.stored(one.head),
                config={"peft_type": "LORA", **peft},
            )
        result.append(Member(*pair, adapter))
    return result


def save(members: Sequence[Member], place: pathlib.Path) -> None:
    """Write the adapters, each in PEFT's format, into a folder of its own."""
    for member in members:
        if member.adapter is not None:
            para.save(member.adapter, place / member.name, overwrite=True)


def load(rows: Sequence[Mapping[str, Any]], place: pathlib.Path) -> list[Member]:
    """Load the members. Inverse: `save`.

    Args:
      rows: The rows of `rows` for the members.
      place: The folder of `save`.
    """
    result = []
    for row in rows:
        member = Member(row["seed"], row["learning_rate"], None)
        if row["validation"] is not None:
            member = member._replace(adapter=para.load(place / member.name))
        result.append(member)
    return result


def rows(
    members: Sequence[Member], subject: Subject, *, like: Sequence[Member] = ()
) -> list[dict[str, Any]]:
    """Evaluate the members; return a row a member, as plain JSON values.

    `validation` and `test` are accuracies; if a task has several test sets, `test`
    is the mean of `tests`, which has each. `measures` are further metrics of the
    subject. All three are null except for members of the best learning rate. All
    values of a diverged member are null.

    Args:
      members: The members to evaluate.
      subject: The task to evaluate on.
      like: The parents of children: these run in the compiled program of their parents.
    """
    shapes = _largest([*members, *like])
    validation = _accuracies(members, subject, subject.validation, shapes)
    rate = best_rate(members, validation)
    # Test sets are read for the chosen rate only; others stay unseen.
    chosen = [x if x.rate == rate else x._replace(adapter=None) for x in members]
    tests, measures = (
        {name: _accuracies(chosen, subject, part, shapes) for name, part in found}
        for found in (subject.tests.items(), subject.measures.items())
    )
    return [
        {
            "seed": member.seed,
            "learning_rate": member.rate,
            "validation": validation[i],
            "test": _mean([x[i] for x in tests.values()]),
            "tests": {name: x[i] for name, x in tests.items()},
            "measures": {name: x[i] for name, x in measures.items()},
            **_size(member.adapter),
        }
        for i, member in enumerate(members)
    ]


def best_rate(members: Sequence[Member], validation: Sequence[float | None]) -> float:
    """Return the learning rate of the best mean accuracy; of equals, the smaller.

    A member that diverged has an accuracy of 0.
    """
    found: dict[float, list[float]] = {}
    for member, accuracy in zip(members, validation, strict=True):
        # A divergence counts as 0, so that an unstable rate cannot win by the rest.
        found.setdefault(member.rate, []).append(accuracy or 0.0)
    # Sorted, since `max` returns the first of equals: the smaller rate.
    return max(sorted(found), key=lambda rate: np.mean(found[rate]))


def _accuracies(
    members: Sequence[Member],
    subject: Subject,
    part: evaluate.Part,
    shapes: Mapping[str, para.Adapter],
) -> list[float | None]:
    """Return the accuracies, with None for a member without an adapter."""
    adapters = [x.adapter for x in members if x.adapter is not None]
    if not adapters:
        return [None] * len(members)
    heads = [pretrained.head(x.extra) for x in adapters]
    collection = subject.model.adapted.collection
    # Padded to common shapes, so that parents and children share one program.
    lora = [collection(para.pad(x.adapters, like=shapes)) for x in adapters]
    found = part.accuracies(
        subject.model,
        subject.base,
        jax.tree.map(lambda *x: np.stack(x), *heads),
        jax.tree.map(lambda *x: np.stack(x), *lora),
        part.batches,
        # A small run need not be filled up to 32 models.
        at_once=min(evaluate.AT_ONCE, len(members)),
    )
    values: Iterator[float] = iter(found.tolist())
    return [None if x.adapter is None else next(values) for x in members]


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None without accuracies."""
    found = [x for x in values if x is not None]
    return float(np.mean(found)) if found else None


def _largest(members: Sequence[Member]) -> dict[str, para.Adapter]:
    """Return the adapter of the largest rank for each module, for shapes."""
    result: dict[str, para.Adapter] = {}
    for member in members:
        for path, x in member.adapter.adapters.items() if member.adapter else ():
            if path not in result or x.rank > result[path].rank:
                result[path] = x
    return result


def _size(adapter: para.Checkpoint | None) -> dict[str, int | None]:
    ranks, params = (None, None) if adapter is None else size(adapter.adapters)
    return {"rank_total": ranks, "params": params}
