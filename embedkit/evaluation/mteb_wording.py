"""What an embedder is told to do in each task of the library mteb: the built-in task that fits it, in our own words."""

from __future__ import annotations

import re

from embedkit.evaluation.protocol import DEFAULT_INSTRUCTIONS
from embedkit.tasks import BUILT_IN_TASKS

# The first pattern that the task's name begins with; a built-in task, or a sentence of its own.
_BY_NAME = (
    (r"(Climate)?FEVER|SciFact|HealthFact", "fact-check"),
    (r"ArguAna", "counter-argument"),
    (r"Touche", "argument"),
    (r"Quora|CQADupstack|AskUbuntu|StackOverflowDup|SprintDuplicate|TwitterURL", "duplicate"),
    (r"TwitterSemEval", "paraphrase"),
    (r"SCIDOCS|SciDocs", "citation"),
    (r"DBPedia", "entity"),
    (r"NFCorpus|TRECCOVID|MedicalQA|CUREv1|PublicHealthQA", "medical"),
    (r"CodeSearchNetCC|CodeTransOcean|CodeFeedback|COIRCodeSearchNet|CodeSearchNet|CosQA|CodeRAG|AppsRetrieval"
     r"|StackOverflowQA|SyntheticText2SQL|CodeEditSearch", "code"),
    (r"NQ|HotpotQA|FiQA|MIRACL|MrTidy|MLQA|XPQA|BelebeleRetrieval|XQuAD|ELI5|TriviaQA|DuReader", "qa"),
    (r"Imdb|AmazonPolarity|AmazonReviews|TweetSentiment|.*Sentiment",
     "Identify the sentiment that the given text expresses"),
    (r"Emotion", "Identify the emotion that the given text expresses"),
    (r"Banking77|MassiveIntent|MTOPIntent|.*Intent", "Identify the intent of the given request"),
    (r"Toxic|.*HateSpeech", "Identify whether the given text is toxic"),
    (r"AmazonCounterfactual", "Identify whether the given text is counterfactual"),
    (r"XNLI|.*NLI|RTE", "entailment"),
)  # fmt: skip
_BY_KIND = {
    "BitextMining": "bitext",
    "Classification": DEFAULT_INSTRUCTIONS["classification"],
    "MultilabelClassification": "Identify the categories that the given text belongs to",
    "Clustering": DEFAULT_INSTRUCTIONS["clustering"],
    "PairClassification": "paraphrase",
    "STS": "paraphrase",
    "Summarization": "summary",
}


def mteb_instruction(name: str, kind: str) -> str:
    """Return the instruction of the mteb task `name` of the type `kind`: by its name, else by its type, else "search"."""
    found = next(
        (told for pattern, told in _BY_NAME if re.match(pattern, name)), _BY_KIND.get(kind, "search")
    )
    return BUILT_IN_TASKS[found].instruction if found in BUILT_IN_TASKS else found
