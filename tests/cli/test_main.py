"""The command itself: help, lazy imports, exit codes, one sentence for every failure."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from embedkit.errors import CorruptIndexError, InputError
from embedkit_cli import failures
from embedkit_cli.main import COMMANDS, Entry, cli
from tests.cli.conftest import REPOSITORY, Invoke, Run

_IMPORTS = "import sys; {}; print(len(sys.modules), *sorted(m for m in sys.modules))"
_HELP = (
    "from embedkit_cli.main import main; sys.argv = ['embedkit', '--help']\n"
    "try: main()\nexcept SystemExit: pass\n"
    "print(len(sys.modules), *sorted(m for m in sys.modules))"
)


def _modules(code: str) -> tuple[int, set[str]]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *names = done.stdout.splitlines()[-1].split()
    return int(count), set(names)


def test_help_imports_click_and_nothing_heavy() -> None:
    """`embedkit --help` loads fewer than 20 modules more than `import click`, none of them ours but the table."""
    base, before = _modules(_IMPORTS.format("import click"))
    count, names = _modules("import sys; " + _HELP)
    assert count < base + 20
    heavy = {
        "numpy",
        "rich",
        "faiss",
        "pyarrow",
        "torch",
        "embedkit",
        "embedkit_indexes",
        "dataclasses",
        "importlib.metadata",
    }
    assert not (names - before) & heavy


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists_and_its_help_is_light(name: str) -> None:
    """Each entry leads to a click command whose --help loads none of numpy, rich, faiss and embedkit's core."""
    _, names = _modules("import sys; " + _HELP.replace("'--help'", f"'{name}', '--help'"))
    assert "click" in names
    assert not names & {
        "numpy",
        "rich",
        "faiss",
        "pyarrow",
        "torch",
        "tokenizers",
        "embedkit",
        "embedkit_indexes",
    }


def test_help_lists_every_command_in_the_order_of_the_table(invoke: Invoke) -> None:
    """The table's names and lines are what --help shows."""
    text = invoke("--help").stdout
    places = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert all(entry.help in text for entry in COMMANDS.values())


def test_docs_are_up_to_date() -> None:
    """docs/cli.md is what the commands' own help says."""
    script = REPOSITORY / "scripts" / "generate_cli_docs.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_version(invoke: Invoke) -> None:
    """--version prints the distribution's version."""
    assert invoke("--version").stdout.startswith("embedkit 0.")


def test_unknown_command_gets_suggestions(invoke: Invoke) -> None:
    """An unknown command is answered with the nearest name and exit code 2."""
    result = invoke("serach")
    assert (result.exit_code, result.stdout) == (2, "")
    assert (
        result.stderr
        == "error: unknown command 'serach': did you mean search? `embedkit --help` lists all.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "error: missing argument 'DIR… [QUERY]' (`embedkit search --help` shows how)\n"),
        (
            ["search", "x", "y", "--hobby"],
            "error: no such option '--hobby' (`embedkit search --help` shows how)\n",
        ),
        (["index", "x"], "error: missing option '-o' / '--output' (`embedkit index --help` shows how)\n"),
        (
            ["search", "x", "y", "-k", "many"],
            "error: invalid value for '-k' / '--k': 'many' is not a valid integer",
        ),
    ],
)
def test_wrong_usage_is_one_sentence(invoke: Invoke, arguments: list[str], message: str) -> None:
    """A usage error is one line that names the --help to read, exit code 2."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command()
    @click.option("--debug", is_flag=True, expose_value=False)
    def fails() -> None:
        raise error

    monkeypatch.setattr("embedkit_cli.tasks.fails", fails, raising=False)
    monkeypatch.setitem(COMMANDS, "fails", Entry("tasks", "fails", "Fail."))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no good"), 2, "error: no good\n"),
        (CorruptIndexError("file x is truncated"), 2, "error: file x is truncated\n"),
        (KeyError("x"), 1, "internal error: KeyError: 'x' — a bug"),
        (KeyboardInterrupt(), 2, "\ninterrupted: nothing that was stored is lost"),
        (MemoryError(), 2, "error: out of memory"),
        (OSError(errno.ENOSPC, "x", "/a"), 2, "error: no space left on the device: /a: free some"),
        (OSError(errno.EDQUOT, "x", "/a"), 2, "error: no space left on the device: /a: free some"),
        (OSError(errno.EACCES, "x", "/a"), 2, "error: no permission: /a: choose"),
        (OSError(errno.EROFS, "x", "/a"), 2, "error: no permission: /a: choose"),
        (OSError(errno.EFBIG, "x"), 2, "error: the file may not grow further: raise"),
        (OSError(errno.EMFILE, "x"), 2, "error: too many open files"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), 2, "error: no such file: /a\n"),
        (OSError("arrow said so"), 2, "error: arrow said so\n"),
    ],
)
def test_exit_codes_are_stable(
    monkeypatch: pytest.MonkeyPatch, invoke: Invoke, error: BaseException, code: int, message: str
) -> None:
    """Every kind of failure has its exit code and one sentence on stderr, and no traceback."""
    _failing(monkeypatch, error)
    result = invoke("fails")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(message)
    assert result.stderr.strip().count("\n") == 0


@pytest.mark.parametrize("how", ["before", "after", "variable"])
def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, invoke: Invoke, how: str) -> None:
    """--debug before or after the command, or EMBEDKIT_DEBUG, adds the traceback; the exit code stays."""
    _failing(monkeypatch, InputError("no good"))
    arguments = {"before": ["--debug", "fails"], "after": ["fails", "--debug"], "variable": ["fails"]}[how]
    result = invoke(*arguments, env={"EMBEDKIT_DEBUG": "1"} if how == "variable" else {})
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: no good\n")


def test_debug_after_two_dashes_is_text(invoke: Invoke, tmp_path: Path) -> None:
    """A query that reads `--debug` after `--` is a query."""
    assert "Traceback" not in invoke("search", tmp_path, "--", "--debug").stderr


def test_a_full_device_under_stdout_is_one_sentence(run: Run) -> None:
    """Writing to /dev/full ends with exit code 2 and the sentence about space."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        done = run("tasks", "--json", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no space left on the device")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("form", [["--json"], []])
def test_a_closed_pipe_is_quiet(form: list[str]) -> None:
    """A reader that goes away before the output is complete is no error: exit code 0, nothing on stderr."""
    code = "import embedkit_cli.tasks as t; t.print_json = lambda v: print('x' * 10_000_000)\n"
    command = [sys.executable, "-c", f"{code}from embedkit_cli.main import main; main()", "tasks", *form]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    stderr = process.stderr.read()
    assert (process.wait(60), stderr) == (0, b"")


def test_report_returns_the_documented_codes() -> None:
    """The codes are 1 and 2."""
    assert (failures.BUG, failures.INPUT) == (1, 2)


def test_embedders_are_listed_without_importing_them(run: Run) -> None:
    """`embedders --json` names the four built-in kinds, the default model and the known model families."""
    done = run("embedders", "--json")
    found = json.loads(done.stdout)
    kinds = {k["name"]: k for k in found["kinds"]}
    assert {"openvino", "openai", "static", "transformer"} <= kinds.keys()
    assert kinds["openvino"]["default"] and kinds["openvino"]["package"] == "embedkit-retrieval"
    assert found["default"].startswith("openvino:")
    assert "e5-mistral" in {p["name"] for p in found["presets"]}


def test_a_plug_in_is_listed_although_it_cannot_be_imported(run: Run, tmp_path: Path) -> None:
    """A plug-in is found by its metadata alone: a module that does not exist is still listed."""
    info = tmp_path / "ghost-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ghost\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[embedkit.embedders]\nghost = no_such_module:Ghost\n")
    done = run("embedders", "--json", env={"PYTHONPATH": str(tmp_path)})
    ghost = next(k for k in json.loads(done.stdout)["kinds"] if k["name"] == "ghost")
    assert (ghost["object"], ghost["package"], ghost["version"]) == ("no_such_module:Ghost", "ghost", "2.0")
    assert "ghost" in run("embedders", env={"PYTHONPATH": str(tmp_path)}).stdout


def test_main_group_is_click(invoke: Invoke) -> None:
    """The group lists the table's names to click itself, so that shell completion knows them."""
    assert cli.list_commands(click.Context(cli)) == list(COMMANDS)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_is_no_utf8_stops_nothing(run: Run, sample_index: Path, encoding: str) -> None:
    """What the encoding of stdout lacks is printed as escapes, by every command for people."""
    env = {"PYTHONIOENCODING": encoding}
    for arguments in (
        ["embedders"],
        ["explain", sample_index, "git 撤销 … 😀"],
        ["search", sample_index, "撤销 git", "-k", 9],
    ):
        done = run(*arguments, env=env, encoding=encoding)
        assert (done.returncode, done.stderr) == (0, ""), arguments


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file numbers")
@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_stop_nothing(words: Path, tmp_path: Path, closed: tuple[int, ...]) -> None:
    """With stdin, stdout or stderr closed an index is built whole: no file of it stands where a stream was."""
    (tmp_path / "one.jsonl").write_text('{"_id": "only", "text": "mosquito net"}\n')
    code = (
        f"import os, sys; [os.close(n) for n in {closed}]; "
        "os.execv(sys.executable, [sys.executable, '-c', 'from embedkit_cli.main import main; main()', *sys.argv[1:]])"
    )
    build = ["index", tmp_path / "one.jsonl", "-o", tmp_path / "i", "--embedder", words]
    done = subprocess.run([sys.executable, "-c", code, *map(str, build)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    check = [sys.executable, "-c", "from embedkit_cli.main import main; main()"]
    subprocess.run([*check, "info", str(tmp_path / "i"), "--verify"], capture_output=True, check=True)


def test_the_bare_command_shows_its_help_and_no_error(run: Run) -> None:
    """`embedkit` alone prints what `--help` does, on stderr, with exit code 2."""
    done = run()
    assert done.returncode == 2 and done.stderr.startswith("Usage: embedkit [OPTIONS] COMMAND")
