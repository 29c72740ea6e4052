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

say "2. Ask in any script. The query alone is encoded; the documents were embedded bare."
run search "$DEMO_INDEX" "my bicycle tyre is flat, what now?" -k 2
run search "$DEMO_INDEX" "我的笔记本提示硬盘快满了。怎么才能看出是什么在吃空间？" -k 2

say "3. Change only the task: same index, same query, other answers; and across languages."
run search "$DEMO_INDEX" "How can I tell whether a year is a leap year or not?" --task qa --task duplicate --task code -k 1
run search "$DEMO_INDEX" "A stable sort keeps equal items in their original order." --task paraphrase --task bitext -k 1
run search "$DEMO_INDEX" "Mon export Excel a des ; entre les colonnes et tout arrive dans une seule colonne. Comment le charger correctement ?" \
    --task qa --task bitext --task code -k 1

say "4. What was really encoded? The instruction stands before the query, nowhere else."
run explain "$DEMO_INDEX" "When am I not allowed to castle in chess?" --task code

say "5. One language can be asked for."
run search "$DEMO_INDEX" "How do I undo my last git commit?" --task duplicate --lang de -k 1

say "6. How good is it? The corpus scores itself, task by task."
run eval examples/corpus --no-pairs

say "7. And does it obey? The same texts under right, wrong and no instructions (24 of 240 seeds)."
run eval task-switch --seeds 24

say "That was the bundled model, 37 MB. Any Hugging Face embedder takes its place: pip install 'embedkit-retrieval[torch]',
then index with --embedder intfloat/multilingual-e5-large-instruct."
