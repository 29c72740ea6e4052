"""CodeSearchNet: a function and what its documentation says it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from embedkit_trainer.data.formats import files
from embedkit_trainer.data.rows import Row

_EMPTY_QUOTES = re.compile(r'^[ \t]*[rRuU]?("""|\'\'\')\s*("""|\'\'\')[ \t]*\n?', re.MULTILINE)
_PARAGRAPH = re.compile(r"\n\s*\n")


def codesearchnet(path: Path) -> Iterator[Row]:
    """Read CodeSearchNet's JSON lines: `docstring` and `code`, or the hub's names for them.

    The query is the docstring's first paragraph. Python's `code` still holds its docstring; it is cut out, else the
    model would learn to find the query's own words. `url` is the identity where there is one.
    """
    for file in files.inputs(path, ".jsonl", ".parquet"):
        for line, record in files.records(file):
            long = "func_code_string" in record
            docstring = files.text_of(
                record, "func_documentation_string" if long else "docstring", file, line
            )
            code = files.text_of(record, "func_code_string" if long else "code", file, line)
            if docstring.strip():
                code = _EMPTY_QUOTES.sub("", code.replace(docstring, ""))
            url = record.get("url", record.get("func_code_url"))
            query = " ".join(_PARAGRAPH.split(docstring.strip(), maxsplit=1)[0].split())
            yield Row(
                query, code.strip(), positive_id=url if isinstance(url, str) and url else None, line=line
            )
