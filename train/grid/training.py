"""One method on one task: the search for its learning rate, and all its seeds.

Axis letters: `M` members of a run, `C` kept members, in the order of seeds.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from train.evaluation import evaluate
from train.experiments.rows import Row
from train.grid import plan
from train.methods.method import Adapters, Config, State, size
from train.runs import settings as runs, trainer
from train.subjects.subject import Subject

Begin = Callable[[runs.Inputs], trainer.Learner]
Served = Callable[[State], Adapters]


class Place(NamedTuple):
    """A task, its subject, and a plan's settings for it."""

    task: str
    subject: Subject
    settings: runs.Run
    plan: plan.Plan


class Tried(NamedTuple):
    """The trained members of a run.

    Attributes:
      run: The run's settings.
      learners: The members, leaves `[M, ...]`.
      validation: The accuracy of each.
    """

    run: runs.Run
    learners: trainer.Learner
    validation: Float[np.ndarray, " M"]


class Trained(NamedTuple):
    """The trained members of one method on one task.

    Attributes:
      searched: The runs that tried rates, to choose one.
      rate: The learning rate that was chosen.
      learners: The members with this rate, leaves `[C, ...]`, on the host.
      seeds: The members' seeds.
      validation: Their accuracies.
    """

    searched: tuple[Tried, ...]
    rate: float
    learners: trainer.Learner
    seeds: tuple[int, ...]
    validation: Float[np.ndarray, " C"]


def train(place: Place, config: Config, begin: Begin = runs.begin) -> Trained:
    """Train the method on all seeds, at the rate chosen by validation.

    Args:
      place: The task with its settings.
      config: The method.
      begin: Returns the members at their start.
    """
    search = place.plan.search(place.task, config, place.settings)
    searched = (_tried(place, search, begin),)
    ends = search.learning_rates[0], search.learning_rates[-1]
    # The best rate at an end of the grid may lie beyond it.
    if place.plan.outer and _best(searched)[0] in ends:
        searched += (_tried(place, place.plan.outside(search), begin),)
    rate, first = _best(searched)
    others = _tried(place, place.plan.rest(search, rate), begin)
    learners, validation = jax.tree.map(
        lambda *x: np.concatenate(x), first, tuple(others[1:])
    )
    seeds = (*search.seeds, *others.run.seeds)
    return Trained(searched, rate, learners, seeds, validation)


def _best(searched: Sequence[Tried]) -> tuple[float, tuple[trainer.Learner, Any]]:
    """Return the rate of the best mean validation accuracy, and its members."""
    found = [
        # Members are ordered seeds first, so that one rate's are a stride apart.
        (tried.validation[at :: len(tried.run.learning_rates)].mean(), at, tried)
        for tried in searched
        for at in range(len(tried.run.learning_rates))  # Members: seeds come first.
    ]
    _, at, tried = max(found, key=lambda x: x[0])
    rates = tried.run.learning_rates
    return rates[at], jax.tree.map(lambda x: x[at :: len(rates)], tuple(tried[1:]))


def rows(place: Place, trained: Trained, entry: plan.Entry) -> list[Row]:
    """Return the rows of the search and of the results. This reads the test parts."""
    if entry.ranks is None:
        return all_rows(place, trained, entry, _policy(entry.config))
    # One run, one rate, many ranks: what else was tried was for the target alone.
    result = _searched(place, trained, entry, _policy(entry.config))
    for rank in entry.ranks:
        served = functools.partial(_at_rank, entry.config, rank=rank)
        result += served_rows(place, trained, entry, f"rank {rank}", served)
    return result


def all_rows(
    place: Place, trained: Trained, entry: plan.Entry, policy: str
) -> list[Row]:
    """Return the rows of the losing learning rates, and of the best one."""
    searched = _searched(place, trained, entry, policy)
    return searched + served_rows(place, trained, entry, policy)


def served_rows(
    place: Place,
    trained: Trained,
    entry: plan.Entry,
    policy: str,
    served: Served | None = None,
) -> list[Row]:
    """Test the members; return a row for each seed and each test set.

    Args:
      place: The task with its settings.
      trained: The members.
      entry: The method.
      policy: The policy's name in rows.
      served: The adapters to evaluate; by default those that the method ends with.
    """
    method = entry.config.method(place.settings.steps)
    state, head = trained.learners.state, trained.learners.head
    lora = _collection(place, state, served or method.adapters)
    validation = trained.validation
    if served is not None:
        validation = _accuracies(place, head, lora, place.subject.validation)
    models = []
    for i, seed in enumerate(trained.seeds):
        member = _member(state, i)
        final = method.finish(member) if served is None else served(member)
        rate, value = trained.rate, validation[i]
        models.append(_row(place, entry, policy, seed, rate, final, value))
    return tested(place, models, head, lora)


def tested(
    place: Place, models: Sequence[Row], heads: Any, lora: Mapping[str, Any]
) -> list[Row]:
    """Test each model on each test set; return a row for each pair.

    Args:
      place: The task with its settings.
      models: The row of each, not tested.
      heads: The classifiers, leaves `[C, ...]`.
      lora: The adapters, as for `evaluate.accuracies`.
    """
    found, more = (
        {name: _accuracies(place, heads, lora, part) for name, part in parts.items()}
        for parts in (place.subject.tests, place.subject.measures)
    )
    return [
        dataclasses.replace(
            row,
            task=name,
            accuracy=float(accuracies[i]),
            measures={name: float(x[i]) for name, x in more.items()} or None,
        )
        for i, row in enumerate(models)
        for name, accuracies in found.items()
    ]


def _searched(
    place: Place, trained: Trained, entry: plan.Entry, policy: str
) -> list[Row]:
    """Return the rows of the losing learning rates."""
    method = entry.config.method(place.settings.steps)
    result = []
    for tried in trained.searched:
        for i, (seed, rate) in enumerate(tried.run.members):
            # The winning rate's rows come from `served_rows`, with test accuracies.
            if rate == trained.rate:
                continue
            final = method.finish(_member(tried.learners.state, i))
            value = tried.validation[i]
            result.append(_row(place, entry, policy, seed, rate, final, value))
    return result


def _tried(place: Place, settings: runs.Run, begin: Begin) -> Tried:
    subject = place.subject
    given = runs.inputs(settings, subject.model, subject.base, subject.data)
    learners = begin(given)
    for progress in runs.advance(given, learners):
        learners = progress.learners
    # To the host: the next run needs the device's memory.
    learners = jax.device_get(learners)
    lora = _collection(place, learners.state, given.trainer.method.adapters)
    validation = _accuracies(place, learners.head, lora, subject.validation)
    return Tried(settings, learners, validation)


def _collection(place: Place, state: State, served: Served) -> Any:
    """Return the adapters of all members in the model's form, on the host."""
    adapters = jax.jit(jax.vmap(served))(state)
    return jax.device_get(place.subject.model.adapted.collection(adapters))


def _accuracies(
    place: Place, head: Any, lora: Any, part: evaluate.Part
) -> Float[np.ndarray, " C"]:
    model, base = place.subject.model, place.subject.base
    return part.accuracies(model, base, head, lora, part.batches)


def _at_rank(config: Any, state: State, *, rank: int) -> Adapters:
    return config.at_rank(state, rank)


def _member(state: State, index: int) -> State:
    return jax.tree.map(lambda x: jnp.asarray(x[index]), state)


def _row(
    place: Place,
    entry: plan.Entry,
    policy: str,
    seed: int,
    rate: float,
    adapters: Adapters,
    validation: float,
) -> Row:
    ranks, parameters = size(adapters)
    kernels = place.subject.model.adapted.kernels(place.subject.base)
    return Row(
        task=place.task,
        method=entry.method,
        policy=policy,
        seed=seed,
        rank_total=ranks,
        modules=len(kernels),
        params=parameters,
        validation=float(validation),
        learning_rate=rate,
        config=entry.name,
        steps=place.settings.steps,
    )


def _policy(config: Config) -> str:
    return f"rank {config.target:g}"
