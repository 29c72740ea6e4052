"""`embedkit eval --kind`: the kinds beyond retrieval: read the files, measure, print."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedkit.errors import InputError
from embedkit_cli.kind_options import KindOptions, counter, print_head
from embedkit_cli.options import EmbedderChoice
from embedkit_cli.output import console, note, print_json, printable, untrained_note

if TYPE_CHECKING:
    from embedkit.embedder import Embedder
    from embedkit.evaluation.protocol import GroupScore, KindReport, ProtocolEncoder
    from embedkit.tasks import Task

_MOST_ROWS = 40
_ONE_SIDED_TEXTS = ("classification", "clustering")


def evaluate_kind(kind: str, sources: Sequence[str], choice: EmbedderChoice, wanted: KindOptions) -> None:
    """Measure and print one kind. Raises InputError for sources and options that do not fit it."""
    from embedkit_cli.tasks import TaskBook

    started = time.perf_counter()
    _check_sources(kind, sources)
    if (
        kind in _ONE_SIDED_TEXTS
        and wanted.protocol == "one-sided"
        and (wanted.instruction or wanted.task_name)
    ):
        raise InputError(
            f"{kind} has no query, and one-sided encodes its texts bare, as an index holds them: leave --task and "
            "--instruction out, or give --protocol paper"
        )
    task = TaskBook(wanted.tasks_path).find(wanted.task_name) if wanted.task_name is not None else None
    if kind == "mteb":
        from embedkit_cli.mteb_run import evaluate_mteb

        evaluate_mteb(sources, choice, wanted, task.instruction if task else wanted.instruction, started)
        return
    measure = _KINDS[kind](sources, wanted)
    embedder = choice.open()
    encoder, report = _measured(kind, embedder, wanted, task, measure)
    remark = _remark(kind, encoder, wanted, report)
    if remark:
        note(remark)
    record = {
        "kind": kind,
        "sources": list(sources),
        "embedder": embedder.info.name,
        "protocol": wanted.protocol,
        "instruction": encoder.instruction,
        "instructed": encoder.instructed(1 if kind in _ONE_SIDED_TEXTS else 2),
        **report.to_dict(),
        "note": remark,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if wanted.as_json:
        print_json(record)
        return
    print_head(record)
    print_scores([report.overall, *(report.groups if len(report.groups) > 1 or kind == "passkey" else ())])


def print_scores(scores: Sequence[GroupScore]) -> None:
    """Print a table with a row for each group; of more than 40 groups the first ones."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for column in ("count", *scores[0].measures):
        table.add_column(column, justify="right")
    for i, score in enumerate(scores[: _MOST_ROWS + 1]):
        values = [_cell(name, score.measures.get(name)) for name in scores[0].measures]
        table.add_row(Text(printable(score.group), style="dim" if i else "bold"), f"{score.count:,}", *values)
    screen = console()
    screen.print(table)
    if len(scores) > _MOST_ROWS + 1:
        screen.print(f"and {len(scores) - _MOST_ROWS - 1} more (--json lists them)")


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if name == "tokens" else f"{value:.3f}"


Run = Callable[["ProtocolEncoder"], "KindReport"]


def _measured(
    kind: str, embedder: Embedder, wanted: KindOptions, task: Task | None, run: Run
) -> tuple[ProtocolEncoder, KindReport]:
    from embedkit.evaluation.protocol import ProtocolEncoder, choose_instruction
    from embedkit_cli.progress import Meter

    told = choose_instruction(embedder, kind, task, wanted.instruction)
    with Meter("texts") as meter:
        encoder = ProtocolEncoder(embedder, wanted.protocol, told, advance=counter(meter.update))
        return encoder, run(encoder)


def _remark(kind: str, encoder: ProtocolEncoder, wanted: KindOptions, report: KindReport) -> str | None:
    info = encoder.embedder.info
    remarks = []
    if encoder.instruction is not None and not info.instruction_trained:
        remarks.append(untrained_note(info.name))
    if encoder.instruction is not None and encoder.embedder.room_for_query(encoder.instruction) < 1:
        remarks.append(
            f"the instruction fills the {info.max_length:,} tokens that {info.name} reads: nothing of the text after it is encoded"
        )
    if kind == "classification" and wanted.protocol == "paper" and report.facts["normalized"]:
        remarks.append(
            f"{info.name} gives vectors of unit length itself: the paper's un-normalised ones are not to be had"
        )
    if kind == "passkey":
        asked = [int(g.group) for g in report.groups]
        cut = [n for n in asked if n > info.max_length]
        if cut:
            remarks.append(
                f"texts are truncated at {info.max_length} tokens, so that {', '.join(map(str, cut))} measure chance in part"
            )
        elif wanted.lengths is None:
            remarks.append(
                f"{info.name} reads {info.max_length} tokens: longer texts are left out (--lengths asks for them)"
            )
    return "; ".join(remarks) or None


def _check_sources(kind: str, sources: Sequence[str]) -> None:
    wrong = {
        "sts": len(sources) != 1,
        "bitext": len(sources) != 1,
        "clustering": len(sources) != 1,
        "classification": len(sources) not in (1, 2),
        "passkey": bool(sources),
        "mteb": not sources,
    }
    takes = {
        "classification": "a training and a test file, or a folder with train.jsonl and test.jsonl",
        "passkey": "no SOURCE: it makes its texts itself",
        "mteb": "names of mteb tasks or benchmarks",
    }
    if wrong[kind]:
        raise InputError(
            f"--kind {kind} takes {takes.get(kind, 'one file')}; {len(sources)} SOURCEs are given"
        )


def _sts(sources: Sequence[str], wanted: KindOptions) -> Run:
    from embedkit.evaluation import sample
    from embedkit.evaluation.records import read_pairs, restrict
    from embedkit.evaluation.sts import evaluate_sts

    pairs = restrict(read_pairs(sources[0], scored=True), sources[0], wanted.langs, wanted.split)
    pairs = sample(pairs, wanted.sample_size, wanted.seed)
    return lambda encoder: evaluate_sts(encoder, pairs)


def _bitext(sources: Sequence[str], wanted: KindOptions) -> Run:
    from embedkit.evaluation import sample
    from embedkit.evaluation.bitext import evaluate_bitext
    from embedkit.evaluation.records import read_pairs, restrict

    pairs = restrict(read_pairs(sources[0], scored=False), sources[0], wanted.langs, wanted.split)
    pairs = sample(pairs, wanted.sample_size, wanted.seed)
    return lambda encoder: evaluate_bitext(encoder, pairs)


def _classification(sources: Sequence[str], wanted: KindOptions) -> Run:
    from embedkit.evaluation import find_file
    from embedkit.evaluation.classification import evaluate_classification
    from embedkit.evaluation.records import read_labelled, restrict

    files = list(sources)
    if len(files) == 1:
        found = [find_file(Path(sources[0]), f"{side}.jsonl") for side in ("train", "test")]
        files = [str(f) for f in found if f is not None]
        if len(files) != 2:
            raise InputError(
                f"{sources[0]} is no folder with train.jsonl and test.jsonl: give a training and a test file"
            )
    train, test = (restrict(read_labelled(file), file, wanted.langs, None) for file in files)
    return lambda encoder: evaluate_classification(
        encoder, train, test, per_label=wanted.per_label, experiments=wanted.experiments, seed=wanted.seed
    )


def _clustering(sources: Sequence[str], wanted: KindOptions) -> Run:
    from embedkit.evaluation import sample
    from embedkit.evaluation.clustering import evaluate_clustering
    from embedkit.evaluation.records import read_labelled, restrict

    rows = restrict(read_labelled(sources[0]), sources[0], wanted.langs, wanted.split)
    rows = sample(rows, wanted.sample_size, wanted.seed)
    return lambda encoder: evaluate_clustering(
        encoder, rows, experiments=wanted.experiments, seed=wanted.seed
    )


def _passkey(sources: Sequence[str], wanted: KindOptions) -> Run:
    from embedkit.evaluation.passkey import LENGTHS, evaluate_passkey

    given = _lengths(wanted.lengths) if wanted.lengths is not None else None

    def run(encoder: ProtocolEncoder) -> KindReport:
        reach = encoder.embedder.info.max_length
        lengths = given or [n for n in LENGTHS if n <= reach]
        if not lengths:
            raise InputError(
                f"{encoder.embedder.info.name} reads {reach} tokens, below the shortest length of {LENGTHS[0]}: give --lengths"
            )
        return evaluate_passkey(encoder, lengths, seed=wanted.seed)

    return run


def _lengths(text: str) -> list[int]:
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = [0]
    if min(lengths) < 1:
        raise InputError(f"--lengths {text!r} is no list of token counts, such as 256,1024,4096")
    return lengths


_KINDS: Mapping[str, Callable[[Sequence[str], KindOptions], Run]] = {
    "sts": _sts,
    "bitext": _bitext,
    "classification": _classification,
    "clustering": _clustering,
    "passkey": _passkey,
}
