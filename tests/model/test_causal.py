"""Decoder-only generators against transformers' models, one unpadded sequence at a time, and against enumeration."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, MptConfig, PreTrainedTokenizerFast, RwkvConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from ragstone.errors import InputError
from ragstone.model.architecture import as_generator
from ragstone.model.causal import CausalGenerator
from ragstone.model.decoding import Decoding
from ragstone.model.marginal import document_log_probs
from ragstone.model.open import checkpoint_gradients
from ragstone.model.prompt import Wrapping
from ragstone.model.reader import Hypothesis, Reader
from ragstone.model.row_by_row import RowByRow
from ragstone.model.side_by_side import SideBySide

WORDS = ("</s>", "a", "b", "c", "<turn>")
END, TURN = 0, 4
LENGTH = 3
SMALL = {"vocab_size": 5, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
HALF_HEADS = {**SMALL, "num_key_value_heads": 2, "eos_token_id": END}
HEADS_OF_STATES = {"num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 4, "expand": 2, "chunk_size": 4}
LINEAR_ATTENTION = {
    **HALF_HEADS,
    "head_dim": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2", {"vocab_size": 5, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "Llama": ("Llama", HALF_HEADS),
    "Mistral": ("Mistral", {**HALF_HEADS, "sliding_window": 3}),
    "Qwen2": ("Qwen2", {**HALF_HEADS, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "Qwen3": ("Qwen3", {**HALF_HEADS, "head_dim": 4}),
    "Gemma": ("Gemma", {**HALF_HEADS, "head_dim": 4}),
    "Gemma 2": ("Gemma2", {**HALF_HEADS, "head_dim": 4, "sliding_window": 3}),
    "Gemma 3": ("Gemma3Text", {**HALF_HEADS, "head_dim": 4, "sliding_window": 3}),
    "Phi-3": ("Phi3", {**HALF_HEADS, "sliding_window": 3}),
    "OLMo 2": ("Olmo2", HALF_HEADS),
    "Granite": ("Granite", HALF_HEADS),
    "Cohere": ("Cohere", HALF_HEADS),
    "StableLM": ("StableLm", HALF_HEADS),
    "SmolLM3": ("SmolLM3", HALF_HEADS),
    "StarCoder2": ("Starcoder2", {**HALF_HEADS, "sliding_window": 3}),
    "GPT-J": ("GPTJ", {"vocab_size": 5, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}),
    "Phi": ("Phi", SMALL),
    "GPT-NeoX": ("GPTNeoX", SMALL),
    "OPT": (
        "OPT",
        {
            "vocab_size": 5,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 24,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": 64,
        },
    ),
    "BLOOM": ("Bloom", {"vocab_size": 5, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "MPT": ("Mpt", {"vocab_size": 5, "d_model": 16, "n_layers": 2, "n_heads": 4}),
    "Mamba": ("Mamba", {"vocab_size": 5, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
    "Mamba 2": ("Mamba2", {"vocab_size": 5, "hidden_size": 16, "num_hidden_layers": 2, **HEADS_OF_STATES}),
    "Jamba": (
        "Jamba",
        {
            **HALF_HEADS,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "num_experts": 2,
            "mamba_d_state": 4,
        },
    ),
    "Qwen3-Next": ("Qwen3Next", {**LINEAR_ATTENTION, "num_experts": 4, "num_experts_per_tok": 2}),
    "Qwen3.5": ("Qwen3_5Text", LINEAR_ATTENTION),
    "Falcon-H1": (
        "FalconH1",
        {
            **HALF_HEADS,
            "head_dim": 4,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 4,
            "mamba_chunk_size": 4,
        },
    ),
    "LFM2": ("Lfm2", {**HALF_HEADS, "layer_types": ["conv", "full_attention"]}),
}
ROW_BY_ROW = {"BLOOM", "MPT", "Mamba", "Mamba 2", "Jamba", "Qwen3-Next", "Qwen3.5", "Falcon-H1", "LFM2"}
"""Those whose answers need a row each; all others stand side by side."""
CONTEXTS = [("a b a", " c"), ("b", " a"), ("c c b a a b", ""), ("a", " b c"), ("b c", " b"), ("", "c a")]
SCORES = torch.tensor([[0.3, 1.0, -0.2], [1.5, 0.0, 0.4]])


def words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def make(family: str) -> CausalGenerator:
    """A tiny model with weights far from uniform, in float64 where it can, and a tokenizer of five words."""
    name, sizes = FAMILIES[family]
    torch.manual_seed(5)
    config = getattr(transformers, f"{name}Config")(
        **sizes, bos_token_id=None, pad_token_id=None, **({} if "eos_token_id" in sizes else {"eos_token_id": END})
    )
    for switch in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout", "attention_dropout", "hidden_dropout"):
        if hasattr(config, switch):
            setattr(config, switch, 0.0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
    # Eager attention computes its softmax in float32, where the mask's lowest float64 number is infinite.
    # States and their experts are computed in float32 whatever the weights' type.
    exact = model._supports_sdpa and family not in ROW_BY_ROW
    return CausalGenerator(model.double() if exact else model, words(), Wrapping())


@pytest.fixture(scope="module", params=FAMILIES)
def generator(request: pytest.FixtureRequest) -> CausalGenerator:
    return make(request.param)


@pytest.fixture(scope="module")
def llama() -> CausalGenerator:
    return make("Llama")


def ids_of(generator: CausalGenerator, context: tuple[str, str]) -> list[int]:
    return generator.tokenizer("".join(context))["input_ids"]


def plain_logits(generator: CausalGenerator, context: tuple[str, str], answer: list[int]) -> torch.Tensor:
    """[T, V] by the model alone, from one sequence without padding, mask or cache."""
    prompt = ids_of(generator, context)
    output = generator.model(input_ids=torch.tensor([[*prompt, *answer[:-1]]]), use_cache=False)
    return output.logits[0, len(prompt) - 1 :]


def generated(generator: CausalGenerator, context: tuple[str, str], beams: int, length: int) -> list[list[int]]:
    """The answers of transformers' generate to one prompt, each up to its end."""
    prompt = torch.tensor([ids_of(generator, context)])
    rows = generator.model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=length,
        min_new_tokens=0,
        do_sample=False,
        pad_token_id=END,
        eos_token_id=END,
        length_penalty=1.0,
    )[:, prompt.shape[1] :].tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in rows]


def targets() -> torch.Tensor:
    """[6, 2, 3] two answers to each context, some shorter, one missing."""
    labels = torch.tensor([1, 2, 0, 3, 3, 0, 2, 0, -100, 1, 1, 1, 0, -100, -100, 3, 2, 1]).view(6, 1, 3)
    labels = labels.repeat(1, 2, 1)
    labels[:, 1] = labels[:, 1].roll(1, dims=0)
    labels[3, 1] = -100
    return labels


def test_scores_of_targets(generator: CausalGenerator) -> None:
    """With gradients (each prompt with its target) and without (candidates side by side): as the model alone scores."""
    labels = targets()
    answers = [[label for label in row if label != -100] for row in labels.flatten(0, 1).tolist()]
    expected = torch.cat(
        [plain_logits(generator, CONTEXTS[i // 2], answer) for i, answer in enumerate(answers) if answer]
    )
    together = generator.target_logits(generator.encode(CONTEXTS, 64), labels)
    tolerance = 1e-7 if expected.dtype == torch.double else 1e-4
    torch.testing.assert_close(together, expected, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        apart = generator.target_logits(generator.encode(CONTEXTS, 64), labels)
    torch.testing.assert_close(apart, expected, rtol=tolerance, atol=tolerance)


def test_prompts_are_read_in_runs(generator: CausalGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few together: what each keeps stands in its own row, as if all were read at once."""
    with torch.no_grad():
        expected = generator.target_logits(generator.encode(CONTEXTS, 64), targets())
        monkeypatch.setattr("ragstone.model.runs.CPU_TOKENS_AT_ONCE", 4)
        found = generator.target_logits(generator.encode(CONTEXTS, 64), targets())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_padding_to_few_lengths_changes_nothing(generator: CausalGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for step in (1, 16):
        for module in ("causal", "side_by_side"):
            monkeypatch.setattr(f"ragstone.model.{module}.padded_length", lambda n, *_, step=step: -(-n // step) * step)
        with_gradients = generator.target_logits(generator.encode(CONTEXTS, 64), targets())
        with torch.no_grad():
            without = generator.target_logits(generator.encode(CONTEXTS, 64), targets())
        found.append((with_gradients, without))
    tolerance = 1e-7 if with_gradients.dtype == torch.double else 1e-4
    torch.testing.assert_close(found[0], found[1], rtol=tolerance, atol=tolerance)


def test_gradients(generator: CausalGenerator) -> None:
    labels = targets()
    model = generator.model
    model.zero_grad()
    generator.target_logits(generator.encode(CONTEXTS, 64), labels).square().sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    for i, row in enumerate(labels.flatten(0, 1).tolist()):
        if answer := [label for label in row if label != -100]:
            plain_logits(generator, CONTEXTS[i // 2], answer).square().sum().backward()
    expected = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    # Gemma's normalisation computes in float32 whatever the weights' type.
    size = torch.stack([gradient.norm() for gradient in expected]).norm().item()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * size)


def test_gradient_checkpointing(generator: CausalGenerator) -> None:
    """The same gradients, from activations that are computed twice."""
    model, found = generator.model, []
    for again in (False, True):
        model.zero_grad()
        if again:
            checkpoint_gradients(model)
        calls: list[Any] = []
        layer = next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
        hook = next(layer.children()).register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        generator.model.train()
        generator.target_logits(generator.encode(CONTEXTS, 64), targets()).square().sum().backward()
        hook.remove()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        found.append(len(calls))
    model.eval().activation_checkpointing_disable()
    plain, once, saving, twice = found
    assert twice == once + 1
    torch.testing.assert_close(saving, plain)


@pytest.mark.parametrize("beams", [1, 3])
def test_search_of_one_context_is_transformers_own(generator: CausalGenerator, beams: int) -> None:
    """Batched, padded and with shared prompts: what generate finds for each prompt alone."""
    with torch.no_grad():
        contexts = generator.encode(CONTEXTS, 64)
        decoding = Decoding(beams, max_length=LENGTH + 2, num_return_sequences=beams, length_penalty=1.0)
        found = generator.search(contexts, torch.zeros(len(CONTEXTS), 1, dtype=torch.double), decoding)
    for context, mine in zip(CONTEXTS, found, strict=True):
        assert mine == generated(generator, context, beams, LENGTH + 1)


@dataclass(frozen=True)
class Enumerated:
    """Every answer of up to LENGTH tokens to two questions, and those that have not ended by then."""

    answers: list[tuple[int, ...]]
    tokens: torch.Tensor
    """[2, 3, answers, LENGTH] p(y_i|x,z,y_<i) by the model alone, 1 behind the end."""
    prior: torch.Tensor
    """[2, 3] p(z|x)."""

    def likelihood(self, kind: str) -> torch.Tensor:
        """[2, answers] p(y|x)."""
        if kind == "sequence":
            return torch.einsum("bn,bna->ba", self.prior, self.tokens.prod(dim=3))
        return torch.einsum("bn,bnat->bat", self.prior, self.tokens).prod(dim=2)

    def posterior(self, kind: str, question: int, labels: tuple[int, ...]) -> torch.Tensor:
        """[3] p(z|x,y), of RAG-Token the mean over the answer's tokens."""
        tokens = self.tokens[question, :, self.answers.index(labels), : len(labels)]
        joint = self.prior[question][:, None] * (tokens.prod(dim=1, keepdim=True) if kind == "sequence" else tokens)
        return (joint / joint.sum(dim=0)).mean(dim=1)

    def greedy(self, question: int, ends: tuple[int, ...]) -> tuple[int, ...]:
        """RAG-Token's answer by one token after the other, each the likeliest under the marginal."""
        marginal = torch.einsum("n,nat->at", self.prior[question], self.tokens[question])
        chosen: tuple[int, ...] = ()
        while len(chosen) < LENGTH and chosen[-1:] not in [(end,) for end in ends]:
            here = [i for i, answer in enumerate(self.answers) if answer[: len(chosen)] == chosen]
            chosen = self.answers[max(here, key=lambda i: float(marginal[i, len(chosen)]))][: len(chosen) + 1]
        return chosen

    def beam_search(self, question: int, beams: int) -> list[tuple[float, tuple[int, ...]]]:
        """RAG-Token's `beams` best answers with their log-likelihoods, by beam search as it is taught.

        Of a step's continuations the best are taken, those that end leave the search, and others go on in their stead.
        """
        marginal = torch.einsum("n,nat->at", self.prior[question], self.tokens[question]).log()
        going_on: dict[tuple[int, ...], float] = {(): 0.0}
        finished: list[tuple[float, tuple[int, ...]]] = []
        for step in range(LENGTH):
            continued = {
                answer[: step + 1]: going_on[answer[:step]] + float(marginal[i, step])
                for i, answer in enumerate(self.answers)
                if len(answer) > step and answer[:step] in going_on
            }
            ranked = sorted(continued, key=lambda labels: -continued[labels])
            over = [labels for labels in ranked[:beams] if labels[-1] == END or step == LENGTH - 1]
            finished += [(continued[labels], labels) for labels in over]
            going_on = {labels: continued[labels] for labels in [x for x in ranked if x[-1] != END][:beams]}
        return sorted(finished, reverse=True)[:beams]


def enumerate_answers(generator: CausalGenerator, ends: tuple[int, ...]) -> Enumerated:
    going_on = [token for token in range(len(WORDS)) if token not in ends]
    bodies = [body for length in range(LENGTH) for body in itertools.product(going_on, repeat=length)]
    answers = [(*body, end) for body in bodies for end in ends] + list(itertools.product(going_on, repeat=LENGTH))
    tokens = torch.ones(6, len(answers), LENGTH, dtype=torch.double)
    for row, context in enumerate(CONTEXTS):
        prompt = ids_of(generator, context)
        padded = torch.tensor([[*prompt, *[*answer, *[END] * LENGTH][: LENGTH - 1]] for answer in answers])
        with torch.no_grad():
            logits = generator.model(input_ids=padded, use_cache=False).logits[:, len(prompt) - 1 :]
        probabilities = logits.softmax(dim=-1)
        for i, answer in enumerate(answers):
            tokens[row, i, : len(answer)] = probabilities[i, range(len(answer)), list(answer)]
    prior = document_log_probs(SCORES, torch.ones_like(SCORES, dtype=torch.bool)).double().exp()
    return Enumerated(answers, tokens.view(2, 3, len(answers), LENGTH), prior)


@pytest.fixture(scope="module")
def enumerated(generator: CausalGenerator) -> Enumerated:
    return enumerate_answers(generator, (END,))


def begun(kind: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """To how many prompts at once answers are begun from now on."""
    sizes: list[int] = []
    begin = kind.begin

    def watched(self: Any, prompts: Any) -> Any:
        sizes.append(len(prompts))
        return begin(self, prompts)

    monkeypatch.setattr(kind, "begin", watched)
    return sizes


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_questions_are_searched_a_few_at_a_time(
    llama: CausalGenerator, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found does not depend on how many; each question's passages stay its own."""
    prior = document_log_probs(SCORES, torch.ones_like(SCORES, dtype=torch.bool))
    with torch.no_grad():
        contexts = llama.encode(CONTEXTS, 64)
    decoding = Decoding(3, max_length=LENGTH + 2, num_return_sequences=3)
    together = Reader(llama, kind).generate(contexts, prior, decoding)
    sizes = begun(SideBySide, monkeypatch)
    monkeypatch.setattr("ragstone.model.marginal_search.SCORES_AT_ONCE", 1)
    apart = Reader(llama, kind).generate(contexts, prior, decoding)
    assert sizes == ([1] * 6 if kind == "sequence" else [3, 3])
    for one, other in zip(together, apart, strict=True):
        assert [h.labels for h in one] == [h.labels for h in other]
        for mine, theirs in zip(one, other, strict=True):
            assert mine.score == pytest.approx(theirs.score, rel=1e-6)


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_loss_is_the_marginal(generator: CausalGenerator, enumerated: Enumerated, kind: Any) -> None:
    """Every answer's likelihood; they sum to one."""
    prior = document_log_probs(SCORES, torch.ones_like(SCORES, dtype=torch.bool))
    answers = enumerated.answers
    labels = torch.tensor([[*answer, *[-100] * (LENGTH - len(answer))] for answer in answers])
    for question in range(2):
        rows = torch.arange(3).repeat(len(answers)) + question * 3
        with torch.no_grad():
            contexts = generator.encode(CONTEXTS, 64).select(rows)
            reading = Reader(generator, kind).read(contexts, prior[question].expand(len(answers), 3), labels)
        likelihood = reading.log_likelihood.double().exp()
        torch.testing.assert_close(likelihood, enumerated.likelihood(kind)[question], rtol=1e-4, atol=1e-9)
        assert likelihood.sum().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_training(generator: CausalGenerator, kind: Any, smoothing: float) -> None:
    """The loss with its gradients to weights and passages' scores: each prompt read by the model alone."""
    answers = [[1, 2, END], [3, END]]
    found: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    for written_out, results in ((False, found), (True, expected)):
        scores = SCORES.clone().requires_grad_()
        generator.model.zero_grad()
        if written_out:
            loss = _naive_loss(generator, kind, scores, answers, smoothing)
        else:
            labels = torch.tensor([[*answer, *[-100] * (LENGTH - len(answer))] for answer in answers])
            contexts = generator.encode(CONTEXTS, 64)
            reading = Reader(generator, kind).read(contexts, scores.log_softmax(dim=1), labels, smoothing > 0)
            loss = -(1 - smoothing) * reading.log_likelihood.sum()
            loss = loss if reading.smoothing is None else loss - smoothing * reading.smoothing.sum()
        loss.backward()
        assert scores.grad is not None
        results += [loss.detach().float(), scores.grad]
        results += [parameter.grad for parameter in generator.model.parameters() if parameter.grad is not None]
    size = torch.stack([gradient.norm() for gradient in expected[2:]]).norm().item()
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[2:], expected[2:], rtol=1e-4, atol=1e-5 * size)


def _naive_loss(
    generator: CausalGenerator, kind: str, scores: torch.Tensor, answers: list[list[int]], smoothing: float
) -> torch.Tensor:
    """Summed over the questions: what is minimised, written out."""
    total = torch.zeros(())
    for question, answer in enumerate(answers):
        prior, target = scores[question].log_softmax(dim=0), torch.tensor(answer)[:, None]
        contexts = CONTEXTS[3 * question : 3 * question + 3]
        log_probs = torch.stack([plain_logits(generator, context, answer).log_softmax(dim=-1) for context in contexts])
        if kind == "token":
            log_probs = (prior[:, None, None] + log_probs).logsumexp(dim=0)
            chosen, average = log_probs.gather(1, target).sum(), log_probs.mean(dim=1).sum()
        else:
            size = log_probs.shape[-1]
            chosen = (prior + log_probs.gather(2, target.expand(3, -1, 1)).sum(dim=(1, 2))).logsumexp(dim=0)
            average = ((prior + log_probs.mean(dim=2).sum(dim=1)) * size).logsumexp(dim=0) / size
        total = total - (1 - smoothing) * chosen - smoothing * average
    return total


def search(
    generator: CausalGenerator, kind: Any, beams: int, answers: int = 1, length_penalty: float = 0.0
) -> list[list[Hypothesis]]:
    prior = document_log_probs(SCORES, torch.ones_like(SCORES, dtype=torch.bool))
    with torch.no_grad():
        contexts = generator.encode(CONTEXTS, 64)
    decoding = Decoding(beams, max_length=LENGTH + 1, length_penalty=length_penalty, num_return_sequences=answers)
    return Reader(generator, kind).generate(contexts, prior, decoding)


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_enough_beams_find_the_optimum(generator: CausalGenerator, enumerated: Enumerated, kind: Any) -> None:
    """With its likelihood and the passages' shares in it."""
    found = [row[0] for row in search(generator, kind, 120)]
    best = enumerated.likelihood(kind).max(dim=1)
    assert [hypothesis.labels for hypothesis in found] == [enumerated.answers[i] for i in best.indices]
    torch.testing.assert_close(torch.tensor([h.score for h in found]).double().exp(), best.values, rtol=1e-4, atol=1e-9)
    for question, hypothesis in enumerate(found):
        expected = enumerated.posterior(kind, question, hypothesis.labels)
        torch.testing.assert_close(torch.tensor(hypothesis.posterior).double(), expected, rtol=0, atol=1e-5)


def test_greedy_token_decoding(generator: CausalGenerator, enumerated: Enumerated) -> None:
    for question, (hypothesis,) in enumerate(search(generator, "token", 1)):
        assert hypothesis.labels == enumerated.greedy(question, (END,))
        expected = enumerated.posterior("token", question, hypothesis.labels)
        torch.testing.assert_close(torch.tensor(hypothesis.posterior).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("beams", [2, 3, 4])
def test_few_beams_of_token_decoding(generator: CausalGenerator, enumerated: Enumerated, beams: int) -> None:
    for question, row in enumerate(search(generator, "token", beams, answers=beams)):
        expected = enumerated.beam_search(question, beams)
        assert [hypothesis.labels for hypothesis in row] == [labels for _, labels in expected]
        assert [hypothesis.score for hypothesis in row] == pytest.approx([score for score, _ in expected], abs=1e-3)


@pytest.mark.parametrize("beams", [1, 2])
def test_sequence_decoding(generator: CausalGenerator, enumerated: Enumerated, beams: int) -> None:
    """Each passage proposes what transformers' own generate finds behind its prompt; greedily with one beam."""
    likelihood = enumerated.likelihood("sequence")
    for question, row in enumerate(search(generator, "sequence", beams, answers=3 * beams, length_penalty=1.0)):
        contexts = CONTEXTS[3 * question : 3 * question + 3]
        proposed = {tuple(labels) for context in contexts for labels in generated(generator, context, beams, LENGTH)}
        numbers = sorted(map(enumerated.answers.index, proposed), key=lambda i: -float(likelihood[question, i]))
        assert [hypothesis.labels for hypothesis in row] == [enumerated.answers[i] for i in numbers]
        scores = torch.tensor([hypothesis.score for hypothesis in row]).double().exp()
        torch.testing.assert_close(scores, likelihood[question, numbers], rtol=1e-4, atol=1e-9)


def test_settings_that_count_the_prompt_are_left_out(llama: CausalGenerator) -> None:
    """Of those that a model brings; others stay in force."""
    expected = search(llama, "sequence", 3, answers=3)
    settings = llama.model.generation_config
    settings.repetition_penalty, settings.no_repeat_ngram_size = 5.0, 1
    try:
        assert search(llama, "sequence", 3, answers=3) == expected
        settings.suppress_tokens = [expected[0][0].labels[0]]
        found = search(llama, "sequence", 3, answers=3)
    finally:
        settings.repetition_penalty, settings.no_repeat_ngram_size = None, None
        settings.suppress_tokens = None
    written = {label for row in found for hypothesis in row for label in hypothesis.labels}
    assert written and expected[0][0].labels[0] not in written


@pytest.mark.parametrize("family", ["Llama", "GPT-2", "BLOOM", "Mamba"])
def test_two_end_tokens_over_several_passages(family: str) -> None:
    """Both kinds' best answers and the greedy one, where an answer ends at either token."""
    ends = (TURN, END)
    model = make(family).model
    generator = CausalGenerator(model, words(), Wrapping(end=TURN))
    assert generator.tokenize_targets(["a b"], 8).tolist() == [[1, 2, TURN]]
    enumerated = enumerate_answers(generator, ends)
    last = set()
    for kind in ("sequence", "token"):
        likelihood = enumerated.likelihood(kind)
        assert torch.allclose(likelihood.sum(dim=1), torch.ones(2, dtype=torch.double), rtol=1e-4)
        for question, row in enumerate(search(generator, kind, 120, answers=12)):
            best = likelihood[question].topk(12)
            assert [hypothesis.labels for hypothesis in row] == [enumerated.answers[i] for i in best.indices]
            scores = torch.tensor([hypothesis.score for hypothesis in row]).double()
            torch.testing.assert_close(scores.exp(), best.values, rtol=1e-4, atol=1e-9)
            last |= {hypothesis.labels[-1] for hypothesis in row if len(hypothesis.labels) < LENGTH}
    assert last == set(ends)
    for question, (hypothesis,) in enumerate(search(generator, "token", 1)):
        assert hypothesis.labels == enumerated.greedy(question, ends)


def test_a_prompt_without_room_for_the_answer_is_refused() -> None:
    generator = make("GPT-2")
    assert (generator.longest_context(), generator.longest_context(20), generator.longest_target) == (48, 44, 63)
    contexts = generator.encode([("a " * 62, "b")], 63)
    with pytest.raises(InputError, match="A prompt of 63 tokens and an answer of 3 need more than the 64 positions"):
        generator.target_logits(contexts, torch.tensor([[[1, 2, 0]]]))
    # What counts is a prompt with its own answer.
    contexts = generator.encode([("a " * 62, "b"), ("a", "b")], 63)
    generator.target_logits(contexts, torch.tensor([[[0, -100, -100]], [[1, 2, 0]]]))
    with torch.no_grad(), pytest.raises(InputError, match="an answer of 4 need more"):
        prompts = generator.encode([("a " * 62, "b")], 63)
        generator.search(prompts, torch.zeros(1, 1), Decoding(1, max_length=5))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_stand_side_by_side_where_they_can(family: str) -> None:
    assert isinstance(make(family)._continuation, RowByRow if family in ROW_BY_ROW else SideBySide)


def test_gentle_slopes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of MPT, which few answers side by side do not show."""
    torch.manual_seed(5)
    mpt = AutoModelForCausalLM.from_config(MptConfig(vocab_size=50, d_model=32, n_layers=2, n_heads=4, eos_token_id=0))
    with torch.no_grad():
        for parameter in mpt.parameters():
            parameter.normal_(std=0.3)
    assert isinstance(CausalGenerator(mpt, words(), Wrapping())._continuation, RowByRow)
    monkeypatch.setattr("ragstone.model.causal.PROBE_ANSWERS", 2)
    assert isinstance(CausalGenerator(mpt, words(), Wrapping())._continuation, SideBySide)


def without(ignored: str, monkeypatch: pytest.MonkeyPatch) -> CausalGenerator:
    """A Llama that does not heed one of its inputs."""
    model = make("Llama").model
    forward = type(model).forward

    def heedless(self: Any, position_ids: Any = None, attention_mask: Any = None, **inputs: Any) -> Any:
        given = {"position_ids": position_ids, "attention_mask": attention_mask}
        return forward(self, **inputs, **{name: value for name, value in given.items() if name != ignored})

    monkeypatch.setattr(type(model), "forward", heedless)
    return CausalGenerator(model, words(), Wrapping())


def test_what_does_not_heed_positions_has_a_row_for_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(without("position_ids", monkeypatch)._continuation, RowByRow)


def test_what_does_not_heed_the_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="llama generator does not read a text beside others as it reads it alone"):
        without("attention_mask", monkeypatch)


def test_what_takes_no_mask_is_refused() -> None:
    rwkv = AutoModelForCausalLM.from_config(RwkvConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2))
    with pytest.raises(InputError, match="rwkv generator does not read a text beside others as it reads it alone"):
        as_generator(rwkv, words(), None)


@pytest.mark.parametrize("kept", [1, 24])
@pytest.mark.parametrize("family", sorted(ROW_BY_ROW))
def test_copies_of_prompts_are_kept_a_few_at_a_time(family: str, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found and scored does not depend on how many."""
    generator = make(family)
    together = search(generator, "token", 3, answers=3)
    with torch.no_grad():
        expected = generator.target_logits(generator.encode(CONTEXTS, 64), targets())
    sizes = begun(RowByRow, monkeypatch)
    monkeypatch.setattr("ragstone.model.row_by_row.TOKENS_KEPT", kept)
    with torch.no_grad():
        found = generator.target_logits(generator.encode(CONTEXTS, 64), targets())
    assert sum(sizes) == len(CONTEXTS) and len(sizes) > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    apart = search(generator, "token", 3, answers=3)
    assert [[h.labels for h in row] for row in apart] == [[h.labels for h in row] for row in together]


def test_any_of_several_end_tokens_ends_an_answer(llama: CausalGenerator) -> None:
    """What the generation settings name besides the tokenizer's; in a batch as for each prompt alone."""
    model = llama.model
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [TURN, END]
    try:
        generator = CausalGenerator(model, llama.tokenizer, Wrapping())
        decoding = Decoding(2, max_length=12, num_return_sequences=2, length_penalty=1.0)
        with torch.no_grad():
            found = generator.search(
                generator.encode(CONTEXTS, 64), torch.zeros(len(CONTEXTS), 1, dtype=torch.double), decoding
            )
        for context, mine in zip(CONTEXTS, found, strict=True):
            prompt = torch.tensor([ids_of(generator, context)])
            rows = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                num_beams=2,
                num_return_sequences=2,
                max_new_tokens=11,
                do_sample=False,
                pad_token_id=END,
                length_penalty=1.0,
            )[:, prompt.shape[1] :].tolist()
            ends = [next((i for i, label in enumerate(row) if label in (TURN, END)), len(row)) for row in rows]
            assert mine == [row[: end + 1] for row, end in zip(rows, ends, strict=True)]
        last = {row[-1] for rows in found for row in rows}
        assert {TURN, END} <= last
    finally:
        model.generation_config.eos_token_id = before
    assert generator.tokenize_targets(["a b"], 8).tolist() == [[1, 2, END]]
    assert generator.text([1, 2, TURN]) == "a b"
