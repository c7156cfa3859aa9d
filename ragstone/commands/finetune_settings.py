"""What ragstone finetune is told, checked as far as that takes no model and no file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ragstone.arithmetic import MixedPrecision, Quantization, WeightType
from ragstone.errors import InputError
from ragstone.knowledge.index_name import refuse_published_index
from ragstone.model.model_type import CLOSED_BOOK, ModelType
from ragstone.prompt_template import refuse_no_template
from ragstone.retrieval.method import FusionName, MethodRequest, RetrieverName

POSITIVE = (
    "max_source_length",
    "max_target_length",
    "num_beams",
    "num_train_epochs",
    "train_batch_size",
    "eval_batch_size",
    "gradient_accumulation_steps",
    "num_retrieval_workers",
    "index_shards",
)
LONGEST_ANSWERS = ("val_max_target_length", "test_max_target_length")
NOT_NEGATIVE = ("num_workers", "warmup_steps", "weight_decay", "adam_epsilon", "max_grad_norm", "seed")
GENERATOR_SETTINGS = ("dropout", "attention_dropout", "encoder_layerdrop", "decoder_layerdrop")
FRACTIONS = ("label_smoothing", "lora_dropout", *GENERATOR_SETTINGS)
RAG_ONLY = (
    *("passages_path", "index_path", "index_name", "use_dummy_dataset", "n_docs", "max_combined_length"),
    *("retriever", "hybrid_fusion", "hybrid_weight", "freeze_question_encoder", "question_encoder_learning_rate"),
    *("prompt_template", "chat", "lora_r"),
)
POLYNOMIAL_END = 1e-7
"""The learning rate at which transformers' polynomial schedule ends."""
MAX_SEED = 2**32
MAX_TIMEOUT = 10**6


@dataclass(frozen=True)
class FinetuneSettings:
    data_dir: Path
    """Folder with train, val and test .source (a question per line) and .target (its answer)."""
    output_dir: Path
    """Folder for checkpoints, metrics.json, predictions and TensorBoard events; new or empty, unless --resume."""
    model_name_or_path: str
    """RAG checkpoint, or any generator, which is then trained alone as a closed-book baseline; folder or hub name."""
    model_type: ModelType | None = None
    """What to train; as the checkpoint says by default."""
    do_train: bool = False
    """Train. Also done when neither --do_train nor --do_predict is given."""
    do_predict: bool = False
    """Answer the test questions with the best checkpoint; write test_predictions.txt and the scores."""
    resume: bool = False
    """Go on from the last checkpoint in --output_dir."""

    index_name: str | None = None
    """exact or compressed: wiki_dpr, which download-knowledge fetched; legacy: an old index, which import-legacy
    converted in --index_path; custom: a knowledge source."""
    use_dummy_dataset: bool = False
    """Search a few passages with made-up vectors, to try the model out."""
    passages_path: str | None = None
    """Knowledge source; the checkpoint's own by default."""
    index_path: str | None = None
    """Index file, if it is not beside the passages."""
    n_docs: int | None = None
    """Passages per question; the checkpoint's number by default."""
    retriever: RetrieverName | None = None
    """dense: by vectors, bm25: by words, hybrid: by both; default: the checkpoint's, or what the source has."""
    hybrid_fusion: FusionName | None = None
    """How hybrid joins two rankings: sum by scores, rrf by ranks; sum by default."""
    hybrid_weight: float | None = None
    """Weight of the dense scores in --hybrid_fusion sum, between 0 and 1; 0.5 by default."""
    freeze_question_encoder: bool = False
    """Leave the question encoder as it is."""
    prompt_template: str | None = None
    """Prompt of a decoder-only generator, with {question} and {passage}, or {title} and {text}."""
    chat: bool | None = None
    """Put a decoder-only generator's chat template around the prompt; as the checkpoint says by default."""
    lora_r: int | None = None
    """Train LoRA adapters of this rank beside the generator's layers instead of its weights, and save them alone."""
    lora_alpha: int | None = None
    """LoRA's adapters are scaled by this, divided by their rank; 16 by default."""
    lora_dropout: float = 0.0
    """Dropout before LoRA's adapters."""
    lora_target_modules: list[str] = field(default_factory=list)
    """Layers of the generator that get adapters; all linear ones by default."""
    torch_dtype: WeightType = "float32"
    """Type of the generator's weights: 16 bits take half the memory, but lose small changes; better with --lora_r."""
    quantization: Quantization | None = None
    """Keep the generator's layers in 8 or 4 bits, with --lora_r, whose adapters are trained in full precision."""

    n_train: int = -1
    """Use only the first N training examples; all if negative."""
    n_val: int = -1
    """Use only the first N validation examples; all if negative."""
    n_test: int = -1
    """Answer only the first N test questions; all if negative."""
    max_source_length: int = 128
    """Tokens of a question; for a closed-book model, of its whole input."""
    max_target_length: int = 25
    """Tokens of an answer in training."""
    val_max_target_length: int = 25
    """Tokens of an answer that validation generates at most, the start token included."""
    test_max_target_length: int = 25
    """Tokens of an answer that --do_predict generates at most, the start token included."""
    max_combined_length: int | None = None
    """Tokens of passage and question together; the checkpoint's number by default."""
    src_lang: str | None = None
    """Language of passages and questions, for a multilingual generator; the checkpoint's by default."""
    tgt_lang: str | None = None
    """Language of answers, for a multilingual generator; the checkpoint's by default."""
    prefix: str | None = None
    """Text before every input of the generator; the checkpoint's by default."""
    num_beams: int = 4
    """Beams in validation and test; 1 is greedy search."""

    num_train_epochs: int = 3
    """Passes over the training examples."""
    max_steps: int = -1
    """Optimiser steps after which training stops, unless negative; the schedule ends there too."""
    train_batch_size: int = 32
    """Questions per batch in each process; the batches of all processes together make one."""
    eval_batch_size: int = 32
    """Questions per batch in each process, in validation and test."""
    gradient_accumulation_steps: int = 1
    """Batches per optimiser step."""
    learning_rate: float = 5e-5
    """Learning rate after warm-up."""
    question_encoder_learning_rate: float | None = None
    """Learning rate of the question encoder, if not --learning_rate: lower for a generator from scratch."""
    lr_scheduler: Literal["linear", "cosine", "cosine_w_restarts", "polynomial"] = "linear"
    """How the learning rate falls."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """AdamW's weight decay, on matrices only."""
    adam_epsilon: float = 1e-8
    """AdamW's epsilon."""
    adafactor: bool = False
    """Adafactor instead of AdamW."""
    max_grad_norm: float = 1.0
    """Length that gradients are clipped to; 0 leaves them as they are."""
    label_smoothing: float = 0.0
    """Weight of the uniform distribution in the target."""
    dropout: float | None = None
    """The generator's dropout, if different from the checkpoint's."""
    attention_dropout: float | None = None
    """The generator's dropout of attention weights."""
    encoder_layerdrop: float | None = None
    """Chance that a layer of the generator's encoder is left out."""
    decoder_layerdrop: float | None = None
    """Chance that a layer of the generator's decoder is left out."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time."""
    seed: int = 42
    """Seed of the order of examples and of dropout."""

    val_check_interval: float = 1.0
    """Up to 1: fraction of an epoch between validations; above 1: batches between them."""
    early_stopping_patience: int = -1
    """Validations in a row without a better exact match after which training stops; never if negative."""

    fp16: bool = False
    """Half precision with a gradient scaler; for GPUs without bfloat16. Works on CPUs, but many times slower."""
    bf16: bool = False
    """bfloat16 matrix products; on GPUs, and on CPUs that have instructions for it."""
    gpus: int | None = None
    """GPUs to use, each by a process of its own; 0 trains on the CPU. Default: one GPU, if there is one."""
    num_processes: int | None = None
    """Processes on the CPU, with --gpus 0."""
    distributed_port: int = -1
    """Port at which the processes of this host meet; a free one if -1."""
    distributed_timeout: float = 600.0
    """Seconds within which processes and retrieval workers must answer each other; else the run ends."""
    distributed_retriever: Literal["pytorch", "ray"] = "pytorch"
    """Who searches: pytorch means the first process, for the others too; ray means Ray workers."""
    num_retrieval_workers: int = 1
    """Ray workers that search, for each shard."""
    ray_address: str = "auto"
    """host:port of a Ray cluster; local: a new one while the run lasts; auto: the one that runs here, or a new one."""
    index_shards: int = 1
    """Parts that the source is divided into, each searched exactly by its own Ray workers."""
    index_device: Literal["cpu", "cuda"] = "cpu"
    """cuda searches exactly on a GPU that holds all vectors."""
    num_workers: int = 4
    """Threads that tokenise."""

    cache_dir: str | None = None
    """Where downloaded models are kept."""
    config_name: str | None = None
    """Where the model's config.json is, if not with the model."""
    tokenizer_name: str | None = None
    """Where a closed-book model's tokenizer is, if not with the model."""
    logger_name: Literal["default", "wandb"] = "default"
    """wandb reports to Weights & Biases too; TensorBoard events are always written."""
    profile: bool = False
    """Record a few steps; write profile.txt (time by operation) and profile.json (for chrome://tracing)."""
    fast_dev_run: bool = False
    """Try everything out on one batch each of training, validation and test; leaves nothing in --output_dir."""

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}, but must be at least 1.")
        for name in LONGEST_ANSWERS:
            if getattr(self, name) < 2:
                raise InputError(
                    f"--{name} is {getattr(self, name)}, but must be at least 2: it counts the start token."
                )
        for name in ("n_docs", "max_combined_length", "lora_r", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} is {value}, but must be at least 1.")
        refuse_published_index(self.index_name, self.passages_path, self.use_dummy_dataset)
        self.method()
        if self.retriever == "bm25" and self.question_encoder_learning_rate is not None:
            raise InputError(
                "--question_encoder_learning_rate: --retriever bm25 does not ask the question encoder, so it learns "
                "nothing; leave the flag out, or take --retriever hybrid."
            )
        for name in ("n_train", "n_val", "n_test", "max_steps"):
            if getattr(self, name) == 0:
                raise InputError(f"--{name} is 0, which leaves nothing to do; a negative number means all.")
        for name in FRACTIONS:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise InputError(f"--{name} is {value}, but must be at least 0 and below 1.")
        for name in ("learning_rate", "question_encoder_learning_rate", "val_check_interval"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"--{name} is {value}, but must be a number above 0.")
        for name in NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"--{name} is {getattr(self, name)}, but must be a number of at least 0.")
        if self.seed >= MAX_SEED:
            raise InputError(f"--seed is {self.seed}, but must be below {MAX_SEED}.")
        if self.gpus is not None and self.gpus < 0:
            raise InputError(
                f"--gpus is {self.gpus}, but must be at least 0; leave it out to use one GPU if there is one."
            )
        if self.num_processes is not None and self.num_processes < 1:
            raise InputError(f"--num_processes is {self.num_processes}, but must be at least 1.")
        if self.distributed_port != -1 and not 0 < self.distributed_port < 65536:
            raise InputError(f"--distributed_port is {self.distributed_port}, but must be from 1 to 65535, or -1.")
        if not 1 <= self.distributed_timeout < MAX_TIMEOUT:
            raise InputError(
                f"--distributed_timeout is {self.distributed_timeout}, but must be from 1 to {MAX_TIMEOUT} s."
            )
        if self.lr_scheduler == "polynomial" and self.learning_rate <= POLYNOMIAL_END:
            raise InputError(
                f"--lr_scheduler polynomial falls to {POLYNOMIAL_END}, so --learning_rate must be above that; it is "
                f"{self.learning_rate}."
            )
        if self.fp16 and self.bf16:
            raise InputError("--fp16 and --bf16 exclude each other; take --bf16 where the hardware has it.")
        if self.resume and self.fast_dev_run:
            raise InputError("--fast_dev_run starts from the beginning; leave --resume out.")
        if self.prompt_template is not None:
            refuse_no_template(self.prompt_template)
        for name in ("lora_alpha", "lora_target_modules", "lora_dropout"):
            if getattr(self, name) and self.lora_r is None:
                raise InputError(f"--{name} is for LoRA; give --lora_r too, or leave it out.")
        if self.fp16 and self.torch_dtype == "float16" and self.lora_r is None:
            raise InputError(
                "--fp16 scales gradients, but those of float16 weights cannot be scaled; leave --torch_dtype or --fp16 "
                "out, or give --lora_r, whose adapters are float32."
            )
        if self.quantization is not None and self.lora_r is None:
            raise InputError("--quantization leaves weights that cannot be trained; give --lora_r too.")
        if self.model_type in CLOSED_BOOK:
            for name in RAG_ONLY:
                if getattr(self, name):
                    raise InputError(
                        f"--{name} is for RAG models; leave it out: a closed-book {self.model_type} retrieves nothing."
                    )
            if self.distributed_retriever == "ray":
                raise InputError(f"A closed-book {self.model_type} retrieves nothing; omit --distributed_retriever.")

    @property
    def trains(self) -> bool:
        """Whether there is a run of training before anything is predicted."""
        return self.do_train or not self.do_predict

    @property
    def precision(self) -> MixedPrecision:
        """Of matrix products in training, in accelerate's words."""
        return "fp16" if self.fp16 else "bf16" if self.bf16 else "no"

    def method(self) -> MethodRequest:
        """By what passages are found."""
        return MethodRequest(self.retriever, self.hybrid_fusion, self.hybrid_weight)
