"""Checkpoints in transformers' layout: there and back, with equal logits and vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    RagConfig,
    RagRetriever,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    RagTokenizer,
)

from ragstone.encoders.load import load_encoder
from ragstone.errors import InputError
from ragstone.model.checkpoint import Checkpoint, change_config, load_checkpoint, save_checkpoint
from ragstone.model.consolidate import ConsolidateParts, join_parts
from ragstone.model.decoding import Decoding
from ragstone.model.generator_request import GeneratorRequest
from ragstone.model.open import ModelRequest, open_model

CLASSES = {"rag_sequence": RagSequenceForGeneration, "rag_token": RagTokenForGeneration}
QUESTIONS = ["who founded the town ?", "what is blue ?"]
CONTEXTS = [("town / the river is blue", " // what is the hill ?"), ("king / otto", " // who was king ?")]


@torch.no_grad()
def hold_together(ours: Checkpoint, theirs: Any) -> None:
    """Equal question vectors (before pooling), equal logits for every token of an answer."""
    theirs.eval()
    ours.question_encoder.eval()
    ours.generator.model.eval()
    inputs = ours.question_encoder.tokenize(QUESTIONS)
    mine = ours.question_encoder.model(**inputs, return_dict=True)
    other = theirs.rag.question_encoder(**inputs, return_dict=True)
    torch.testing.assert_close(mine[0], other[0], rtol=0, atol=0)
    contexts = ours.generator.tokenizer([head + tail for head, tail in CONTEXTS], padding=True, return_tensors="pt")
    labels = ours.generator.tokenize_targets(["otto", "the old river"], 10)
    decoder_input_ids = torch.cat([torch.full((2, 1), 2), labels[:, :-1].masked_fill(labels[:, :-1] == -100, 1)], dim=1)
    expected = theirs.rag.generator(
        input_ids=contexts["input_ids"],
        attention_mask=contexts["attention_mask"],
        decoder_input_ids=decoder_input_ids,
    ).logits
    found = ours.generator.target_logits(ours.generator.encode(CONTEXTS, 300), labels.unsqueeze(1))
    torch.testing.assert_close(found, expected[labels != -100], rtol=1e-6, atol=1e-6)


def test_ours_opens_in_transformers(tmp_path: Path, checkpoint_folder: Path, model_type: Any) -> None:
    ours = load_checkpoint(str(checkpoint_folder))
    with torch.no_grad():
        for parameter in (*ours.generator.model.parameters(), *ours.question_encoder.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_checkpoint(ours, tmp_path / "rag", model_type)
    theirs, report = CLASSES[model_type].from_pretrained(tmp_path / "rag", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    hold_together(ours, theirs)
    again = load_checkpoint(str(tmp_path / "rag"))
    assert again.model_type == model_type
    hold_together(again, theirs)
    assert again.question_encoder.fingerprint() == ours.question_encoder.fingerprint()


@pytest.mark.parametrize("weights", ["safetensors", "pickled", "half"])
def test_theirs_opens_here(
    tmp_path: Path, models_folder: Path, source_folder: Path, model_type: Any, weights: str
) -> None:
    """Written by transformers alone, from other weights than those of the fixtures; also in half precision."""
    folder = tmp_path / "rag"
    encoder = AutoModel.from_pretrained(models_folder / "question_encoder")
    generator = AutoModelForSeq2SeqLM.from_pretrained(models_folder / "generator")
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *generator.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    config = RagConfig.from_question_encoder_generator_configs(encoder.config, generator.config, n_docs=2)
    theirs = CLASSES[model_type](config=config, question_encoder=encoder, generator=generator)
    if weights == "half":
        theirs.half()
    theirs.save_pretrained(folder)
    RagTokenizer(
        AutoTokenizer.from_pretrained(models_folder / "question_encoder"),
        AutoTokenizer.from_pretrained(models_folder / "generator"),
    ).save_pretrained(folder)
    if weights == "half":
        recorded = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**recorded, "dtype": "float16"}))
    if weights == "pickled":
        (folder / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    ours = load_checkpoint(str(folder))
    assert {parameter.dtype for parameter in ours.generator.model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in ours.question_encoder.parameters()} == {torch.float32}
    hold_together(ours, theirs.float())
    assert ours.model_type == model_type
    assert ours.passage_encoder is None
    assert ours.question_encoder.settings.pooling == "pooler"
    assert ours.question_encoder.settings.max_length == 64
    model = open_model(ModelRequest(str(folder), passages_path=str(source_folder)))
    (answers,) = model.generate(QUESTIONS[:1], Decoding(max_length=6))
    assert len(answers[0].passages) == 2


def test_bert_like_question_encoder(tmp_path: Path, models_folder: Path, plain_bert_folder: Path) -> None:
    """Its first token's state is the vector; transformers' class holds the same weights."""
    joined = join_parts(ConsolidateParts(str(plain_bert_folder), str(models_folder / "generator")))
    save_checkpoint(joined, tmp_path / "rag", "rag_token")
    ours = load_checkpoint(str(tmp_path / "rag"))
    hold_together(ours, RagTokenForGeneration.from_pretrained(tmp_path / "rag"))
    assert ours.config.retrieval_vector_size == 24
    expected = load_encoder(str(plain_bert_folder), "question").embed(QUESTIONS)
    torch.testing.assert_close(ours.question_encoder.embed(QUESTIONS), expected)
    assert ours.question_encoder.settings == joined.question_encoder.settings


def test_sentence_transformers_question_encoder(tmp_path: Path, models_folder: Path, minilm_folder: str) -> None:
    """The real all-MiniLM-L6-v2: pooling, normalisation and length survive, vectors are those of its own library."""
    from sentence_transformers import SentenceTransformer

    joined = join_parts(ConsolidateParts(minilm_folder, str(models_folder / "generator")))
    save_checkpoint(joined, tmp_path / "rag", "rag_sequence")
    ours = load_checkpoint(str(tmp_path / "rag"))
    settings = ours.question_encoder.settings
    assert (settings.pooling, settings.normalize, settings.max_length) == ("mean", True, 256)
    hold_together(ours, RagSequenceForGeneration.from_pretrained(tmp_path / "rag"))
    expected = SentenceTransformer(minilm_folder, device="cpu").encode(QUESTIONS)
    torch.testing.assert_close(ours.question_encoder.embed(QUESTIONS), expected, rtol=1e-4, atol=1e-5)
    assert ours.passage_encoder.fingerprint == load_encoder(minilm_folder, "passage").fingerprint()


def test_saved_model_opens_again_without_flags(
    tmp_path: Path, checkpoint_folder: Path, source_folder: Path, model_type: Any
) -> None:
    """Source, n_docs, prefix, length and type are in the checkpoint; answers stay the same."""
    model = open_model(
        ModelRequest(
            str(checkpoint_folder),
            model_type=model_type,
            passages_path=str(source_folder),
            n_docs=4,
            prefix="old ",
            max_combined_length=60,
        )
    )
    model.save(tmp_path / "rag")
    again = open_model(ModelRequest(str(tmp_path / "rag")))
    assert (again.model_type, again.n_docs) == (model_type, 4)
    assert again.options.context == model.options.context
    assert again.fingerprint() == model.fingerprint()
    decoding = Decoding(max_length=8)
    assert again.generate(QUESTIONS, decoding) == model.generate(QUESTIONS, decoding)


def test_tokenizers_that_do_not_say_their_class(tmp_path: Path, checkpoint_folder: Path) -> None:
    """As older releases of transformers wrote them: vocabularies, and next to nothing else."""
    folder = tmp_path / "rag"
    shutil.copytree(checkpoint_folder, folder)
    for part in ("question_encoder_tokenizer", "generator_tokenizer"):
        shutil.rmtree(folder / part)
        (folder / part).mkdir()
        (folder / part / "tokenizer_config.json").write_text('{"model_max_length": 64}', encoding="utf-8")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "town", "##s"]
    (folder / "question_encoder_tokenizer" / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", "w", "h", "o", "wh", "who"]
    vocabulary = json.dumps({letter: number for number, letter in enumerate(letters)})
    (folder / "generator_tokenizer" / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "generator_tokenizer" / "merges.txt").write_text("w h\nwh o\n", encoding="utf-8")
    ours, theirs = load_checkpoint(str(folder)), RagTokenizer.from_pretrained(folder)
    found = [ours.question_encoder.tokenizer, ours.generator.tokenizer]
    ids = [tokenizer("Who towns")["input_ids"] for tokenizer in found]
    assert ids == [tokenizer("Who towns")["input_ids"] for tokenizer in (theirs.question_encoder, theirs.generator)]
    assert ids[0] == [2, 5, 6, 7, 3]


def test_contexts_are_those_of_transformers_retriever(
    tmp_path: Path, checkpoint_folder: Path, source_folder: Path
) -> None:
    """Passages, order, scores and token ids, with a prefix, for lower-case questions."""
    request = ModelRequest(str(checkpoint_folder), passages_path=str(source_folder), n_docs=4, prefix="old ")
    ours = open_model(request)
    retriever = RagRetriever.from_pretrained(
        str(checkpoint_folder),
        index_name="custom",
        passages_path=str(source_folder / "my_knowledge_dataset"),
        index_path=str(source_folder / "my_knowledge_dataset_hnsw_index.faiss"),
    )
    inputs = ours.question_encoder.tokenize(QUESTIONS)
    with torch.no_grad():
        vectors = ours.question_encoder(**inputs)
        expected = retriever(inputs["input_ids"], vectors.numpy(), prefix="old ", n_docs=4, return_tensors="pt")
        evidence = ours.find(QUESTIONS)
    assert evidence.ids.tolist() == expected["doc_ids"].tolist()
    embeddings = torch.as_tensor(expected["retrieved_doc_embeds"]).float()
    torch.testing.assert_close(evidence.scores, torch.einsum("bd,bnd->bn", vectors, embeddings))
    texts = ours.options.context.texts(evidence.passages, QUESTIONS)
    ids = ours.generator.tokenizer([head + tail for head, tail in texts])["input_ids"]
    padded = [[*row, *[1] * (300 - len(row))] for row in ids]
    assert padded == expected["context_input_ids"].tolist()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json in .* cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json in .* cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "weights in .* cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "weights in .* cannot be read"),
        (lambda folder: shutil.rmtree(folder / "generator_tokenizer"), "generator tokenizer in .* cannot be read"),
        (
            lambda folder: shutil.rmtree(folder / "question_encoder_tokenizer"),
            "question_encoder tokenizer in .* cannot",
        ),
    ],
    ids=["no config", "no JSON", "no weights", "no safetensors", "no generator tokenizer", "no question tokenizer"],
)
def test_spoilt_checkpoints(tmp_path: Path, checkpoint_folder: Path, spoil: Any, message: str) -> None:
    folder = tmp_path / "rag"
    shutil.copytree(checkpoint_folder, folder)
    spoil(folder)
    with pytest.raises(InputError, match=message):
        load_checkpoint(str(folder))


def test_missing_weights_are_refused(tmp_path: Path, checkpoint_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "rag"
    shutil.copytree(checkpoint_folder, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "decoder.layers.0.fc1" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks 2 of the weights"):
        load_checkpoint(str(folder))


def test_a_generator_is_no_rag_checkpoint(models_folder: Path) -> None:
    with pytest.raises(InputError, match="is a bart model, not a RAG checkpoint; join"):
        load_checkpoint(str(models_folder / "generator"))


def test_generator_settings_can_be_changed_and_unknown_ones_are_refused(checkpoint_folder: Path) -> None:
    changed = load_checkpoint(str(checkpoint_folder), request=GeneratorRequest({"dropout": 0.3}))
    assert changed.generator.model.model.encoder.layers[0].dropout == 0.3
    with pytest.raises(InputError, match="has no setting layer_skip; leave --layer_skip out"):
        change_config(changed.config.generator, {"layer_skip": 1})


def test_the_generators_own_generation_settings_survive(tmp_path: Path, checkpoint_folder: Path) -> None:
    checkpoint = load_checkpoint(str(checkpoint_folder))
    checkpoint.generator.model.generation_config.no_repeat_ngram_size = 3
    checkpoint.generator.model.generation_config.length_penalty = 1.5
    save_checkpoint(checkpoint, tmp_path / "rag", "rag_token")
    again = load_checkpoint(str(tmp_path / "rag")).generator.model.generation_config
    assert (again.no_repeat_ngram_size, again.length_penalty) == (3, 1.5)
    recorded = json.loads((tmp_path / "rag" / "config.json").read_text())["ragstone"]["generation"]
    assert recorded["no_repeat_ngram_size"] == 3
