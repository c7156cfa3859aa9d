"""ragstone build-knowledge: documents to a knowledge source (the reference's use_own_knowledge_dataset.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ragstone.arithmetic import Precision, Quantization, WeightType
from ragstone.errors import InputError
from ragstone.importing import importing
from ragstone.index.factory import BY_SIZE, refuse_few_links, refuse_unknown_index
from ragstone.knowledge.documents import find_files
from ragstone.output import new_folder
from ragstone.processes.ray_cluster import AUTO, RayCluster, refuse_without_ray
from ragstone.settings import save_settings

if TYPE_CHECKING:
    from ragstone.encoders.text_encoder import TextEncoder
    from ragstone.knowledge.build import BuildPlan
    from ragstone.knowledge.corpus import Corpus
    from ragstone.knowledge.manifest import Manifest
    from ragstone.model.answers import Answer

WORDS_ALONE = "bm25"
"""--index for a source without vectors."""
GO_ON = "the same command goes on with the parts that are finished"
"""What a user does about a build that has lost its cluster."""


@dataclass(frozen=True)
class BuildKnowledgeSettings:
    csv_path: list[str]
    """Documents: .tsv of title and text, .csv, .jsonl, .parquet, folders of .txt and .md; paths or globs."""
    output_dir: Path
    """Folder for the knowledge source; new or empty."""
    dpr_ctx_encoder_model_name: str = "facebook/dpr-ctx_encoder-multiset-base"
    """Passage encoder: a folder or a hub name; DPR, sentence-transformers or any AutoModel."""
    index: str = BY_SIZE
    """auto (flat up to 64 MiB of vectors, else hnsw), flat (exact), hnsw (fast), ivfpq (small), a FAISS factory string,
    or bm25: words alone, without an encoder."""
    bm25: bool = False
    """Build a BM25 index beside the one over the vectors, for --retriever bm25 and hybrid."""
    max_words: int = 100
    """Words per passage."""
    batch_size: int = 64
    """Passages embedded at once."""
    d: int | None = None
    """Dimensions of the vectors; checked against the encoder if given."""
    m: int = 128
    """Links per node, where the index is an hnsw one."""
    num_proc: int | None = None
    """CPU threads (with --ray, of each worker); all by default."""
    precision: Precision = "auto"
    """Arithmetic of the encoder; auto is bf16 where the hardware has it."""
    pooling: Literal["cls", "mean", "last"] | None = None
    """How one vector is made from the tokens, if the encoder does not say so itself."""
    normalize: bool | None = None
    """Scale vectors to length one; as the encoder says by default."""
    passage_prompt: str | None = None
    """Text put before every passage ("passage: "); as the encoder says by default."""
    ray: bool = False
    """Embed on all hosts of a Ray cluster, which must share the folder that --output_dir is in."""
    ray_address: str | None = None
    """host:port of the cluster's head; default: the cluster that runs on this machine, or a new local one."""
    question: str | None = None
    """A question to answer at the end, with --rag_model_name."""
    rag_model_name: str | None = None
    """RAG checkpoint that answers --question."""
    torch_dtype: WeightType | None = None
    """Type of the weights of --rag_model_name's generator: 16 bits take half the memory; float32 by default."""
    quantization: Quantization | None = None
    """Keep the layers of --rag_model_name's generator in 8 or 4 bits, for less memory."""

    def __post_init__(self) -> None:
        for name in ("max_words", "batch_size", "m"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}, but must be at least 1.")
        refuse_few_links(self.index, self.m)
        if self.num_proc is not None and self.num_proc < 1:
            raise InputError(f"--num_proc is {self.num_proc}, but must be at least 1.")
        if self.d is not None and self.d < 1:
            raise InputError(f"--d is {self.d}, but must be at least 1.")
        if self.ray_address is not None and not self.ray:
            raise InputError("--ray_address names a cluster, which only --ray embeds on; give both or neither.")
        for name in ("d", "pooling", "normalize", "ray"):
            if self.index == WORDS_ALONE and getattr(self, name):
                raise InputError(f"--{name} is for vectors, and --index {WORDS_ALONE} makes none; leave it out.")
        if self.question is not None and self.rag_model_name is None:
            raise InputError("--question needs --rag_model_name, the checkpoint that is to answer it.")
        for name in ("torch_dtype", "quantization"):
            if self.rag_model_name is None and getattr(self, name) is not None:
                raise InputError(f"--{name} is for the generator of --rag_model_name; give both or neither.")


@dataclass(frozen=True)
class BuiltKnowledge:
    """What was built."""

    folder: Path
    manifest: Manifest
    answer: Answer | None
    unanswered: InputError | None = None
    """Why there is no answer to a question that was asked: the source is there all the same."""


def build_knowledge(settings: BuildKnowledgeSettings) -> BuiltKnowledge:
    """Make a searchable knowledge source from documents."""
    if settings.ray:
        refuse_without_ray("--ray")
    files = find_files(settings.csv_path)
    _refuse_early(settings)
    build = _build_on_cluster if settings.ray else _build_here
    if settings.index == WORDS_ALONE:
        build = _build_words
    with importing():
        from ragstone.index.threads import threads

    # Parts go when the source is in its place, not before.
    with _parts_kept(settings), new_folder(settings.output_dir, "--output_dir") as folder, threads(settings.num_proc):
        manifest = build(settings, files, folder)
        save_settings(settings, folder / "settings.yaml")
    try:
        return BuiltKnowledge(settings.output_dir, manifest, _answer(settings))
    except InputError as error:
        return BuiltKnowledge(settings.output_dir, manifest, None, error)


def _refuse_early(settings: BuildKnowledgeSettings) -> None:
    """Refuse what can be seen without loading a model, before hours go into what could not be finished."""
    if settings.index != WORDS_ALONE:
        refuse_unknown_index(settings.index)
    if settings.rag_model_name is None:
        return
    with importing():
        from transformers import AutoConfig

        from ragstone.encoders.load import pretrained

    config = pretrained(AutoConfig, settings.rag_model_name, "config.json")
    if config.model_type != "rag":
        raise InputError(
            f"--rag_model_name {settings.rag_model_name} is a {config.model_type} model, which looks nothing up; give "
            "a RAG checkpoint of ragstone consolidate or finetune."
        )


def _build_here(settings: BuildKnowledgeSettings, files: list[Path], folder: Path) -> Manifest:
    with importing():
        from ragstone.encoders.precision import best_device, compute_dtype
        from ragstone.knowledge.build import build_knowledge_source

    # Refuses a precision that the device has not, before the encoder is loaded.
    compute_dtype(best_device(), settings.precision)
    encoder = _encoder(settings).to(best_device())
    return build_knowledge_source(files, encoder, folder, _plan(settings))


def _build_words(settings: BuildKnowledgeSettings, files: list[Path], folder: Path) -> Manifest:
    from ragstone.knowledge.bm25 import build_bm25_source

    return build_bm25_source(files, folder, settings.max_words)


def _build_on_cluster(settings: BuildKnowledgeSettings, files: list[Path], folder: Path) -> Manifest:
    with importing():
        from ragstone.knowledge.build import build_knowledge_source
        from ragstone.knowledge.ray_embedding import RayEmbedding

    with RayCluster(settings.ray_address or AUTO, go_on=GO_ON) as cluster:
        on_workers = RayEmbedding(_parts_folder(settings), settings.num_proc)

        def embed(corpus: Corpus, encoder: TextEncoder, plan: BuildPlan, store: Path) -> None:
            """Embed on the cluster, and leave it: who loses it while the index is built has lost nothing."""
            on_workers(corpus, encoder, plan, store)
            cluster.close()

        return build_knowledge_source(files, _encoder(settings), folder, _plan(settings), embed)


@contextmanager
def _parts_kept(settings: BuildKnowledgeSettings) -> Iterator[None]:
    """What a build on a cluster has finished stays when the with-block fails."""
    if not settings.ray:
        yield
        return
    with importing():
        from ragstone.knowledge.parts import keep_finished_parts

    with keep_finished_parts(_parts_folder(settings)):
        yield


def _parts_folder(settings: BuildKnowledgeSettings) -> Path:
    """Beside the output, so that a build that was stopped leaves nothing half-written there, but what it has done."""
    # Other hosts find it by this path, and may have other symbolic links.
    output = settings.output_dir.absolute()
    return output.with_name(f"{output.name}.parts")


def _encoder(settings: BuildKnowledgeSettings) -> TextEncoder:
    from ragstone.encoders.load import load_encoder

    encoder = load_encoder(
        settings.dpr_ctx_encoder_model_name,
        "passage",
        pooling=settings.pooling,
        normalize=settings.normalize,
        prompt=settings.passage_prompt,
    )
    if settings.d not in (None, encoder.dimension):
        raise InputError(
            f"--d is {settings.d}, but the encoder {encoder.name} makes vectors of {encoder.dimension} dimensions; "
            "leave --d out."
        )
    return encoder


def _plan(settings: BuildKnowledgeSettings) -> BuildPlan:
    from ragstone.knowledge.build import BuildPlan

    return BuildPlan(
        settings.index, settings.m, settings.max_words, settings.batch_size, settings.precision, settings.bm25
    )


def _answer(settings: BuildKnowledgeSettings) -> Answer | None:
    if settings.question is None or settings.rag_model_name is None:
        return None
    with importing():
        from ragstone.model.decoding import Decoding
        from ragstone.model.open import ModelRequest, open_model

    model = open_model(
        ModelRequest(
            settings.rag_model_name,
            passages_path=str(settings.output_dir),
            torch_dtype=settings.torch_dtype,
            quantization=settings.quantization,
        )
    )
    try:
        return model.generate([settings.question], Decoding())[0][0]
    finally:
        model.close()


def show(result: BuiltKnowledge) -> None:
    """Print what was built.

    Raises:
        InputError: the question that was asked could not be answered; said after the report of what there is.
    """
    manifest, statistics = result.manifest, result.manifest.statistics
    print(f"knowledge source  {result.folder}")
    print(f"documents         {manifest.documents:,}")
    print(f"passages          {manifest.passages:,} of at most {manifest.max_words} words")
    if "bm25_words" in statistics:
        print(f"BM25              {statistics['bm25_words']:,} words")
    if manifest.dimension:
        print(f"vectors           {manifest.dimension} dimensions, by {manifest.encoder}")
        print(f"index             {manifest.index}, {manifest.metric.replace('_', ' ')}")
    embedding = f" ({statistics['seconds_embedding']:,.1f} s embedding)" if manifest.dimension else ""
    print(f"size              {statistics['bytes'] / 2**20:,.1f} MiB")
    print(f"time              {statistics['seconds']:,.1f} s{embedding}")
    if manifest.dimension:
        print(f"recall@5, @20     {statistics['recall@5']:.3f}, {statistics['recall@20']:.3f} against exact search")
        print(f"search            {statistics['queries_per_second']:,.0f} queries per second")
    if result.answer is not None:
        print(f"answer            {result.answer.text}")
    if result.unanswered is not None:
        raise result.unanswered
