"""An invented almanac: thousands of small places, people and ships with facts, made by a seeded generator.

Nothing in it is true, so that no model can know an answer from anywhere but the passages. The same entities can be
given other facts, to see whether answers follow the knowledge source.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Wording = Literal["plain", "other"]
"""plain: as one asks; other: the same questions in other words."""


@dataclass(frozen=True)
class Fact:
    """Something that is known of every entity of a kind: how that is written down, asked for and invented."""

    sentence: str
    """States it in an article."""
    questions: tuple[str, ...]
    """Ask for it, each in words of its own."""
    other_questions: tuple[str, ...]
    """Ask for it in words that none of all `questions` has but for what no question does without."""
    draw: Callable[[Names], str]
    """Gives a value for it."""


@dataclass(frozen=True)
class Kind:
    """A kind of entity."""

    name: str
    openings: tuple[str, ...]
    """First sentences."""
    facts: dict[str, Fact]
    """By name, in the order of an article."""


@dataclass(frozen=True)
class Entity:
    """Something the almanac has an article about."""

    name: str
    kind: Kind
    facts: dict[str, str]
    """The name of a fact ("founder") to its value ("Ansel Torvik")."""


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

    ONSETS = _words("b d f g k l m n p r s t v")
    VOWELS = _words("a e i o u")
    CODAS = ("", "n", "r")
    TITLE_ONSETS = (*ONSETS, *_words("br ch dr fl gl h j qu sh st th tr w y z"))
    TITLE_VOWELS = (*VOWELS, *_words("ai ea ie oo ou"))
    TITLE_CODAS = (*CODAS, *_words("l m ck ld ng rn sk ss st x"))
    CRAFTS = _words("glass bells paper rope salt clocks lace tiles kites candles saddles ink")
    INSTRUMENTS = _words("harp flute drum fiddle organ lute horn zither cello oboe")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._used: set[str] = set()

    def title(self) -> str:
        """A new name of an entity: three syllables out of thousands, so that few sound alike."""
        return self._new(lambda: self._syllables(3, self.TITLE_ONSETS, self.TITLE_VOWELS, self.TITLE_CODAS))

    def name(self) -> str:
        """A new name within an article: two simple syllables."""
        return self._new(lambda: self._syllables(2, self.ONSETS, self.VOWELS, self.CODAS))

    def year(self) -> str:
        return str(self.random.randint(1100, 1999))

    def craft(self) -> str:
        return self.random.choice(self.CRAFTS)

    def instrument(self) -> str:
        return self.random.choice(self.INSTRUMENTS)

    def _syllables(self, count: int, *parts: Sequence[str]) -> str:
        return "".join(self.random.choice(part) for _ in range(count) for part in parts).capitalize()

    def _new(self, draw: Callable[[], str]) -> str:
        while True:
            name = draw()
            if name not in self._used:
                self._used.add(name)
                return name


TOWN = Kind(
    "town",
    ("{name} is a town in the hills.", "{name} is a small town by the sea."),
    {
        "founder": Fact(
            "It was founded by {founder}.",
            ("Who founded {name}?", "Who was it that founded {name}?"),
            ("Name the person to whom {name} owes its beginning.", "{name} goes back to one settler: give that name."),
            Names.name,
        ),
        "river": Fact(
            "It stands on the river {river}.",
            ("Which river runs through {name}?", "On which river does {name} stand?"),
            ("Name the water that passes {name}.", "Give the stream beside {name}."),
            Names.name,
        ),
        "craft": Fact(
            "It is known for its {craft}.",
            ("What is {name} known for?", "For what do people know {name}?"),
            ("Name the ware that made {name} famous.", "Give the trade that {name} lives by."),
            Names.craft,
        ),
    },
)

MUSICIAN = Kind(
    "musician",
    ("{name} was a musician.", "{name} was a player and composer."),
    {
        "teacher": Fact(
            "The teacher was {teacher}.",
            ("Who was the teacher of {name}?", "Which teacher gave lessons to {name}?"),
            ("Name the master under whom {name} learned.", "Give the one who taught {name} to play."),
            Names.name,
        ),
        "instrument": Fact(
            "The instrument was the {instrument}.",
            ("Which instrument was played by {name}?", "What was the instrument of {name}?"),
            ("Name the thing that {name} made music with.", "Give what {name} held in hand on stage."),
            Names.instrument,
        ),
        "opera": Fact(
            "The best work is the opera {opera}.",
            ("Which opera did {name} write?", "What is the opera by {name} called?"),
            (
                "Name the piece for the stage that {name} composed.",
                "Give the title of what {name} set for singers.",
            ),
            Names.name,
        ),
    },
)

SHIP = Kind(
    "ship",
    ("The {name} was a sailing ship.", "The {name} was a ship with three masts."),
    {
        "captain": Fact(
            "Her captain was {captain}.",
            ("Who was captain of the {name}?", "Under which captain did the {name} sail?"),
            ("Name the one in command aboard the {name}.", "Give the skipper of the {name}."),
            Names.name,
        ),
        "port": Fact(
            "Her home port was {port}.",
            ("What was the home port of the {name}?", "Which port was home to the {name}?"),
            ("Name the harbour that the {name} came back to.", "Give the place where the {name} lay at anchor."),
            Names.name,
        ),
        "launched": Fact(
            "She was launched in {launched}.",
            ("When was the {name} launched?", "In what year was the {name} launched?"),
            (
                "Name the date that the {name} first touched water.",
                "Give the date that the {name} left the yard.",
            ),
            Names.year,
        ),
    },
)

KINDS = (TOWN, MUSICIAN, SHIP)


def invent_entities(count: int, seed: int) -> list[Entity]:
    """`count` entities of all kinds, every name different from every other name in the almanac."""
    names = Names(seed)
    entities = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        title = names.title()
        entities.append(Entity(title, kind, {name: fact.draw(names) for name, fact in kind.facts.items()}))
    return entities


def change_facts(entities: Sequence[Entity], seed: int) -> list[Entity]:
    """The same entities, every fact with another value."""
    names = Names(seed)
    changed = []
    for entity in entities:
        facts = {}
        for name, fact in entity.kind.facts.items():
            value = fact.draw(names)
            while value == entity.facts[name]:
                value = fact.draw(names)
            facts[name] = value
        changed.append(Entity(entity.name, entity.kind, facts))
    return changed


def write_article(entity: Entity, seed: int) -> str:
    """The entity's article: an opening and its facts, in the order of its kind. The same `seed` opens it the same."""
    # Not the questions' random numbers: what is written must not depend on what is asked.
    chooser = random.Random(f"article {seed} {entity.name}")
    sentences = [chooser.choice(entity.kind.openings), *(fact.sentence for fact in entity.kind.facts.values())]
    return " ".join(sentences).format(name=entity.name, **entity.facts)


def ask_about(entity: Entity, seed: int, wording: Wording = "plain") -> list[Question]:
    """A question about each fact of the entity; the same `seed` asks in the same words."""
    chooser = random.Random(f"questions {seed} {entity.name}")

    def ask(fact: Fact) -> str:
        questions = fact.questions if wording == "plain" else fact.other_questions
        return chooser.choice(questions).format(name=entity.name)

    return [Question(ask(fact), entity.name, name, entity.facts[name]) for name, fact in entity.kind.facts.items()]
