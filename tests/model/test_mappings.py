"""Every class that transformers' Auto classes for writing give: used as it is by itself, or refused with a reason.

A tiny model of each, made of settings that many configs know by the same names. Those that this does not make, or not
small, are left out: configs of several models in one, and some that want numbers which fit together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from ragstone.errors import InputError
from ragstone.model.causal import CausalGenerator
from ragstone.model.decoding import Decoding
from ragstone.model.prompt import Wrapping
from ragstone.model.seq2seq import Seq2SeqGenerator
from tests.model.test_causal import CONTEXTS, plain_logits, targets, words

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
END, PAD = 0, 4
LENGTH = 4
LARGE = 3e7
"""Weights of a model that is not tiny."""
NAMES = {
    5: "vocab_size",
    16: "hidden_size d_model n_embd embedding_size word_embed_proj_dim encoder_hidden_size",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers num_key_value_heads num_local_experts num_experts num_experts_per_tok",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads head_dim d_kv rotary_dim n_routed_experts "
    "qk_rope_head_dim qk_nope_head_dim v_head_dim",
    8: "moe_intermediate_size shared_expert_intermediate_size q_lora_rank kv_lora_rank",
    24: "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim",
    64: "max_position_embeddings n_positions",
}
SIZES = {name: size for size, names in NAMES.items() for name in names.split()}
NAMED_DECODER_ONLY = "mixtral qwen2_moe qwen3_moe gpt_oss glm glm4_moe deepseek_v3 olmo olmo2 falcon"
NAMED_SEQ2SEQ = "bigbird_pegasus blenderbot longt5 mvp nllb-moe pegasus_x plbart switch_transformers"
"""Types that docs/models.md names and that have no row in its table."""
WITH_ATTENTION_OF_ITS_OWN = "led"
"""Reads contexts with a global attention that its class leaves to whoever calls it; see tests/model/families.py."""


def tiny(name: str, auto: Any) -> Any:
    """A model of this type with weights far from uniform; None where these sizes make none."""
    try:
        known = CONFIG_MAPPING[name]()
        sizes = {key: size for key, size in SIZES.items() if hasattr(known, key)}
        # One setting under two names.
        sizes = {key: size for key, size in sizes.items() if known.attribute_map.get(key) not in sizes}
        if isinstance(getattr(type(known), "head_dim", None), property) or "kv_lora_rank" in sizes:
            sizes.pop("head_dim", None)
        if "kv_lora_rank" in sizes:
            sizes["num_key_value_heads"] = sizes["num_attention_heads"]
        if getattr(known, "layer_types", None):
            sizes["layer_types"] = list(known.layer_types)[: SIZES["num_hidden_layers"]]
        config = type(known)(**sizes, eos_token_id=END, pad_token_id=PAD, bos_token_id=None, decoder_start_token_id=END)
        for switch in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout", "attention_dropout", "hidden_dropout"):
            if isinstance(getattr(config, switch, None), float):
                setattr(config, switch, 0.0)
        with torch.device("meta"):
            weights = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
        if weights > LARGE:
            return None
        torch.manual_seed(5)
        model = auto.from_config(config).float().eval()
    except Exception:  # each config that cannot be made says so in its own way
        return None
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD, decoder_start_token_id=END)
    return model


def padded_words() -> PreTrainedTokenizerFast:
    """Five words, of which one ends a text and one is padding."""
    vocabulary = {word: number for number, word in enumerate(("</s>", "a", "b", "c", "<pad>"))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")


def causal(model: Any) -> tuple[Any, Callable[[tuple[str, str], list[int]], torch.Tensor]]:
    """The generator, and the logits [T, V] of an answer by the model's class alone."""
    generator = CausalGenerator(model, words(), Wrapping())
    return generator, lambda context, answer: plain_logits(generator, context, answer)


def seq2seq(model: Any) -> tuple[Any, Callable[[tuple[str, str], list[int]], torch.Tensor]]:
    """See `causal`."""
    generator = Seq2SeqGenerator(model, padded_words())

    def alone(context: tuple[str, str], answer: list[int]) -> torch.Tensor:
        ids = torch.tensor([generator.tokenizer("".join(context))["input_ids"]])
        written = torch.tensor([[END, *answer[:-1]]])
        return model(
            input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=written, use_cache=False
        ).logits[0]

    return generator, alone


def fault(generator: Any, alone: Callable[[tuple[str, str], list[int]], torch.Tensor]) -> str:
    """In what the generator differs from its model's class; empty where in nothing."""
    labels = targets()
    answers = [[label for label in row if label != -100] for row in labels.flatten(0, 1).tolist()]
    expected = torch.cat([alone(CONTEXTS[i // 2], answer) for i, answer in enumerate(answers) if answer])
    bound = 1e-4 * expected.std()
    for graded in (True, False):
        with torch.set_grad_enabled(graded):
            found = generator.target_logits(generator.encode(CONTEXTS, 64), labels)
        if (found - expected).abs().max() > bound:
            return f"scores of targets, gradients {graded}"
    with torch.no_grad():
        decoding = Decoding(1, max_length=LENGTH + 1)
        found = generator.search(generator.encode(CONTEXTS, 64), torch.zeros(len(CONTEXTS), 1), decoding)
        for context, (answer, *_) in zip(CONTEXTS, found, strict=True):
            written: list[int] = []
            while len(written) < len(answer):
                written.append(int(alone(context, [*written, END])[-1].argmax()))
            if written != answer or (answer[-1] != END and len(answer) < LENGTH):
                return f"greedy answer {answer} instead of {written}"
    return ""


@pytest.mark.parametrize(
    ("names", "auto", "make", "named", "least"),
    [
        (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM, causal, NAMED_DECODER_ONLY, 100),
        (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, AutoModelForSeq2SeqLM, seq2seq, NAMED_SEQ2SEQ, 18),
    ],
    ids=["decoder-only", "sequence-to-sequence"],
)
def test_each_class_is_used_as_it_is_or_refused(names: Any, auto: Any, make: Any, named: str, least: int) -> None:
    used, faults = [], {}
    for name in names:
        model = None if name == WITH_ATTENTION_OF_ITS_OWN else tiny(name, auto)
        if model is None:
            continue
        try:
            faults[name] = fault(*make(model))
            used.append(name)
        except InputError:
            continue
        except Exception as error:  # whatever it is, it is none that tells a user what to do
            faults[name] = repr(error)
    print("used:", *used)
    assert {name: what for name, what in faults.items() if what} == {}
    assert {*named.split()} <= {*used}
    assert len(used) >= least
