"""An invented almanac: thousands of small places, people and ships with facts, made by a seeded generator.

Nothing in it is true, so that no model can know an answer from anywhere but the passages. The same entities can be
given other facts, to see whether answers follow the knowledge source.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Facts = dict[str, str]
"""The name of a fact ("founder") to its value ("Ansel Torvik")."""


@dataclass(frozen=True)
class Kind:
    """A kind of entity: what is known of one, how that is written down, how it is asked for."""

    name: str
    openings: tuple[str, ...]
    """First sentences."""
    sentences: dict[str, tuple[str, ...]]
    """Fact to the sentences that may state it."""
    questions: dict[str, tuple[str, ...]]
    """Fact to the questions that may ask for it."""
    values: dict[str, Callable[[Names], str]]
    """Fact to what draws a value for it."""


@dataclass(frozen=True)
class Entity:
    """Something the almanac has an article about."""

    name: str
    kind: Kind
    facts: Facts


@dataclass(frozen=True)
class Question:
    """A question about one fact of one entity."""

    text: str
    entity: str
    fact: str
    answer: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


class Names:
    """Draws invented names, none of them twice, and other values."""

    ONSETS = _words("b br c d dr f g gl h j k l m n p qu r s st t th tr v w z")
    VOWELS = _words("a e i o u ai ea ei ia io ou")
    CODAS = ("", "", *_words("l m n nd r rn s sk x"))
    CRAFTS = _words("glass bells paper rope salt clocks lace tiles kites candles saddles ink")
    CARGOES = _words("timber wool spices grain copper oranges tea marble pearls oil silk coal")
    INSTRUMENTS = _words("harp flute drum fiddle organ lute horn zither cello oboe")
    DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._used: set[str] = set()

    def word(self) -> str:
        """A new capitalised name of two or three syllables."""
        while True:
            syllables = self.random.choice((2, 2, 3))
            word = "".join(
                self.random.choice(self.ONSETS) + self.random.choice(self.VOWELS) + self._coda(last=i == syllables - 1)
                for i in range(syllables)
            ).capitalize()
            if word not in self._used:
                self._used.add(word)
                return word

    def person(self) -> str:
        return f"{self.word()} {self.word()}"

    def year(self) -> str:
        return str(self.random.randint(1100, 1999))

    def number(self) -> str:
        return str(self.random.randint(12, 980))

    def choice(self, values: Sequence[str]) -> str:
        return self.random.choice(values)

    def _coda(self, last: bool) -> str:
        return self.random.choice(self.CODAS) if last else self.random.choice(("", "", "l", "n", "r"))


TOWN = Kind(
    "town",
    ("{name} is a town in the hills.", "{name} is a small town by the sea.", "The town of {name} lies inland."),
    {
        "founder": ("It was founded by {founder}.", "Its founder was {founder}."),
        "river": ("The river {river} runs through it.", "It stands on the river {river}."),
        "year": ("It got its charter in {year}.", "The charter was granted in {year}."),
        "craft": ("Its people make {craft}.", "It is known for its {craft}."),
        "day": ("Market day is {day}.", "The market is held every {day}."),
    },
    {
        "founder": ("Who founded {name}?", "Who was the founder of {name}?"),
        "river": ("Which river runs through {name}?", "On which river does {name} stand?"),
        "year": ("When did {name} get its charter?", "In what year was {name} granted its charter?"),
        "craft": ("What do the people of {name} make?", "What is {name} known for?"),
        "day": ("When is market day in {name}?", "On which day is the market of {name} held?"),
    },
    {
        "founder": Names.person,
        "river": Names.word,
        "year": Names.year,
        "craft": lambda names: names.choice(Names.CRAFTS),
        "day": lambda names: names.choice(Names.DAYS),
    },
)

MUSICIAN = Kind(
    "musician",
    ("{name} was a musician.", "{name} was a player and composer.", "The musician {name} travelled widely."),
    {
        "birthplace": ("The place of birth was {birthplace}.", "Born in {birthplace}."),
        "teacher": ("The teacher was {teacher}.", "Lessons came from {teacher}."),
        "instrument": ("The instrument was the {instrument}.", "Crowds came to hear the {instrument}."),
        "opera": ("The opera {opera} brought fame.", "The best work is the opera {opera}."),
    },
    {
        "birthplace": ("Where was {name} born?", "What is the place of birth of {name}?"),
        "teacher": ("Who taught {name}?", "Who was the teacher of {name}?"),
        "instrument": ("What instrument did {name} play?", "Which instrument was played by {name}?"),
        "opera": ("Which opera did {name} write?", "What is the opera by {name} called?"),
    },
    {
        "birthplace": Names.word,
        "teacher": Names.person,
        "instrument": lambda names: names.choice(Names.INSTRUMENTS),
        "opera": Names.word,
    },
)

SHIP = Kind(
    "ship",
    ("The {name} was a sailing ship.", "The {name} was a ship with three masts.", "The {name} sailed for many years."),
    {
        "captain": ("Her captain was {captain}.", "She sailed under {captain}."),
        "port": ("Her home port was {port}.", "She was at home in {port}."),
        "cargo": ("She carried {cargo}.", "Her cargo was {cargo}."),
        "crew": ("She had a crew of {crew}.", "Her crew numbered {crew}."),
        "launched": ("She was launched in {launched}.", "Her launch was in {launched}."),
    },
    {
        "captain": ("Who was captain of the {name}?", "Under whom did the {name} sail?"),
        "port": ("What was the home port of the {name}?", "Where was the {name} at home?"),
        "cargo": ("What did the {name} carry?", "What was the cargo of the {name}?"),
        "crew": ("How many people were the crew of the {name}?", "How large was the crew of the {name}?"),
        "launched": ("When was the {name} launched?", "In what year was the {name} launched?"),
    },
    {
        "captain": Names.person,
        "port": Names.word,
        "cargo": lambda names: names.choice(Names.CARGOES),
        "crew": Names.number,
        "launched": Names.year,
    },
)

KINDS = (TOWN, MUSICIAN, SHIP)


def invent_entities(count: int, seed: int) -> list[Entity]:
    """`count` entities of all kinds, every name different from every other name in the almanac."""
    names = Names(seed)
    entities = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        name = names.person() if kind is MUSICIAN else names.word()
        entities.append(Entity(name, kind, {fact: draw(names) for fact, draw in kind.values.items()}))
    return entities


def change_facts(entities: Sequence[Entity], seed: int) -> list[Entity]:
    """The same entities, every fact with another value."""
    names = Names(seed)
    changed = []
    for entity in entities:
        facts = {}
        for fact, draw in entity.kind.values.items():
            value = draw(names)
            while value == entity.facts[fact]:
                value = draw(names)
            facts[fact] = value
        changed.append(Entity(entity.name, entity.kind, facts))
    return changed


def write_article(entity: Entity, seed: int) -> str:
    """The entity's article: an opening and its facts in any order and wording. The same `seed` words it the same."""
    chooser = random.Random(f"{seed} {entity.name}")
    facts = list(entity.facts)
    chooser.shuffle(facts)
    sentences = [chooser.choice(entity.kind.openings), *(chooser.choice(entity.kind.sentences[fact]) for fact in facts)]
    return " ".join(sentences).format(name=entity.name, **entity.facts)


def ask_about(entity: Entity, seed: int) -> list[Question]:
    """A question about each fact of the entity; the same `seed` asks in the same words."""
    chooser = random.Random(f"{seed} {entity.name}")
    return [
        Question(chooser.choice(wordings).format(name=entity.name), entity.name, fact, entity.facts[fact])
        for fact, wordings in entity.kind.questions.items()
    ]
