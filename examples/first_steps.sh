#!/usr/bin/env bash
# The first ten minutes with Unmask: from a fresh clone to text that a model of yours has written.
#
#   examples/first_steps.sh                     # some minutes on two CPU cores
#   FIRST_STEPS_SCALE=tiny examples/first_steps.sh   # a minute, to see that everything runs
#
# It needs Python 3.11 and make. It starts from three things that you have, too: one text file, one file of chats and one
# folder of a Hugging Face dataset (made here of Python's own documentation), and shows every command before it runs it.
# Everything that it writes goes to runs/first-steps; run it again and it begins anew.
set -euo pipefail
cd "$(dirname "$0")/.."

HERE=runs/first-steps
case ${FIRST_STEPS_SCALE:-full} in
    full) SIZE=() STEPS=600 TUNING_STEPS=300 TOKENS=48 ;;
    tiny)
        SIZE=(model.hidden_size=32 model.intermediate_size=64 model.num_hidden_layers=1 model.num_attention_heads=2
            model.num_key_value_heads=1 data.vocabulary_size=400 training.batch_size=4 evaluation.max_rows=4
            evaluation.masks_per_sequence=2)
        STEPS=200 TUNING_STEPS=4 TOKENS=12
        ;;
    *) echo "FIRST_STEPS_SCALE is full or tiny, got $FIRST_STEPS_SCALE" >&2 && exit 2 ;;
esac

title() { printf '\n== %s\n' "$*" >&2; }
show() {
    printf '$ %s\n' "$*" >&2
    "$@"
}

title "1. Install (into .venv, unless an unmask is on the PATH)"
if ! command -v unmask > /dev/null; then
    show make setup
    export PATH="$PWD/.venv/bin:$PATH"
fi
show unmask --version

title "2. One text file, one file of chats, one folder of a Hugging Face dataset"
rm -rf "$HERE"
mkdir -p "$HERE"
python - "$HERE" << 'PYTHON'
"""Three small sources out of the documentation that comes with Python."""

import builtins
import inspect
import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

import datasets

here = Path(sys.argv[1])
(here / "book.txt").write_text("\n\n".join(topics.values()), encoding="utf-8")

kinds = (str, list, dict, set, bytes, int, float, complex, tuple, frozenset, bytearray)
documented = {f"{kind.__name__}.{name}": getattr(kind, name) for kind in kinds for name in dir(kind) if name[0] != "_"}
documented |= {name: value for name, value in vars(builtins).items() if name.islower() and name[0] != "_"}
first_lines = {name: (inspect.getdoc(value) or "").split("\n")[0] for name, value in documented.items()}
with open(here / "chats.jsonl", "w", encoding="utf-8") as file:
    for name, line in first_lines.items():
        if 10 < len(line) < 100:
            question, answer = {"role": "user", "content": f"What does {name} do?"}, {"role": "assistant", "content": line}
            file.write(json.dumps({"messages": [question, answer]}) + "\n")

texts = [text for value in documented.values() if (text := inspect.getdoc(value))]
datasets.disable_progress_bars()
datasets.Dataset.from_dict({"text": texts}).save_to_disk(here / "dataset")
PYTHON
ls -l "$HERE" >&2

title "3. Train a diffusion model on the text file, stop it as Ctrl-C would, and go on"
TRAIN=(unmask train recipes/python-docs.yaml "data.train=$HERE/book.txt" "output_dir=$HERE" name=book
    "training.steps=$STEPS" training.logging_steps=10 training.eval_steps=100000 "sampling.max_new_tokens=$TOKENS"
    "${SIZE[@]}")
printf '$ %s\n' "${TRAIN[*]}" >&2
"${TRAIN[@]}" &
RUN=$!
until [ -s "$HERE/book/metrics.jsonl" ] || ! kill -0 "$RUN" 2> /dev/null; do sleep 0.1; done
kill -TERM "$RUN" 2> /dev/null || true
wait "$RUN" || [ $? -eq 143 ] # stopped by a signal, after everything was saved
show unmask train --resume "$HERE/book"

title "4. Let it write, fill a gap and score text"
show unmask generate "$HERE/book" "The statement" --max-new-tokens "$TOKENS" --temperature 0.8
show unmask generate "$HERE/book" "The statement" --suffix " is executed." --infill-length 4
show unmask evaluate "$HERE/book" --max-rows 8

title "5. An autoregressive model of the Hugging Face folder, with the same recipe"
show unmask train recipes/python-docs.yaml "data.train=hf:$HERE/dataset" objective.method=autoregressive \
    "output_dir=$HERE" name=docstrings "training.steps=$TUNING_STEPS" training.warmup_steps=2 \
    "sampling.max_new_tokens=$TOKENS" "${SIZE[@]}"
show unmask generate "$HERE/docstrings" "Return a" --max-new-tokens "$TOKENS"

title "6. Fine-tune the first model on the chats, and chat"
show unmask train recipes/stories-sft.yaml "model.from_pretrained=$HERE/book" "data.train=$HERE/chats.jsonl" \
    "output_dir=$HERE" name=chat "training.steps=$TUNING_STEPS" training.warmup_steps=2 evaluation.max_rows=8 \
    evaluation.masks_per_sequence=2 "sampling.max_new_tokens=$TOKENS"
printf '$ printf "What does str.split do?\\n" | unmask chat %s --max-new-tokens %s\n' "$HERE/chat" "$TOKENS" >&2
printf 'What does str.split do?\nAnd list.append?\n' | unmask chat "$HERE/chat" --max-new-tokens "$TOKENS"

title "7. What there is now"
show unmask experiments list "$HERE"
