"""The format of a file by its name."""

from __future__ import annotations

from pathlib import PurePath

from embedkit.compression import COMPRESSED

_BY_SUFFIX = {
    "text": "txt text log tex org adoc asciidoc srt vtt",
    "markdown": "md markdown mdown mkd mdx qmd",
    "rst": "rst rest",
    "html": "html htm xhtml",
    "pdf": "pdf",
    "docx": "docx",
    "jsonl": "jsonl ndjson jsonlines",
    "json": "json",
    "csv": "csv",
    "tsv": "tsv tab",
    "parquet": "parquet pq",
    "arrow": "arrow feather ipc",
}
FORMAT_OF = {suffix: name for name, suffixes in _BY_SUFFIX.items() for suffix in suffixes.split()}

# The name that `Document.lang` carries, and the suffixes.
_CODE = {
    "python": "py pyi",
    "javascript": "js mjs cjs jsx",
    "typescript": "ts tsx",
    "go": "go",
    "rust": "rs",
    "java": "java",
    "c": "c h",
    "cpp": "cpp cc cxx hpp hh cu",
    "csharp": "cs",
    "ruby": "rb",
    "php": "php",
    "shell": "sh bash zsh",
    "sql": "sql",
    "kotlin": "kt kts",
    "swift": "swift",
    "scala": "scala",
    "lua": "lua",
    "r": "r",
    "julia": "jl",
    "perl": "pl pm",
    "haskell": "hs",
    "elixir": "ex exs",
    "erlang": "erl",
    "clojure": "clj",
    "dart": "dart",
    "ocaml": "ml mli",
    "fsharp": "fs",
    "groovy": "groovy",
    "objective-c": "m mm",
    "powershell": "ps1",
    "zig": "zig",
    "nim": "nim",
    "fortran": "f90 f95",
    "protobuf": "proto",
    "graphql": "graphql",
    "terraform": "tf",
    "yaml": "yaml yml",
    "toml": "toml",
    "ini": "ini cfg",
    "xml": "xml",
    "css": "css scss",
    "vue": "vue",
    "svelte": "svelte",
    "cmake": "cmake",
    "dockerfile": "dockerfile",
    "makefile": "makefile",
}
CODE_OF = {suffix: language for language, suffixes in _CODE.items() for suffix in suffixes.split()}
# What a record's language field may say of code.
CODE_LANGUAGES = frozenset(name for name in _CODE if len(name) > 3) | {"sql", "php", "bash", "sh"}


def format_of(name: str) -> tuple[str | None, str | None]:
    """Return (format, programming language) for a file's name; (None, None) where the name says nothing."""
    path = PurePath(name.lower())
    if path.suffix in COMPRESSED:
        path = path.with_suffix("")
    suffix = path.suffix.removeprefix(".") or path.name
    if suffix in FORMAT_OF:
        return FORMAT_OF[suffix], None
    if suffix in CODE_OF:
        return "code", CODE_OF[suffix]
    return ("text", None) if not path.suffix else (None, None)
