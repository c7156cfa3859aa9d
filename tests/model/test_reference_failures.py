"""What breaks in the reference toolkit's model, retrieval and decoding on current libraries, and works here."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, RagSequenceForGeneration

from ragstone.errors import InputError
from ragstone.knowledge.source import KnowledgeSource
from ragstone.model.consolidate import ConsolidateParts, consolidate_checkpoint
from ragstone.model.decoding import Decoding
from ragstone.model.marginal import document_log_probs
from ragstone.model.open import ModelRequest, open_model
from ragstone.retrieval.local import LocalRetriever
from ragstone.types import NO_PASSAGE, Passage

QUESTIONS = ["who founded the town ?", "what is the river ?"]
ANSWERS = ["otto", "old blue river"]
TEXTS = ["otto founded the town", "the river of the old town is blue", "a red hill"]
PASSAGES = [[Passage(i, "town", text) for i, text in enumerate(TEXTS)]] * 2
SCORES = [[0.2, 1.0, -0.5], [0.0, 0.3, 0.9]]


def test_more_passages_asked_for_than_there_are(open_rag: Callable[..., Any]) -> None:
    """The source has six passages: six of the nine slots have mass, and the answer is that of n_docs=6."""
    model = open_rag(n_docs=9)
    evidence = model.find(QUESTIONS)
    assert (evidence.ids[:, 6:] == -1).all() and (evidence.ids[:, :6] >= 0).all()
    prior = evidence.log_prior.exp()
    assert (prior[:, 6:] == 0).all()
    torch.testing.assert_close(prior.sum(dim=1), torch.ones(2))
    six = model.generate(QUESTIONS, Decoding(max_length=8), n_docs=6)
    nine = model.generate(QUESTIONS, Decoding(max_length=8))
    for (mine,), (other,) in zip(nine, six, strict=True):
        assert mine.labels == other.labels
        assert mine.score == pytest.approx(other.score, rel=1e-5)
        assert [p.passage.id for p in mine.passages] == [p.passage.id for p in other.passages]
    loss = model(QUESTIONS, ANSWERS).loss
    loss.backward()
    assert loss.item() == pytest.approx(open_rag(n_docs=6)(QUESTIONS, ANSWERS).loss.item(), rel=1e-5)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


class EmptyHanded:
    """A retriever that finds nothing for the second question, as an index of empty lists does."""

    def __init__(self, inner: LocalRetriever) -> None:
        self.inner = inner

    def retrieve(self, vectors: Any, n_docs: int) -> Any:
        found = self.inner.retrieve(vectors, n_docs)
        found.ids[1] = -1
        found.vectors[1] = 0
        found.passages[1] = [NO_PASSAGE] * n_docs
        return found

    def close(self) -> None:
        self.inner.close()


def test_a_question_for_which_nothing_is_found(open_rag: Callable[..., Any], models_folder: Path) -> None:
    """It is answered from the question alone, and its batch with it."""
    model = open_rag()
    alone = model.generate(QUESTIONS[:1], Decoding(max_length=8))[0][0]
    model.finder.retriever = EmptyHanded(model.finder.retriever)
    with_passages, without = (answers[0] for answers in model.generate(QUESTIONS, Decoding(max_length=8)))
    assert (with_passages.labels, with_passages.score) == (alone.labels, pytest.approx(alone.score, rel=1e-5))
    assert without.passages == ()
    closed = open_model(ModelRequest(str(models_folder / "generator")))
    (expected,) = closed.generate(QUESTIONS[1:], Decoding(1, max_length=8))[0]
    (greedy,) = model.generate(QUESTIONS, Decoding(1, max_length=8))[1]
    assert greedy.labels == expected.labels
    result = model(QUESTIONS, ANSWERS)
    result.loss.backward()
    assert result.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_t5_generator(t5_checkpoint_folder: Path, source_folder: Path, t5_folder: Path, model_type: str) -> None:
    """Loss and answers, for both types; the loss is that of transformers' T5, marginalised by hand."""
    request = ModelRequest(str(t5_checkpoint_folder), model_type=model_type, passages_path=str(source_folder), n_docs=3)
    model = open_model(request)
    result = model(QUESTIONS, ANSWERS)
    result.loss.backward()
    evidence = model.find(QUESTIONS)
    expected = 0.0
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        labels = model.generator.tokenizer(answer, return_tensors="pt")["input_ids"]
        per_passage = []
        for passage in evidence.passages[row]:
            text = f"{passage.title} / {passage.text} // {question}"
            inputs = model.generator.tokenizer(text, return_tensors="pt")
            logits = model.generator_model(input_ids=inputs["input_ids"], labels=labels).logits
            per_passage.append(logits.log_softmax(dim=-1)[0, range(labels.shape[1]), labels[0]])
        prior, tokens = evidence.log_prior[row], torch.stack(per_passage)
        if model_type == "rag_sequence":
            expected -= (prior + tokens.sum(dim=1)).logsumexp(dim=0)
        else:
            expected -= (prior[:, None] + tokens).logsumexp(dim=0).sum()
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=0)
    gradients = [p.grad for p in model.question_encoder.parameters() if p.grad is not None]
    assert sum(gradient.abs().sum() for gradient in gradients) > 0
    for num_beams in (1, 3):
        answers = model.generate(QUESTIONS, Decoding(num_beams, max_new_tokens=6, num_return_sequences=num_beams))
        assert [len(row) for row in answers] == [num_beams] * 2
        for row in answers:
            assert all(1 <= len(answer.labels) <= 6 for answer in row)
            assert sum(p.posterior for p in row[0].passages) == pytest.approx(1)


def test_t5_answers_are_its_own_generate(t5_checkpoint_folder: Path, t5_folder: Path, model_type: str) -> None:
    """With one passage both types are T5's own search."""
    from transformers import AutoModelForSeq2SeqLM

    model = open_model_without_source(t5_checkpoint_folder, model_type)
    single = [[row[0]] for row in PASSAGES]
    found = model.generate(QUESTIONS, Decoding(1, max_length=9), passages=single, scores=[[0.0], [0.0]])
    theirs = AutoModelForSeq2SeqLM.from_pretrained(t5_folder).eval()
    for question, answers in zip(QUESTIONS, found, strict=True):
        inputs = model.generator.tokenizer(f"town / {TEXTS[0]} // {question}", return_tensors="pt")
        row = theirs.generate(input_ids=inputs["input_ids"], num_beams=1, min_length=1, max_length=9)[0, 1:].tolist()
        assert list(answers[0].labels) == (row[: row.index(1) + 1] if 1 in row else row)


def open_model_without_source(folder: Path, model_type: Any) -> Any:
    """A RAG model for passages that are given."""
    from ragstone.model.checkpoint import load_checkpoint, save_checkpoint
    from ragstone.model.rag import RagModel, RagOptions

    checkpoint = load_checkpoint(str(folder))
    return RagModel(
        checkpoint.question_encoder,
        checkpoint.generator,
        None,
        RagOptions(model_type=model_type, context=checkpoint.context),
        save=lambda _, target: save_checkpoint(checkpoint, target, model_type),
    ).eval()


def test_max_new_tokens_and_num_return_sequences(open_rag: Callable[..., Any]) -> None:
    model = open_rag()
    for limit in (1, 3, 6):
        found = model.generate(QUESTIONS, Decoding(4, max_new_tokens=limit, num_return_sequences=2))
        assert max(len(answer.labels) for row in found for answer in row) == limit
        # No answer comes twice, not even where the limit leaves the end token as the only choice.
        assert all(len({answer.labels for answer in row}) == len(row) <= 2 for row in found)
    assert [len(row) for row in found] == [2, 2]


def test_settings_in_the_config_that_break_the_reference(
    tmp_path: Path, checkpoint_folder: Path, source_folder: Path, model_type: str
) -> None:
    """reduce_loss=True, output formats and lengths of the generator's own, another n_docs."""
    folder = tmp_path / "rag"
    shutil.copytree(checkpoint_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(reduce_loss=True, n_docs=2, output_retrieved=True)
    config["ragstone"]["generation"].update(return_dict_in_generate=True, max_new_tokens=2, min_new_tokens=2)
    (folder / "config.json").write_text(json.dumps(config))
    request = {"model_type": model_type, "passages_path": str(source_folder)}
    plain = open_model(ModelRequest(str(checkpoint_folder), n_docs=4, **request))
    changed = open_model(ModelRequest(str(folder), **request))
    assert changed.n_docs == 2
    decoding = Decoding(max_length=8)
    assert [len(row[0].passages) for row in changed.generate(QUESTIONS, decoding)] == [2, 2]
    assert changed.generate(QUESTIONS, decoding, n_docs=4) == plain.generate(QUESTIONS, decoding)


def test_gradient_checkpointing_changes_no_gradient(open_rag: Callable[..., Any]) -> None:
    plain, saving = open_rag(), open_rag(gradient_checkpointing=True)
    assert saving.generator_model.is_activation_checkpointing
    losses = []
    for model in (plain, saving):
        model.train()
        result = model(QUESTIONS, ANSWERS)
        result.loss.backward()
        losses.append(result.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for (name, mine), other in zip(saving.named_parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, msg=name)
    decoding = Decoding(max_length=8)
    assert saving.eval().generate(QUESTIONS, decoding) == plain.eval().generate(QUESTIONS, decoding)


def test_padded_labels_and_one_token_targets(open_rag: Callable[..., Any]) -> None:
    """A batch loses what its questions lose alone: neither the padding nor the length of other answers counts."""
    model = open_rag()
    answers = ["", "the old blue river of the green town"]
    together = model(QUESTIONS, answers)
    alone = [model([question], [answer]) for question, answer in zip(QUESTIONS, answers, strict=True)]
    assert together.loss.item() == pytest.approx(sum(loss.loss.item() for loss in alone), rel=1e-5)
    assert together.target_tokens == sum(loss.target_tokens for loss in alone)


def test_one_token_targets_have_a_loss(
    t5_checkpoint_folder: Path, source_folder: Path, open_rag: Callable[..., Any], model_type: str
) -> None:
    """T5's empty answer is its end token alone: its loss is positive and its gradient reaches the question encoder."""
    model = open_rag(name_or_path=str(t5_checkpoint_folder))
    result = model(QUESTIONS, ["", ""])
    assert result.target_tokens == 2
    assert result.loss.item() > 0
    result.loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.question_encoder.parameters())


def test_n_docs_other_than_the_configs(open_rag: Callable[..., Any]) -> None:
    model = open_rag(n_docs=2)
    for n in (1, 5):
        (answers,) = model.generate(QUESTIONS[:1], Decoding(2, max_length=6), n_docs=n)
        assert len(answers[0].passages) == n
        assert [len(row) for row in model.retrieve(QUESTIONS, n)] == [n, n]
    assert model(QUESTIONS, ANSWERS).passage_ids.shape == (2, 2)


def test_the_generator_reads_the_question_as_it_was_asked(
    open_rag: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question tokenizer lower-cases and knows fewer words; the generator's text has neither from it."""
    model = open_rag()
    question = "Who founded Ötztal , U.S.A. ?"
    assert (
        model.question_encoder.tokenizer.decode(
            model.question_encoder.tokenizer(question)["input_ids"], skip_special_tokens=True
        )
        != question
    )
    read: list[str] = []
    encode = model.generator.encode

    def watched(contexts: Any, max_length: int) -> Any:
        read.extend(map("".join, contexts))
        return encode(contexts, max_length)

    monkeypatch.setattr(model.generator, "encode", watched)
    model.generate([question], Decoding(1, max_length=4), passages=[PASSAGES[0][:1]], scores=[[0.0]])
    assert read == [f"town / {TEXTS[0]} // {question}"]
    model([question], ["otto"])
    assert len(read) == 4 and all(text.endswith(f" // {question}") for text in read)


def test_thorough_decoding_reads_every_passage_once(open_rag: Callable[..., Any]) -> None:
    """However many candidates are scored with it."""
    model = open_rag()
    rows = []
    model.generator.model.get_encoder().register_forward_pre_hook(
        lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    model.generate(QUESTIONS, Decoding(4, max_length=9, num_return_sequences=4))
    assert sum(rows) == 3 * len(QUESTIONS)


def test_contexts_are_padded_to_the_longest_only(open_rag: Callable[..., Any]) -> None:
    model = open_rag()
    contexts = model.generator.encode([("", "who"), ("town / the river", " // what is a hill ?")], 300)
    assert contexts.states.shape[1] == len(
        model.generator.tokenizer("town / the river // what is a hill ?")["input_ids"]
    )
    assert contexts.attention_mask.sum(dim=1).tolist() == [3, contexts.states.shape[1]]


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_batch_is_answered_as_its_questions_are(open_rag: Callable[..., Any], num_beams: int) -> None:
    """Contexts of unequal length, lists of unequal length, several answers each."""
    model = open_rag()
    questions = [*QUESTIONS, "what was founded by the king of the old green stone bridge ?"]
    passages = [PASSAGES[0], PASSAGES[0][:1], [*PASSAGES[0][1:], Passage(9, "old king mara", " ".join(TEXTS * 3))]]
    scores = [SCORES[0], [3.0], [0.1, 0.2, 0.3]]
    decoding = Decoding(num_beams, max_length=9, num_return_sequences=num_beams)
    calls = []
    model.generator.model.get_decoder().register_forward_pre_hook(lambda *_: calls.append(1))
    together = model.generate(questions, decoding, passages=passages, scores=scores)
    for_all, for_each = len(calls), []
    for row, question in enumerate(questions):
        calls.clear()
        (alone,) = model.generate([question], decoding, passages=passages[row : row + 1], scores=scores[row : row + 1])
        for_each.append(len(calls))
        assert [answer.labels for answer in together[row]] == [answer.labels for answer in alone]
        for mine, other in zip(together[row], alone, strict=True):
            assert mine.score == pytest.approx(other.score, rel=1e-4)
            assert [p.posterior for p in mine.passages] == pytest.approx(
                [p.posterior for p in other.passages], abs=1e-4
            )
    # Together: three questions take fewer runs of the decoder than two of them one after the other.
    assert for_all < 2 * min(for_each)


def test_retriever_takes_batches_of_any_size(source_folder: Path) -> None:
    retriever = LocalRetriever(KnowledgeSource(source_folder))
    vectors = retriever.source.store.vectors([0, 1, 2, 3, 4])
    whole = retriever.retrieve(vectors, 2)
    for part in (slice(0, 0), slice(0, 1), slice(1, 5)):
        found = retriever.retrieve(vectors[part], 2)
        np.testing.assert_array_equal(found.ids, whole.ids[part])
        np.testing.assert_array_equal(found.vectors, whole.vectors[part])
        assert found.passages == whole.passages[part]
        assert found.ids.shape == found.mask.shape == (len(vectors[part]), 2)


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_not_unpickled(tmp_path: Path, checkpoint_folder: Path, source_folder: Path) -> None:
    """Neither as an index nor as a checkpoint's weights."""
    sprung = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    index = tmp_path / "hf_bert_base.hnswSQ8_correct_phi_128.c_index.index.dpr"
    index.write_bytes(pickle.dumps(Trap(sprung)))
    index.with_name(f"{index.name}_meta.dpr").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(InputError, match="is not a FAISS index"):
        KnowledgeSource(source_folder, index)
    folder = tmp_path / "rag"
    shutil.copytree(checkpoint_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"rag.weight": Trap(sprung)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"weights in .* cannot be read"):
        open_model(ModelRequest(str(folder), passages_path=str(source_folder)))
    assert not sprung.exists()


def test_decoder_only_generators_are_trained_and_asked(
    tmp_path: Path, models_folder: Path, generator_tokenizer: Any, source_folder: Path
) -> None:
    folder = tmp_path / "gpt"
    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2)).save_pretrained(folder)
    generator_tokenizer.save_pretrained(folder)
    consolidate_checkpoint(
        ConsolidateParts(str(models_folder / "question_encoder"), str(folder)), tmp_path / "rag", "rag_token"
    )
    model: Any = open_model(ModelRequest(str(tmp_path / "rag"), passages_path=str(source_folder), n_docs=3))
    model(["who founded the town ?"], ["otto"]).loss.backward()
    assert all(p.grad is not None for p in model.generator_model.parameters())
    assert len(model.generate(["who founded the town ?"], Decoding(num_beams=2))[0][0].passages) == 3


def test_the_references_own_class_fails_where_ours_does_not(checkpoint_folder: Path) -> None:
    """The comparison is worth its name only while transformers still behaves as this file says."""
    theirs = RagSequenceForGeneration.from_pretrained(checkpoint_folder).eval()
    contexts = {"context_input_ids": torch.tensor([[0, 7, 2], [0, 8, 2]]), "context_attention_mask": torch.ones(2, 3)}
    scores = torch.zeros(1, 2)
    with pytest.raises(IndexError):
        theirs(**contexts, doc_scores=scores, labels=torch.tensor([[2, 0, 7, 2, -100]]), n_docs=2)
    one_token = theirs(**contexts, doc_scores=scores, labels=torch.tensor([[7]]), n_docs=2).loss
    assert one_token.item() <= 0
    assert document_log_probs(scores, torch.ones(1, 2, dtype=torch.bool)).exp().sum() == 1
