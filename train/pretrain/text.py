"""English and arithmetic, the documents of a small language model's pretraining.

Documents of three kinds: arithmetic, in signs and in words; sentences from templates
about the people and things of the word problems; and the sentences of
`train.data.sentiment` outside of its evaluation parts. No document tells a word
problem: no template here is one there, nothing is asked, and no answer is announced.
Some sums are left out, to find out whether the model computes or remembers.

The same seed gives the same documents. Runs on the host.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from train.data import sentiment, wordings

SIGNS = {
    "+": (
        "{a} and {b} make {c}.",
        "{b} more than {a} is {c}.",
        "{a} plus {b} is {c}.",
    ),
    "-": (
        "{b} less than {a} is {c}.",
        "{a} without {b} is {c}.",
        "{a} minus {b} is {c}.",
    ),
    "*": (
        "{a} times {b} is {c}.",
        "{b} groups of {a} are {c}.",
        "{b} times as many as {a} is {c}.",
    ),
    "/": (
        "{a} shared equally by {b} is {c} each.",
        "{a} in {b} equal parts is {c} each.",
    ),
}
"""Each operation in words."""

SENTENCES = (
    "{n} likes {t}.",
    "{n} and {o} are good friends.",
    "{n} went to the market to buy some {t}.",
    "{o} told {n} about the {t}.",
    "Every morning {n} takes a walk in the garden with {o}.",
    "The {t} in the kitchen belong to {o}.",
    "{n} painted all the {t} red and blue.",
    "It was raining, so {n} stayed at home with {o}.",
    "{n} gives the old {t} to a friend.",
    "Last summer {o} found a box of {t} in the garden.",
    "{n} puts the new {t} into a bag.",
    "There is a shelf with {t} in the room of {n}.",
    "{n} lives at number {a} with {o}.",
    "The bus with the number {a} goes to the school of {n}.",
    "On page {a} of the book there is a picture of {t}.",
    "{o} is {a} years old, and {n} is younger.",
    "{n} needs more time to count the {t}.",
    "Later they both sell {t} at the fair, and {o} gets some dollars.",
    "{n} loses a game, then wins another.",
    "Half of the room is full of {t}.",
    "Each of the friends has a bag and a box.",
    "After lunch {n} picks flowers, and {o} collects stones.",
    "In the evening {o} leaves the {t} on the table.",
    "The {t} on the floor are old, those on the table are new.",
    "On Monday {n} works, on Tuesday {n} plays with {o}.",
    "A machine at the factory makes {t} for many days of the year.",
    "{n} throws a ball to {o}.",
    "By the end of the month {n} had used up all the {t}.",
    "What {n} wants is a row of {t} on the shelf.",
    "{n} finds the bags of {o} behind the shelves.",
    "{o} owns a shop and sells packs of {t}.",
    "{n} buys what weighs a few grams.",
    "{o} does not know how much the {t} weigh, or what they cost.",
)
"""Templates of sentences about people and things."""


class Sum(NamedTuple):
    """`left sign right = result`, of whole numbers."""

    left: int
    sign: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}."

    @property
    def held_out(self) -> bool:
        """Whether the sum is held out of all documents: 5 of 100 are."""
        text = f"{self.left} {self.sign} {self.right}"
        return sentiment.bucket(text) < 5


def draw_sum(generator: random.Random) -> Sum:
    """Draw a sum of numbers up to 200, or a product or quotient of up to 2,400."""
    sign = generator.choice(list(SIGNS))
    large = generator.choice((20, 60, 200))
    left, right = generator.randint(2, large), generator.randint(2, large)
    few = generator.randint(2, 12)
    match sign:
        case "+":
            return Sum(left, sign, right, left + right)
        case "-":
            return Sum(max(left, right), sign, min(left, right), abs(left - right))
        case "*":
            return Sum(left, sign, few, left * few)
        case _:
            return Sum(left * few, sign, few, left)


def documents(count: int, *, seed: int = 0) -> Iterator[str]:
    """Yield `count` documents of a few lines each."""
    # Seeded by a string, so that no other stream draws the same numbers.
    generator = random.Random(f"documents: {seed}")
    reviews = [
        text for task in sentiment.TASKS for text in sentiment.load(task, "train").texts
    ]
    for _ in range(count):
        kind = generator.random()
        if kind < 0.5:
            yield _arithmetic(generator)
        elif kind < 0.8:
            yield " ".join(_sentence(generator) for _ in range(generator.randint(4, 8)))
        else:
            yield " ".join(generator.sample(reviews, 3))


def held_out_sums(count: int) -> list[Sum]:
    """Return different sums, absent from all documents."""
    generator = random.Random("held-out sums")
    # A dict keeps the order of drawing; a set's would vary by process.
    found: dict[Sum, None] = {}
    while len(found) < count:
        if (drawn := draw_sum(generator)).held_out:
            found[drawn] = None
    return list(found)


def _arithmetic(generator: random.Random) -> str:
    sums = (draw_sum(generator) for _ in range(generator.randint(8, 14)))
    # Held-out sums appear in no form, in digits or in words.
    seen = [x for x in sums if not x.held_out]
    if generator.random() < 0.3:
        return " ".join(_in_words(generator, x) for x in seen)
    return " ".join(map(str, seen))


def _in_words(generator: random.Random, x: Sum) -> str:
    template = generator.choice(SIGNS[x.sign])
    return template.format(a=x.left, b=x.right, c=x.result)


def _sentence(generator: random.Random) -> str:
    name, other = generator.sample(wordings.NAMES, 2)
    return generator.choice(SENTENCES).format(
        n=name,
        o=other,
        t=generator.choice(wordings.THINGS),
        a=generator.randint(2, 99),
    )
