"""The almanac: names never repeat, articles hold the facts, changed facts are other facts, seeds decide everything."""

from __future__ import annotations

from ragstone.demo.almanac import KINDS, Question, ask_about, change_facts, invent_entities, write_article


def test_a_seed_gives_the_same_almanac_and_another_seed_another() -> None:
    first, again, other = invent_entities(60, 1), invent_entities(60, 1), invent_entities(60, 2)
    assert [(e.name, e.facts) for e in first] == [(e.name, e.facts) for e in again]
    assert {e.name for e in first}.isdisjoint(e.name for e in other)


def test_no_name_stands_for_two_things() -> None:
    entities = invent_entities(300, 3)
    names = [entity.name for entity in entities]
    names += [
        value for e in entities for fact, value in e.facts.items() if fact not in ("craft", "instrument", "launched")
    ]
    assert len(names) == len(set(names))


def test_every_fact_is_in_the_article_and_is_the_answer_to_a_question_about_it() -> None:
    for entity in invent_entities(30, 4):
        article = write_article(entity, 5)
        questions = ask_about(entity, 5)
        assert [question.fact for question in questions] == list(entity.facts)
        for question in questions:
            assert entity.name in question.text
            assert question.answer in article
    assert {entity.kind.name for entity in invent_entities(30, 4)} == {kind.name for kind in KINDS}


def test_changed_facts_keep_the_names_and_change_every_value() -> None:
    entities = invent_entities(300, 6)
    changed = change_facts(entities, 7)
    assert [e.name for e in changed] == [e.name for e in entities]
    for before, after in zip(entities, changed, strict=True):
        assert before.facts.keys() == after.facts.keys()
        assert all(before.facts[fact] != after.facts[fact] for fact in before.facts)
        assert [q.text for q in ask_about(before, 8)] == [q.text for q in ask_about(after, 8)]


def test_other_words_ask_for_the_same_facts() -> None:
    """None but function words are shared, so that who learned one wording has not seen the other."""
    entities = invent_entities(90, 9)
    plain, other = ([q for e in entities for q in ask_about(e, 10, wording)] for wording in ("plain", "other"))
    assert [(q.entity, q.fact, q.answer) for q in plain] == [(q.entity, q.fact, q.answer) for q in other]
    names = {entity.name for entity in entities}

    def words(questions: list[Question]) -> set[str]:
        found = {word.strip("?.,:").lower() for q in questions for word in q.text.split()}
        return found - {name.lower() for name in names}

    function_words = set("the that what who whom which to of by in on for under was is did it one".split())  # noqa: SIM905
    assert words(plain) & words(other) <= function_words
