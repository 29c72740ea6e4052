"""`embedkit synth filter` and `embedkit synth stats`: what is wrong with rows, and what is in them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from embedkit_cli.options import EmbedderChoice, common, embedder_options
from embedkit_cli.output import note, print_json
from embedkit_cli.synth_rows_filters import choose
from embedkit_cli.synth_rows_output import print_report, print_statistics, warn_of_judge
from embedkit_cli.synth_running import end


@click.command("filter")
@click.argument("rows_path", metavar="ROWS")
@click.option("-o", "--output", metavar="OUT", required=True, help="A folder, or a file ending in .jsonl.")
@click.option(
    "--duplicates/--no-duplicates",
    default=True,
    show_default=True,
    help="Drop rows that were there before, text by text.",
)
@click.option(
    "--language/--no-language",
    default=True,
    show_default=True,
    help="Drop rows with a text surely in another language.",
)
@click.option(
    "--sure",
    type=float,
    metavar="X",
    default=0.8,
    show_default=True,
    help="How sure the language detector must be.",
)
@click.option(
    "--lengths/--no-lengths",
    default=True,
    show_default=True,
    help="Drop rows not as long as was drawn for them, or with an unfilled {placeholder}.",
)
@click.option(
    "--placeholders/--no-placeholders",
    default=True,
    show_default=True,
    help="Drop rows with a value that their template cannot have drawn.",
)
@click.option(
    "--factor",
    type=float,
    metavar="X",
    default=2.0,
    show_default=True,
    help="How far num_words may be missed, either way.",
)
@click.option(
    "--slack",
    type=float,
    metavar="X",
    default=1.25,
    show_default=True,
    help="The same for the limits of query_length and unit.",
)
@click.option(
    "--evaluation",
    metavar="PATH",
    multiple=True,
    help="Drop rows that share text with this evaluation set; repeat it for several.",
)
@click.option(
    "--ngram",
    type=int,
    metavar="N",
    default=13,
    show_default=True,
    help="So many words in a row are shared text.",
)
@click.option(
    "--near-duplicates",
    "near",
    type=float,
    metavar="X",
    help="Drop rows alike to an earlier one by X, such as 0.8.",
)
@click.option(
    "--consistency", is_flag=True, help="Drop rows whose negative is nearer to the query than the positive."
)
@click.option("--relabel", is_flag=True, help="Let such a negative and the positive change places.")
@click.option(
    "--judge", metavar="CONFIG", help="Let the models of this synthesis judge that, not an embedder."
)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a value of CONFIG.")
@click.option(
    "--no-budget", is_flag=True, help="Judge without prices; ceilings on requests and tokens still hold."
)
@click.option("--retry-failed", is_flag=True, help="Ask again where the judge's answer could not be used.")
@click.option(
    "--max-ratio",
    type=float,
    metavar="X",
    help="Take out negatives that score above X times the positive, such as 0.95.",
)
@embedder_options
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    default=1,
    show_default=True,
    help="Processes beside this one.",
)
@click.option("--force", is_flag=True, help="Replace an output that is there.")
@common
def filter_(
    *,
    rows_path: str,
    output: str,
    workers: int,
    force: bool,
    as_json: bool,
    embedder: str | None,
    pairs: tuple[str, ...],
    device: str | None,
    dtype: str | None,
    token_budget: int | None,
    dim: int | None,
    **rules: Any,
) -> None:
    """Write the training rows of ROWS that pass, and beside them those that do not, with the reason.

    \b
    embedkit synth filter data/synthetic -o data/filtered --near-duplicates 0.8
    embedkit synth filter rows.jsonl -o kept.jsonl --consistency --max-ratio 0.95
    embedkit synth filter rows.jsonl -o kept.jsonl --evaluation mteb/ --force
    embedkit synth filter rows.jsonl -o kept.jsonl --consistency --judge judge.toml

    ROWS is a file, a folder or a glob. What is dropped lies in OUT.dropped, a file for each reason, and report.json;
    a judge's verdicts lie in OUT.judge, and are not asked for again.
    """
    from embedkit_cli.progress import Meter, estimate_documents
    from embedkit_trainer.synthesis.filters.output import Target
    from embedkit_trainer.synthesis.filters.pipeline import filter_rows

    target = Target.of(rows_path, output, replace=force)
    choice = EmbedderChoice.of(
        embedder, pairs, device=device, dtype=dtype, token_budget=token_budget, dim=dim
    )
    with Meter("rows") as meter:
        chosen = choose(choice, target.verdicts, meter, **rules)
        meter.expect(estimate_documents(map(str, target.inputs)) if meter.shown else None)
        report = filter_rows(
            target, chosen.filters, workers=workers, watch=lambda n: meter.update("filtering", n)
        )
    warn_of_judge(report, chosen.judges or choice.name)
    judging = chosen.judge.report if chosen.judge else None
    if as_json:
        facts = {"judging": asdict(judging)} if judging else {}
        print_json({"output": str(target.path), "beside": str(target.beside), **report.to_dict(), **facts})
    else:
        print_report(report, str(target.path), str(target.beside))
    if judging is not None and chosen.config is not None:
        end(judging, chosen.config, as_json)


@click.command("stats")
@click.argument("rows_path", metavar="ROWS")
@click.option("--html", "html_path", metavar="FILE", help="Write one page with everything on it.")
@click.option("--png", "png_path", metavar="FILE", help="Write the plot of types and languages.")
@click.option(
    "--run",
    "run_path",
    metavar="DIR",
    help="Count the rejected answers in this output of `synth generate` too.",
)
@click.option(
    "--near-duplicates",
    "likeness",
    type=float,
    metavar="X",
    default=0.8,
    show_default=True,
    help="Rows alike by X are near-duplicates; 0: do not look.",
)
@common
def stats(
    *,
    rows_path: str,
    html_path: str | None,
    png_path: str | None,
    run_path: str | None,
    likeness: float,
    as_json: bool,
) -> None:
    """Count what is in the training rows of ROWS, beside the figures of E5-mistral's synthetic set.

    \b
    embedkit synth stats data/synthetic --html report.html --png languages.png
    embedkit synth stats data/synthetic --run runs/first --json

    ROWS is a file, a folder or a glob. By type, language, model, template and placeholder; unique instructions, tokens
    and cost, duplicates and near-duplicates, lengths in words.
    """
    from pathlib import Path

    from embedkit_cli.progress import Meter, estimate_documents
    from embedkit_trainer.data.files import row_files
    from embedkit_trainer.synthesis.comparison import compare
    from embedkit_trainer.synthesis.filters.pipeline import read_examples
    from embedkit_trainer.synthesis.plots import check_png, write_png
    from embedkit_trainer.synthesis.report import check_html, write_html
    from embedkit_trainer.synthesis.statistics import count_rejected, gather, near_available, read_failures

    html, png = (Path(p).expanduser() if p else None for p in (html_path, png_path))
    if html is not None:
        check_html(html)
    if png is not None:
        check_png(png)
    files = row_files(rows_path)
    failures = read_failures(Path(run_path).expanduser()) if run_path else ()
    if likeness and not near_available():
        note("near-duplicates are not looked for: pip install 'embedkit-retrieval[synth]'")
        likeness = 0.0
    with Meter("rows") as meter:
        meter.expect(estimate_documents(map(str, files)) if meter.shown else None)
        made = gather(
            read_examples(files), likeness=likeness or None, watch=lambda n: meter.update("counting", n)
        )
    count_rejected(made, failures)
    if html is not None:
        write_html(html, made, rows_path)
    if png is not None:
        write_png(png, made)
    if as_json:
        table = [{"name": c.name, "paper": c.paper, "here": c.here} for c in compare(made)]
        print_json({"source": rows_path, **made.to_dict(), "paper": table})
    else:
        print_statistics(made)
