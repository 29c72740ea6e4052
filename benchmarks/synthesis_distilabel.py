"""The same work by distilabel: a text-retrieval example for each task. Runs in an environment of its own.

    ENV/bin/python benchmarks/synthesis_distilabel.py URL TASKS REQUESTS CONCURRENCY FOLDER

TASKS is a file of JSON lines with a `task`. One batch is sent at once, so its size is the concurrency.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    url, pool, requests, concurrency, folder = sys.argv[1:]
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import GenerateTextRetrievalData

    tasks = [json.loads(line)["task"] for line in Path(pool).read_text(encoding="utf-8").splitlines()]
    rows = [{"task": tasks[i % len(tasks)], "number": i} for i in range(int(requests))]
    size = int(concurrency)
    began = time.perf_counter()
    with Pipeline(name="overhead", cache_dir=f"{folder}/cache") as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=size * 16)
        llm = OpenAILLM(
            model="instant",
            base_url=url,
            api_key="none",
            generation_kwargs={"max_new_tokens": 4096, "temperature": 1.0, "top_p": 1.0},
        )
        write = GenerateTextRetrievalData(
            llm=llm, input_batch_size=size, add_raw_output=False, add_raw_input=False
        )
        load >> write
    found = pipeline.run(use_cache=False)
    seconds = time.perf_counter() - began
    table = found["default"]["train"]
    stored = sum(text is not None for text in table["positive_document"])
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in used)
    peak = max(u.ru_maxrss for u in used) / 1024  # of its largest process, not of all of them
    print(json.dumps({"stored": stored, "seconds": seconds, "cpu": cpu, "peak_mib": peak}))


if __name__ == "__main__":
    main()
