from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ragstone
from ragstone.__main__ import main
from ragstone.commands.table import SUMMARIES, load_command
from ragstone.flags import flags_of, read_flags

HEAVY = ("torch", "transformers", "faiss", "datasets", "pyarrow", "tokenizers", "accelerate", "numpy", "ray")

# The flags of the reference's scripts, and those that Ragstone promises besides.
FLAGS = {
    "parse-dpr": "src_path evaluation_set gold_data_path",
    "train-retriever": "train_path output_dir",
    "build-knowledge": "csv_path output_dir dpr_ctx_encoder_model_name num_proc batch_size d m rag_model_name question "
    "index max_words ray ray_address pooling normalize passage_prompt bm25",
    "update-knowledge": "passages_path add_csv_path replace delete_titles delete_titles_path output_dir index",
    "consolidate": "model_type dest generator_name_or_path question_encoder_name_or_path "
    "generator_tokenizer_name_or_path question_encoder_tokenizer_name_or_path config_name_or_path pooling normalize "
    "question_prompt passage_encoder_name_or_path passage_pooling passage_normalize passage_prompt",
    "finetune": "data_dir output_dir model_name_or_path model_type fp16 bf16 gpus do_train do_predict n_train n_val "
    "n_test max_source_length max_target_length val_max_target_length test_max_target_length label_smoothing prefix "
    "early_stopping_patience encoder_layerdrop decoder_layerdrop dropout attention_dropout learning_rate lr_scheduler "
    "weight_decay adam_epsilon warmup_steps num_workers num_train_epochs train_batch_size eval_batch_size adafactor "
    "max_grad_norm gradient_accumulation_steps seed cache_dir config_name tokenizer_name index_name passages_path "
    "index_path use_dummy_dataset n_docs logger_name val_check_interval profile fast_dev_run freeze_question_encoder "
    "gradient_checkpointing num_beams num_processes distributed_port distributed_timeout distributed_retriever "
    "num_retrieval_workers ray_address index_shards index_device retriever hybrid_fusion hybrid_weight",
    "eval": "model_name_or_path model_type evaluation_set gold_data_path gold_data_mode predictions_path eval_mode k "
    "n_docs index_name index_path passages_path eval_batch_size recalculate num_beams min_length max_length "
    "print_predictions print_docs eval_all_checkpoints compare retriever hybrid_fusion hybrid_weight "
    "compare_retrievers",
    "ask": "model_name_or_path question json index_name use_dummy_dataset retriever hybrid_fusion hybrid_weight",
    "demo": "output_dir",
    "download-knowledge": "name embeddings index accept_license",
    "import-knowledge": "folder output_dir passages vectors dpr_ctx_encoder_model_name index m",
    "import-legacy": "folder output_dir dpr_ctx_encoder_model_name index m",
}

WATCHED = """
import sys
from ragstone.__main__ import main
code = main(sys.argv[1:])
loaded = sorted(name for name in {heavy} if name in sys.modules)
assert not loaded, loaded
sys.exit(code)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, which fails if it loads a heavy library."""
    program = WATCHED.format(heavy=HEAVY)
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


def test_help_lists_the_commands_and_loads_nothing_heavy() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name, summary in SUMMARIES.items():
        assert f"  {name} " in done.stdout
        assert summary in done.stdout


@pytest.mark.parametrize("command", SUMMARIES)
def test_the_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: ragstone {command}" in done.stdout


@pytest.mark.parametrize("command", SUMMARIES)
def test_a_wrong_flag_is_refused_before_anything_heavy_is_loaded(command: str) -> None:
    done = run(command, "--no_such_flag", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ragstone {command}: There is no flag --no_such_flag; ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["build-knowledge", "--csv_path", "a", "--output_dir", "b", "--batch_size", "x"],
        ["build-knowledge", "--csv_path", "a", "--output_dir", "b", "--question", "who ?"],
        ["build-knowledge", "--output_dir", "b"],
        ["build-knowledge", "--csv_path", "a", "--output_dir", "b", "--m", "1"],
        ["consolidate", "--model_type", "bart"],
        ["finetune", "--data_dir", "a", "--output_dir", "b", "--model_name_or_path", "c", "--fp16", "--bf16"],
        ["eval", "--model_name_or_path", "a", "--eval_mode", "both"],
        ["ask", "--model_name_or_path", "a", "--n_docs", "five"],
        ["ask", "--model_name_or_path", "a", "--passages_path", "b", "--index_name", "exact"],
    ],
)
def test_values_and_combinations_are_refused_before_anything_heavy_is_loaded(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ragstone {arguments[0]}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", FLAGS)
def test_help_lists_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    listed = {word.strip("[],") for word in capsys.readouterr().out.split() if word.strip("[,").startswith("--")}
    names = {flag for spelt in listed for flag in spelt.split("|")}
    assert {f"--{name}" for name in FLAGS[command].split()} <= names


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_is_taken_in_both_spellings(command: str) -> None:
    flags = flags_of(load_command(command).settings_class)
    for name in FLAGS[command].split():
        value = (*flags[name].choices, "1" if flags[name].kind in (int, float) else "True")[0]
        given = read_flags([f"--{name}", value], flags)
        assert given == {name: [value]} == read_flags([f"--{name.replace('_', '-')}={value}"], flags)


def test_a_command_may_be_written_with_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build_knowledge", "--help"]) == 0
    assert "usage: ragstone build_knowledge" in capsys.readouterr().out


def test_no_command_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: ragstone COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ragstone {ragstone.__version__}\n"


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fine-tune"]) == 2
    assert capsys.readouterr().err.startswith("ragstone: There is no command 'fine-tune'; the commands are parse-dpr, ")


def test_the_installed_program_and_the_module_are_the_same(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("ragstone")
    outputs = [
        subprocess.run([*words, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        for words in ([str(program)], [sys.executable, "-m", "ragstone"])
    ]
    assert outputs == [f"ragstone {ragstone.__version__}\n"] * 2


def test_the_program_leaves_its_memory_to_the_system() -> None:
    """At its end nothing is looked through for garbage; what is registered for the end is done."""
    program = """
import atexit, gc, sys
from ragstone.__main__ import program
sys.argv = ["ragstone", "--version"]
atexit.register(print, "done")
code = program()
print(gc.get_freeze_count() > 1000)
sys.exit(code)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[1:] == ["True", "done"]


@pytest.mark.parametrize("flag", ["--csv_path", "--output_dir"])
def test_what_the_file_system_refuses_is_one_sentence(
    documents_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str
) -> None:
    arguments = {"--csv_path": str(documents_file), "--output_dir": str(tmp_path / "source")}
    arguments[flag] = str(tmp_path / ("x" * 300))
    assert main(["build-knowledge", *(word for pair in arguments.items() for word in pair)]) == 2
    err = capsys.readouterr().err
    assert "File name too long" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["finetune", "--help"]])
def test_a_reader_that_has_gone_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "ragstone", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
