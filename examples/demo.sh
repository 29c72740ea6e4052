#!/bin/sh
# What embedkit is for, in a minute: index a corpus once, then change only the task.
set -eu
: "${EMBEDKIT:=embedkit}"
: "${DEMO_INDEX:=demo-index}"
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() {
    printf '\033[36m$ embedkit'
    for word in "$@"; do case $word in *" "*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac; done
    printf '\033[0m\n'
    "$EMBEDKIT" "$@"
}

say "1. Index once: 313 short documents in 17 languages, and code."
run index examples/corpus -o "$DEMO_INDEX" --force

say "2. Ask. The query alone is encoded; the documents were embedded bare."
run search "$DEMO_INDEX" "my bicycle tyre is flat, what now?" -k 3

say "3. Change only the task: same index, same query, other answers."
run search "$DEMO_INDEX" "When am I not allowed to castle in chess?" --task qa --task code -k 2
run search "$DEMO_INDEX" "Wild yeast and lactic acid bacteria live together in a sourdough starter." \
    --task paraphrase --task bitext -k 2

say "4. What was really encoded? The instruction stands before the query, nowhere else."
run explain "$DEMO_INDEX" "When am I not allowed to castle in chess?" --task code

say "5. Your own sentence is a task too; and one language can be asked for."
run search "$DEMO_INDEX" "How do I undo my last git commit?" --instruction "Find German notes on git" --lang de -k 2

say "6. How good is it? The corpus scores itself, task by task."
run eval examples/corpus --no-pairs

say "That was the small bundled model: English, and not trained on instructions. The switches above are among those
that it manages; the table says how often it does. Any Hugging Face embedder takes its
place: pip install 'embedkit-retrieval[torch]', then index with --embedder intfloat/multilingual-e5-large-instruct."
