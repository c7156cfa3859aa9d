"""The languages that a generator of several languages reads and writes.

Its tokenizer marks both with a code. Of what the code does in the decoder, tokenizer and model tell: where targets
begin with the code (mBART-50, M2M100, NLLB), generation is made to begin with it; where they end with it behind the
end token (mBART), it is what the decoder starts from.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import torch

from ragstone.errors import InputError


@dataclass(frozen=True)
class Languages:
    """Codes in the tokenizer's own spelling (en_XX, en, eng_Latn); None leaves what is recorded."""

    source: str | None = None
    """Of passages and questions."""
    target: str | None = None
    """Of answers."""


def set_languages(model: Any, tokenizer: Any, wanted: Languages, name: str) -> None:
    """Let a generator read and write `wanted`; without effect where the tokenizer knows of no languages.

    The tokenizer keeps both codes, the model's generation settings keep the token to start from or to begin with.

    Raises:
        InputError: languages for a generator that knows none, an unknown language, or none given and none recorded.
    """
    if not hasattr(tokenizer, "tgt_lang"):
        _refuse_languages(wanted, name)
        return
    codes = {
        "src_lang": wanted.source or tokenizer.init_kwargs.get("src_lang"),
        "tgt_lang": wanted.target or tokenizer.tgt_lang,
    }
    known = _known(tokenizer)
    for flag, code in codes.items():
        if code is None:
            raise InputError(
                f"{name} reads and writes several languages, and nothing says which; give --src_lang and --tgt_lang "
                f"to ragstone consolidate or finetune, each one of {_some(known)}."
            )
        if code not in known:
            near = difflib.get_close_matches(code, known, 3, 0) or known
            raise InputError(f"--{flag} is {code!r}, which {name} does not know; take one of {_some(near)}.")
        setattr(tokenizer, flag, code)
        tokenizer.init_kwargs[flag] = code
    _set_start(model, tokenizer)


def _refuse_languages(wanted: Languages, name: str) -> None:
    for flag, code in (("src_lang", wanted.source), ("tgt_lang", wanted.target)):
        if code is not None:
            raise InputError(
                f"--{flag} is {code!r}, but the tokenizer of {name} has no language codes; leave it out (a model that "
                "takes the language as text before its input gets that from finetune's --prefix)."
            )


def _known(tokenizer: Any) -> list[str]:
    """The tokenizer's languages; one without a list of them has them among its further special tokens."""
    return list(getattr(tokenizer, "lang_code_to_id", None) or map(str, tokenizer.extra_special_tokens))


def _some(codes: list[str]) -> str:
    return ", ".join(codes[:5]) + (", ..." if len(codes) > 5 else "")


def _set_start(model: Any, tokenizer: Any) -> None:
    """Put into the model's generation settings what the code of the target language does in the decoder."""
    generation = model.generation_config
    labels = tokenizer(text_target="")["input_ids"]
    (code,) = (label for label in labels if label != tokenizer.eos_token_id)
    if labels[0] == code:
        generation.forced_bos_token_id = code
    elif hasattr(model, "prepare_decoder_input_ids_from_labels"):
        start = model.prepare_decoder_input_ids_from_labels(labels=torch.tensor([labels]))
        generation.decoder_start_token_id = model.config.decoder_start_token_id = int(start[0, 0])
