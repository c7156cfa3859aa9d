"""Contexts are tokenised as transformers tokenises their whole text, however much of it is known."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from ragstone.model.context_tokenizer import TOKENS_TO_FIND_ONE, ContextTokenizer
from ragstone.model.text_cuts import TextCuts
from tests.model.families import FAMILIES, open_family

TEXTS = [
    "The river of the old town is blue, and the 1234 boats don't leave it in winter (1998-99).",
    'Who founded the town? The miller\'s daughter founded it; she said: "Boats!" and it was so.',
    "Ein Café an der Straße, l'été, 河の町, ﬁsh & <b>chips</b> // and / or # 42,000 e-mails...",
]
WORDS = [
    *(
        "The",
        "river",
        "don't",
        "1998",
        "42,000",
        "(blue)",
        "Café",
        "e\u0301té",
        "河の町",
        "ﬁsh",
        "//",
        "/",
        "\u2581",
        "\ufffd",
    ),
    *("<mask>", "<mask>.", "☀", "¨", "\u0301", "\u0627\u0644", "?!", "ab</s>c", "'S", "\u03a3"),
]
BLANKS = [*6 * [" "], "  ", "\n", "\n\n", "\u00a0", "\t", " \u200b", "\u200b ", " \u0301", "", "\u3000", "\u00ad "]
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<s>", "</s>", "<unk>"]


def _trained(
    model: Any, trainer: Any, words: Any, normalizer: Any = None, added: AddedToken | None = None
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if words is not None:
        tokenizer.pre_tokenizer = words
    tokenizer.train_from_iterator(TEXTS, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in SPECIAL[:2]]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    mask = added or AddedToken("<mask>", lstrip=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", mask_token=mask
    )


def _bpe(words: Any, normalizer: Any = None, added: AddedToken | None = None) -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    return _trained(models.BPE(unk_token="<unk>"), trainer, words, normalizer, added)


def _unigram(words: Any, normalizer: Any = None, added: AddedToken | None = None) -> PreTrainedTokenizerFast:
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return _trained(models.Unigram(), trainer, words, normalizer, added)


def _wordpiece() -> PreTrainedTokenizerFast:
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    words, normalizer = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()
    return _trained(models.WordPiece(unk_token="<unk>"), trainer, words, normalizer)


def _byte_level(added: AddedToken | None = None, prefix: bool = False) -> PreTrainedTokenizerFast:
    return _bpe(pre_tokenizers.ByteLevel(add_prefix_space=prefix), added=added)


def _t5_words() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])


def _two_blanks_are_one(*first: Any) -> Any:
    return normalizers.Sequence([*first, normalizers.Replace(Regex(" {2,}"), " ")])


def _split(*patterns: str) -> Any:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


CUTTING: dict[str, Callable[[], Any]] = {
    "GPT-2, BART": _byte_level,
    "with a blank before": lambda: _byte_level(prefix=True),
    "Llama 3, Qwen": lambda: _bpe(_split(QWEN_WORDS), normalizers.NFC()),
    "Pythia": lambda: _byte_level(AddedToken("   ")),
    "BERT": _wordpiece,
    "T5": lambda: _unigram(_t5_words(), normalizers.NFKC()),
    "T5 as it was saved before": lambda: _unigram(_t5_words(), None, AddedToken("<mask>", rstrip=True, lstrip=True)),
    "NLLB": lambda: _unigram(pre_tokenizers.Metaspace(), _two_blanks_are_one(normalizers.Nmt(), normalizers.NFKC())),
    "Metaspace at the start alone": lambda: _unigram(pre_tokenizers.Metaspace(prepend_scheme="first")),
}
WHOLE: dict[str, Callable[[], Any]] = {
    "Llama 2": lambda: _bpe(None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])),
    "Gemma": lambda: _bpe(pre_tokenizers.Split(" ", "merged_with_previous"), normalizers.Replace(" ", "▁")),
    "Metaspace that does not split": lambda: _bpe(pre_tokenizers.Metaspace(split=False)),
    "blanks before words are lost": lambda: _bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Strip()),
    "a blank with the word before": lambda: _bpe(pre_tokenizers.Split(" ", "merged_with_previous")),
    "a blank between marks is no end": lambda: _bpe(_split(r" ?[^(\s|[.,!?…。，、।۔،])]+")),
    "a blank between signs is no end": lambda: _bpe(_split(r"\s?\p{L}+", r"\s?\p{P}+")),
    "accents go, and leave two blanks": lambda: _unigram(
        pre_tokenizers.Metaspace(), _two_blanks_are_one(normalizers.NFKD(), normalizers.StripAccents())
    ),
    "a normalised token that takes the blank": lambda: _byte_level(AddedToken("The", rstrip=True, normalized=True)),
    "a token of two words": lambda: _byte_level(AddedToken("The river")),
    "ByT5": ByT5Tokenizer,
}


@pytest.mark.parametrize("name", [*CUTTING, *WHOLE])
@pytest.mark.parametrize("opens", [True, False])
def test_tokens_are_those_of_the_whole_text(name: str, opens: bool) -> None:
    _hold_against_transformers({**CUTTING, **WHOLE}[name](), opens)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokenizers_of_families(family_folder: Callable[[str], Path], name: str) -> None:
    tokenizer = open_family(name, family_folder(name)).tokenizer
    _hold_against_transformers(tokenizer, opens=True)
    assert TextCuts(tokenizer).possible == (name not in ("M2M100", "byT5", "Marian"))


def _hold_against_transformers(tokenizer: Any, opens: bool) -> None:
    """Over odd blanks, marks and added tokens, for questions that come after others to the same passages."""
    tokenized = ContextTokenizer(tokenizer)
    # As a batch with, and then without special tokens.
    tokenized.ids([("a b", " c")], 999, opens=not opens)
    draw = random.Random(5)
    heads = ["", *(_text(draw) for _ in range(40))]
    for _ in range(6):
        tails = ["", " // who ?", "\n\nWho?", *(_text(draw) for _ in range(4)), *(f" {_text(draw)}" for _ in range(4))]
        contexts = [(head, tail) for head in heads for tail in tails]
        expected = tokenizer([head + tail for head, tail in contexts], add_special_tokens=opens)["input_ids"]
        assert tokenized.ids(contexts, 999, opens=opens) == expected


def _text(draw: random.Random) -> str:
    return "".join(draw.choice(WORDS) + draw.choice(BLANKS) for _ in range(draw.randrange(1, 7)))


@pytest.mark.parametrize(("kinds", "expected"), [(CUTTING, True), (WHOLE, False)])
def test_which_tokenizers_allow_cutting(kinds: dict[str, Callable[[], Any]], expected: bool) -> None:
    assert {name: TextCuts(make()).possible for name, make in kinds.items()} == dict.fromkeys(kinds, expected)


@pytest.mark.parametrize(
    ("head", "tail", "beginning"),
    [
        ("the river", " // who", "the river"),
        ("the river", "// who", "the"),
        ("Passage: the old river.", "\n\nQuestion: who", "Passage: the old"),
        ("the river ", "who", "the river"),
        ("the river", "  who", ""),
        ("the\u200b", " who", ""),
        ("the river", " \u200bwho", ""),
        ("the e\u0301", " who", ""),
        ("the river", " \u0301who", ""),
        ("the \u2581", " who", ""),
        ("the \ufffd", " who", ""),
        ("the\u00a0", " who", ""),
        ("river", "who", ""),
        ("", " who", ""),
        ("", "who was it", ""),
        ("river", " ", ""),
        ("river", "", ""),
    ],
)
def test_the_place_to_cut(head: str, tail: str, beginning: str) -> None:
    text = head + tail
    assert text[: TextCuts(_byte_level()).place(text, len(head))] == beginning


def test_not_behind_a_token_that_takes_the_blank() -> None:
    cuts = TextCuts(_byte_level(AddedToken("<mask>", rstrip=True, normalized=False)))
    assert cuts.possible
    assert (cuts.place("the <mask> who", 12), cuts.place("the <mask>. who", 12)) == (0, 11)


@pytest.mark.parametrize("opens", [True, False])
def test_whatever_the_tokenizer_was_asked_before(generator_tokenizer: Any, opens: bool) -> None:
    contexts = [("the river / the river is blue", " // who ?"), ("", "who founded </s> the town ?"), ("", "")]
    expected = generator_tokenizer([head + tail for head, tail in contexts], add_special_tokens=opens)["input_ids"]
    tokenized = ContextTokenizer(generator_tokenizer)
    for _ in range(2):
        generator_tokenizer(["the old town"], truncation=True, max_length=2, padding="max_length")
        assert tokenized.ids(contexts, 99, opens=opens) == expected


class Watched(ContextTokenizer):
    """Tells what it tokenises."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tokenised: list[str] = []

    def _whole(self, texts: Sequence[str], special_tokens: bool) -> Any:
        self.tokenised += texts
        return super()._whole(texts, special_tokens)


def test_passages_and_questions_are_tokenised_once(generator_tokenizer: Any) -> None:
    watched = Watched(generator_tokenizer)
    watched.ids([("the river", " // who ?"), ("the town", " // who ?"), ("the river", " // old ?")], 99)
    assert sorted(watched.tokenised) == [" // old ?", " // who ?", "the river", "the town"]
    watched.tokenised.clear()
    watched.ids([("the town", " // blue ?"), ("the old town", " // who ?")], 99)
    assert sorted(watched.tokenised) == [" // blue ?", " // who ?", "the old town"]


def test_no_more_is_kept_than_there_is_room_for(generator_tokenizer: Any) -> None:
    watched = Watched(generator_tokenizer, 4 + 2 * TOKENS_TO_FIND_ONE)
    contexts = [(head, " // who ?") for head in ("the river", "the river of the town", "old town", "town", "blue")]
    watched.ids(contexts, 99)
    watched.tokenised.clear()
    watched.ids(contexts, 99)
    assert sorted(watched.tokenised) == [" // who ?", "blue", "the river of the town", "town"]


def test_special_tokens_that_are_text() -> None:
    tokenizer = _byte_level()
    special = tokenizer(["the </s> river // who </s> ?"])["input_ids"]
    tokenizer.split_special_tokens = True
    contexts = [("the </s> river", " // who </s> ?")]
    expected = tokenizer(["the </s> river // who </s> ?"])["input_ids"]
    assert ContextTokenizer(tokenizer).ids(contexts, 99) == expected
    assert expected != special


def test_what_the_tokenizer_adds_may_change(generator_tokenizer: Any) -> None:
    """As it does with the language of mBART."""
    tokenizer = copy.deepcopy(generator_tokenizer)
    tokenized = ContextTokenizer(tokenizer)
    contexts = [("the river", " // who ?")]
    tokenized.ids(contexts, 99)
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("blue", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="blue $A </s> </s>", special_tokens=ends
    )
    assert tokenized.ids(contexts, 99) == tokenizer(["the river // who ?"])["input_ids"]


@pytest.mark.parametrize("limit", [3, 6, 7, 9])
@pytest.mark.parametrize("closes", [True, False])
def test_a_known_passage_is_cut_as_an_unknown_one(generator_tokenizer: Any, limit: int, closes: bool) -> None:
    contexts = [("the river of the old town", " // who ?")]
    fresh = ContextTokenizer(generator_tokenizer, kept_tokens=0).ids(contexts, limit, closes=closes)
    tokenized = ContextTokenizer(generator_tokenizer)
    assert [tokenized.ids(contexts, limit, closes=closes) for _ in range(2)] == [fresh, fresh]
    assert len(fresh[0]) <= limit
