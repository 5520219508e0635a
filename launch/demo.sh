#!/usr/bin/env bash
# The whole way from text to a model, with the commands that you would use for your own text. Finished steps are kept:
# run it again after an interruption and it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
out=runs/demo
say() { printf '\n== %s\n' "$*"; }
step() { # step RESULT COMMAND…: runs the command unless its result is there
  local result=$1; shift
  printf '$ %s\n' "$*"
  if [ -e "$result" ]; then echo "  $result is there already"; else "$@"; fi
}

# Where there is no GPU, DeepSpeed's launcher need not warn of it.
python -c 'import sys, torch; sys.exit(torch.accelerator.is_available())' && export DS_ACCELERATOR=cpu

say "1 of 6  A tokenizer, from the documentation strings of Python's standard library"
step $out/tokenizer python tools/train_tokenizer.py --input builtin-sample --vocab_size 4096 --output $out/tokenizer

say "2 of 6  A dataset, one document in twenty held out for evaluation"
step $out/data python tools/build_dataset.py --input builtin-sample --tokenizer $out/tokenizer --output $out/data --holdout 0.05

say "3 of 6  Pre-training, about two minutes on two processor cores"
step $out/model deepspeed launch/pretrain.py --deepspeed_config ds_configs/zero2.json \
  --recipe mpnet-tiny --data $out/data --output_dir $out/run

say "4 of 6  The shards of the checkpoint joined into one file"
step $out/weights python tools/consolidate.py $out/run $out/weights

say "5 of 6  Export to Hugging Face's format, checked against the training model"
step $out/model python tools/convert_to_hf.py $out/run $out/model

say "6 of 6  The export in plain transformers: the five likeliest words for each mask"
printf '$ %s\n' "python tools/fill_mask.py $out/model"
python tools/fill_mask.py $out/model

say "Done. What lies where"
cat <<END
  $out/tokenizer        the tokenizer                  $out/data       the dataset
  $out/run              metrics.jsonl, TensorBoard events (tensorboard --logdir $out/run), checkpoints
  $out/weights          model.safetensors              $out/model      from_pretrained("$out/model")
To start over: rm -r $out. For your own text, see the README.
END
