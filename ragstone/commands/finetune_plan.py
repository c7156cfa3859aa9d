"""From the settings of ragstone finetune to the run that they describe."""

from __future__ import annotations

from ragstone.commands.finetune_settings import GENERATOR_SETTINGS, FinetuneSettings
from ragstone.model.decoding import Decoding
from ragstone.model.languages import Languages
from ragstone.model.lora import LoraSettings
from ragstone.model.model_type import CLOSED_BOOK
from ragstone.model.open import ModelRequest
from ragstone.retrieval.choice import RetrievalSettings
from ragstone.settings import plain_settings
from ragstone.training.footprint import WeightUse
from ragstone.training.loop import LoopSettings
from ragstone.training.optimizer import OptimizerSettings
from ragstone.training.placement import PlacementRequest
from ragstone.training.run import RunPlan

LORA_ALPHA = 16
FREE_TO_CHANGE = (
    *("data_dir", "n_train", "n_val", "n_test", "output_dir", "do_train", "do_predict", "resume"),
    *("passages_path", "index_path", "index_name", "use_dummy_dataset", "cache_dir"),
    *("config_name", "tokenizer_name"),
    *("num_train_epochs", "max_steps", "val_check_interval", "early_stopping_patience", "eval_batch_size"),
    *("test_max_target_length", "num_workers", "gradient_checkpointing", "logger_name", "profile", "fast_dev_run"),
    *("gpus", "num_processes", "train_batch_size", "distributed_port", "distributed_timeout"),
    *("distributed_retriever", "num_retrieval_workers", "ray_address", "index_shards", "index_device"),
)
"""What a resumed run may be given anew. Data and knowledge source are compared by content, batches by their size over
all processes."""

OWN_TO_A_HOST = (
    *("data_dir", "output_dir", "model_name_or_path", "config_name", "tokenizer_name", "cache_dir"),
    *("passages_path", "index_path", "ray_address", "gpus", "num_processes", "num_workers", "distributed_port"),
)
"""What the processes of several hosts may be given differently. Data are compared by content."""


def run_plan(settings: FinetuneSettings) -> RunPlan:
    """The run that these settings describe."""
    record = plain_settings(settings)
    validation, test = (
        Decoding(num_beams=settings.num_beams, max_length=length)
        for length in (settings.val_max_target_length, settings.test_max_target_length)
    )
    return RunPlan(
        data_dir=settings.data_dir,
        folder=settings.output_dir,
        model=_model_request(settings, max(validation.longest_answer, test.longest_answer)),
        loop=LoopSettings(
            epochs=settings.num_train_epochs,
            train_batch_size=settings.train_batch_size,
            eval_batch_size=settings.eval_batch_size,
            accumulation=settings.gradient_accumulation_steps,
            max_grad_norm=settings.max_grad_norm,
            validation_interval=settings.val_check_interval,
            patience=settings.early_stopping_patience,
            seed=settings.seed,
            max_steps=settings.max_steps,
        ),
        optimization=OptimizerSettings(
            learning_rate=settings.learning_rate,
            schedule=settings.lr_scheduler,
            weight_decay=settings.weight_decay,
            adam_epsilon=settings.adam_epsilon,
            warmup_steps=settings.warmup_steps,
            adafactor=settings.adafactor,
            question_encoder_learning_rate=settings.question_encoder_learning_rate,
        ),
        validation=validation,
        test=test,
        limits={"train": settings.n_train, "val": settings.n_val, "test": settings.n_test},
        trains=settings.trains,
        predicts=settings.do_predict,
        resumes=settings.resume,
        precision=settings.precision,
        gpus=settings.gpus,
        retrieval=_retrieval(settings),
        timeout=settings.distributed_timeout,
        wandb=settings.logger_name == "wandb",
        profiles=settings.profile,
        record=record,
        fixed={name: value for name, value in record.items() if name not in FREE_TO_CHANGE},
        shared={name: value for name, value in record.items() if name not in OWN_TO_A_HOST},
    )


def placement_request(settings: FinetuneSettings) -> PlacementRequest:
    """What the run is to be placed on."""
    return PlacementRequest(
        gpus=settings.gpus,
        num_processes=settings.num_processes,
        precision=settings.precision,
        retrieval=None if settings.model_type in CLOSED_BOOK else _retrieval(settings),
        model=settings.model_name_or_path,
        passages_path=settings.passages_path,
        index_path=settings.index_path,
        index_name=settings.index_name,
        use_dummy_dataset=settings.use_dummy_dataset,
        method=settings.method(),
        use=WeightUse(
            trains=settings.trains,
            torch_dtype=settings.torch_dtype,
            quantization=settings.quantization,
            lora=_lora(settings),
            encoder_rests=settings.freeze_question_encoder,
            adafactor=settings.adafactor,
        ),
    )


def _retrieval(settings: FinetuneSettings) -> RetrievalSettings:
    return RetrievalSettings(
        backend=settings.distributed_retriever,
        ray_address=settings.ray_address,
        workers=settings.num_retrieval_workers,
        parts=settings.index_shards,
        device=settings.index_device,
    )


def _model_request(settings: FinetuneSettings, longest_answer: int) -> ModelRequest:
    changes = {name: getattr(settings, name) for name in GENERATOR_SETTINGS if getattr(settings, name) is not None}
    return ModelRequest(
        settings.model_name_or_path,
        model_type=settings.model_type,
        index_name=settings.index_name,
        use_dummy_dataset=settings.use_dummy_dataset,
        index_path=settings.index_path,
        passages_path=settings.passages_path,
        n_docs=settings.n_docs,
        method=settings.method(),
        prefix=settings.prefix,
        max_combined_length=settings.max_combined_length,
        max_source_length=settings.max_source_length,
        max_target_length=settings.max_target_length,
        longest_answer=longest_answer,
        label_smoothing=settings.label_smoothing,
        freeze_question_encoder=settings.freeze_question_encoder,
        generator_changes=changes,
        gradient_checkpointing=settings.gradient_checkpointing,
        prompt_template=settings.prompt_template,
        chat=settings.chat,
        lora=_lora(settings),
        torch_dtype=settings.torch_dtype,
        quantization=settings.quantization,
        languages=Languages(settings.src_lang, settings.tgt_lang),
        config_name=settings.config_name,
        tokenizer_name=settings.tokenizer_name,
        cache_dir=settings.cache_dir,
    )


def _lora(settings: FinetuneSettings) -> LoraSettings | None:
    if settings.lora_r is None:
        return None
    return LoraSettings(
        settings.lora_r, settings.lora_alpha or LORA_ALPHA, tuple(settings.lora_target_modules), settings.lora_dropout
    )
