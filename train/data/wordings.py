"""Wordings of the stories of `train.data.problems`, different in each part.

`{n}` is the person of the story, `{o}` another one, `{t}` the counted things, `{a}` and
`{b}` are numbers.
"""

Wordings = dict[str, dict[str, tuple[str, ...]]]
"""The sentences of each part, by kind of event."""

NAMES = (
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Ida",
    "Jack",
    "Kate",
    "Leo",
    "Maria",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tina",
    "Victor",
)

THINGS = (
    "apples",
    "balls",
    "books",
    "buttons",
    "candles",
    "cards",
    "coins",
    "cookies",
    "cups",
    "eggs",
    "flowers",
    "lemons",
    "marbles",
    "muffins",
    "nuts",
    "oranges",
    "pens",
    "photos",
    "plums",
    "shells",
    "stamps",
    "stickers",
    "stones",
    "toys",
)

OPENINGS: Wordings = {
    "have": {  # x = a
        "train": (
            "{n} has {a} {t}.",
            "{n} owns {a} {t}.",
            "There are {a} {t} on the table of {n}.",
            "In the morning {n} has {a} {t}.",
            "{n} starts the day with {a} {t}.",
            "{n} got {a} {t} for a birthday.",
            "A box of {n} holds {a} {t}.",
            "{o} gave {n} {a} {t}.",
        ),
        "validation": (
            "On the table there are {a} {t} that {n} owns.",
            "At first {n} has {a} {t}.",
        ),
        "test": (
            "{n} starts with {a} {t}.",
            "In a box {n} has {a} {t}.",
            "{n} got {a} {t} in the morning.",
        ),
    },
    "boxes": {  # x = a * b
        "train": (
            "{n} has {a} boxes with {b} {t} each.",
            "{n} fills {a} bags with {b} {t} each.",
            "There are {a} shelves at home, and on each {n} puts {b} {t}.",
            "{n} buys {a} packs. In each pack there are {b} {t}.",
            "Every day for {a} days {n} collects {b} {t}.",
            "{n} has {a} rows of {b} {t}.",
        ),
        "validation": (
            "{n} owns {a} bags. In each bag there are {b} {t}.",
            "For {a} days {n} buys {b} {t} every day.",
        ),
        "test": (
            "{n} collects {a} boxes of {b} {t} each.",
            "On each of {a} shelves {n} has {b} {t}.",
            "In each of {a} bags there are {b} {t}. All belong to {n}.",
        ),
    },
    "both": {  # x = a + b
        "train": (
            "{n} has {a} red {t} and {b} blue {t}.",
            "{n} has {a} {t} in one box and {b} {t} in another.",
            "{n} finds {a} {t} on Monday and {b} {t} on Tuesday.",
            "{n} has {a} {t}, {o} has {b} {t}, and they put them together.",
            "{n} buys {a} old {t} and {b} new {t}.",
            "There are {a} {t} on the table and {b} {t} on the floor. {n} takes all.",
        ),
        "validation": (
            "{n} puts {a} red {t} and {b} blue {t} together.",
            "On Monday {n} buys {a} {t}, and on Tuesday {b} {t}.",
        ),
        "test": (
            "{n} has {a} old {t} and {b} new {t} in a box.",
            "{n} takes {a} {t} from one shelf and {b} {t} from another.",
            "{n} finds {a} blue {t} and {b} red {t}.",
        ),
    },
}

EVENTS: Wordings = {
    "gain": {  # x + a
        "train": (
            "{n} buys {a} more {t}.",
            "Then {o} gives {n} {a} {t}.",
            "{n} finds {a} more on the way home.",
            "After that, {n} gets {a} more {t}.",
            "{n} picks up another {a} {t}.",
            "A friend brings {a} more {t} to {n}.",
            "{n} wins {a} {t} in a game.",
            "Later another {a} {t} are added.",
        ),
        "validation": (
            "Later {n} gets another {a} {t} from {o}.",
            "After that, {o} brings {n} {a} {t}.",
        ),
        "test": (
            "Then {n} finds another {a} {t}.",
            "Later {a} more {t} are given to {n}.",
            "{n} picks up {a} more {t} from a friend.",
        ),
    },
    "lose": {  # x - a
        "train": (
            "{n} gives {a} {t} to {o}.",
            "Then {n} loses {a} of the {t}.",
            "{n} sells {a} of them.",
            "After that, {o} takes {a} {t} away.",
            "{n} uses {a} {t} in a game.",
            "Later {a} of the {t} break.",
            "{n} throws {a} old {t} away.",
            "{n} leaves {a} of them at home.",
        ),
        "validation": (
            "Later {n} sells {a} {t} to {o}.",
            "Then {a} {t} are lost.",
        ),
        "test": (
            "{n} throws away {a} of the {t}.",
            "Then {o} takes {a} of them.",
            "Later {n} gives away {a} {t}.",
        ),
    },
    "packs": {  # x + a * b
        "train": (
            "{n} buys {a} packs of {b} {t} each.",
            "Then {o} brings {a} bags with {b} {t} in each.",
            "{a} friends give {n} {b} {t} each.",
            "On each of the next {a} days {n} gets {b} more {t}.",
            "{n} wins {a} games and gets {b} {t} for each.",
            "Later {n} finds {a} boxes with {b} {t} in each.",
        ),
        "validation": (
            "Then {a} friends bring {b} {t} each.",
            "Later {n} buys {a} bags of {b} {t} each.",
        ),
        "test": (
            "Then {n} gets {a} boxes of {b} {t} each.",
            "Each of {a} friends gives {n} {b} more {t}.",
            "{o} brings {n} {a} packs with {b} {t} in each.",
        ),
    },
    "times": {  # x * a
        "train": (
            "With a machine {n} turns them into {a} times as many.",
            "A year later {n} has {a} times as many {t}.",
            "By a trick they become {a} times as many.",
            "In the summer there are {a} times as many {t}.",
            "After a month {n} has {a} times as many.",
        ),
        "validation": ("A month later there are {a} times as many {t}.",),
        "test": (
            "In a year they become {a} times as many.",
            "After the summer {n} has {a} times as many {t}.",
        ),
    },
    "halve": {  # x / 2
        "train": (
            "{n} gives half of them to {o}.",
            "Then {n} sells half of the {t}.",
            "Later half of the {t} are lost.",
            "{n} uses half of the {t}.",
            "{o} takes half of them away.",
        ),
        "validation": ("Then {n} loses half of them.",),
        "test": (
            "Then {o} takes half of the {t}.",
            "{n} throws half of them away.",
        ),
    },
}

QUESTIONS: Wordings = {
    "count": {  # x
        "train": (
            "How many {t} does {n} have now?",
            "How many {t} are there in the end?",
            "How many {t} are left?",
            "What is the number of {t} that {n} has?",
        ),
        "validation": ("How many {t} does {n} have in the end?",),
        "test": (
            "How many {t} are there now?",
            "What is the number of {t} that are left?",
        ),
    },
    "share": {  # x / a
        "train": (
            "{n} puts them into {a} equal bags. How many {t} are in each bag?",
            "{a} friends share the {t} equally. How many does each friend get?",
            "The {t} are laid in {a} equal rows. How many are in a row?",
            "{n} uses them up in {a} days, equally many a day. How many a day?",
        ),
        "validation": (
            "The {t} are put into {a} equal boxes. How many are in each box?",
        ),
        "test": (
            "{n} gives them to {a} friends, equally many to each. How many is that?",
            "The {t} are put on {a} shelves, equally many on each. How many on each?",
        ),
    },
    "price": {  # x * a
        "train": (
            "{n} sells all for {a} dollars each. How many dollars does {n} get?",
            "Each of the {t} costs {a} dollars. How much do all cost?",
            "Each weighs {a} grams. How many grams do the {t} weigh?",
            "{n} needs {a} minutes to paint one. How many minutes for all {t}?",
        ),
        "validation": ("Each of the {t} weighs {a} grams. How much do all weigh?",),
        "test": (
            "{n} gets {a} dollars for each. How many dollars are that for all {t}?",
            "Each of them costs {a} dollars. How many dollars do all {t} cost?",
        ),
    },
}
