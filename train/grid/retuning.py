"""Re-tuned children: LoRA started from a parent's updates, cut.

Each member starts from the child of its own seed's parent and from that parent's
classifier, with fresh moments, at the rate that the same protocol chooses.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import para_jax as para
from train import posthoc
from train.experiments.rows import Row
from train.grid import offspring, plan, training
from train.methods import lora
from train.runs import settings as runs, trainer


def rows(
    place: training.Place,
    parents: Sequence[offspring.Parent],
    rank: float,
    share: float,
) -> list[Row]:
    """Train children of one rank for a share of the steps; return their rows."""
    steps = max(1, round(share * place.settings.steps))
    shorter = dataclasses.replace(place.settings, steps=steps)
    config = lora.Lora()
    starts = {x.seed: _start(x, rank, config) for x in parents}
    there = place._replace(settings=shorter)
    trained = training.train(there, config, lambda given: _begin(given, starts))
    policy = f"rank {rank:g} steps {share:g}"
    entry = plan.Entry(name=plan.PARENT.name, method="retuned", config=config)
    return training.all_rows(there, trained, entry, policy)


def _start(
    parent: offspring.Parent, rank: float, config: lora.Lora
) -> tuple[Any, Mapping[str, np.ndarray]]:
    """Return LoRA's starting factors in the parent's shapes, and the head.

    Dropped components are zero in both factors, and stay zero.
    """
    parts = posthoc.decompose(parent.adapters)
    masks = posthoc.choose(parts, {p: x.s for p, x in parts.items()}, para.Rank(rank))
    # Padded to the parent's shapes: one program trains all ranks.
    child = para.pad(posthoc.child(parts, masks), like=parent.adapters)
    # LoRA's own scale is applied again by the method.
    factors = {path: {"a": x.a, "b": x.b / config.scale} for path, x in child.items()}
    return factors, dict(parent.head)


def _begin(given: runs.Inputs, starts: Mapping[int, Any]) -> trainer.Learner:
    """Start the members at the children of their seeds."""
    learners = runs.begin(given)
    members = [starts[seed] for seed, _ in given.run.members]
    # In the order of the members: seeds first, then rates.
    params, head = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *members)
    return learners._replace(state=learners.state._replace(params=params), head=head)
