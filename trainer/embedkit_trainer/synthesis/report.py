"""The statistics as one page of HTML: nothing is loaded from anywhere, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from embedkit.errors import InputError
from embedkit_trainer.data.files import replaced
from embedkit_trainer.synthesis.comparison import (
    PAPER_TYPES,
    compare,
    paper_language,
    paper_share,
)
from embedkit_trainer.synthesis.statistics import UNSAID, Lengths, Statistics

_LANGUAGES, _VALUES = 40, 12
_KEY = '<div class="key">Bars: this set. Upright marks: the paper.</div>'

_STYLE = """
:root { color-scheme: light dark; --ground: #f9f9f7; --card: #fcfcfb; --ink: #0b0b0b; --quiet: #52514e; --line: #e1e0d9;
  --bar: #2a78d6; --mark: #0b0b0b }
@media (prefers-color-scheme: dark) { :root { --ground: #0d0d0d; --card: #1a1a19; --ink: #fff; --quiet: #c3c2b7;
  --line: #2c2c2a; --bar: #3987e5; --mark: #fff } }
* { box-sizing: border-box } body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif }
main { max-width: 1100px; margin: 0 auto; padding: 28px 20px 60px } h1 { font-size: 24px; margin: 0 0 4px }
h2 { font-size: 16px; margin: 0 0 12px } h3 { font-size: 13px; margin: 16px 0 6px; color: var(--quiet); font-weight: 600 }
p { margin: 0 0 18px; color: var(--quiet) } section { background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 18px; min-width: 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 16px }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px }
.tile b { display: block; font-size: 22px; font-weight: 600 } .tile span { color: var(--quiet); font-size: 13px }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px }
.wide { grid-column: 1 / -1 } .scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--quiet); font-weight: 500; font-size: 13px } th:first-child, td:first-child { text-align: left; padding-left: 0 }
.words td { white-space: normal }
.bars { display: grid; grid-template-columns: minmax(60px, max-content) 1fr max-content; gap: 5px 10px; align-items: center;
  font-size: 13px; font-variant-numeric: tabular-nums } .bars i { color: var(--quiet); font-style: normal; text-align: right }
.bars span { overflow: hidden; text-overflow: ellipsis; max-width: 240px; white-space: nowrap }
.track { position: relative; height: 13px } .track u { position: absolute; inset: 0 auto 0 0; background: var(--bar);
  border-radius: 0 3px 3px 0 } .track s { position: absolute; top: -2px; bottom: -2px; width: 2px; background: var(--mark) }
.key { font-size: 13px; color: var(--quiet); margin: 12px 0 0 }
"""


def check_html(path: Path) -> None:
    """Raise InputError for what no page can be written to, before work begins."""
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise InputError(f"cannot write the page to {path}: name a file ending in .html")


def write_html(path: Path, made: Statistics, title: str) -> None:
    """Write the page, whole or not at all. Raises as `check_html` does, and StoreError where the disk is full."""
    check_html(path)
    with replaced(path) as beside:
        beside.write_bytes(render_html(made, title).encode("utf-8", "replace"))


def render_html(made: Statistics, title: str) -> str:
    """Return the page; every name out of the rows is escaped, and no script is on it."""
    parts = (_compared, _types, _origin, _languages, _lengths, _placeholders)
    sections = [part(made) for part in parts]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}: statistics</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p>Training rows in figures, beside those of E5-mistral's synthetic set (arXiv 2401.00368).</p>
<div class="tiles">{_tiles(made)}</div>
<div class="grid">
{"".join(sections)}</div>
</main>
</body>
</html>
"""


def _tiles(made: Statistics) -> str:
    languages = (set(made.languages) | set(made.document_languages)) - {UNSAID}
    near = made.near_duplicates
    tiles = [
        (f"{made.rows:,}", "rows"),
        (f"{made.instructions:,}", "unique instructions"),
        (f"{len(languages)}", "languages"),
        (f"{made.duplicates / made.rows:.1%}", "exact duplicates"),
    ]
    if near is not None:
        tiles.append((f"{near / made.rows:.1%}", f"near-duplicates (alike by {made.likeness:g})"))
    if made.priced:
        tiles += [
            (f"{sum(made.tokens) + sum(made.rejected_tokens):,}", "tokens of prompts and answers"),
            (f"{made.cost + made.rejected_cost:,.2f}", "cost, in the prices' currency"),
        ]
    return "".join(
        f'<div class="tile"><b>{value}</b><span>{escape(name)}</span></div>' for value, name in tiles
    )


def _section(title: str, body: str, wide: bool = False) -> str:
    return f"<section{' class=wide' if wide else ''}><h2>{escape(title)}</h2>{body}</section>\n"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


_Line = tuple[str, int, float | None]  # name, count, the paper's share


def _widest(lines: Sequence[_Line], total: int) -> float:
    return max([n / total for _, n, _ in lines] + [p or 0.0 for _, _, p in lines], default=0.0) or 1.0


def _bars(lines: Sequence[_Line], total: int, widest: float | None = None) -> str:
    """Return bars that are as long as their counts; `widest` is the share that fills the row."""
    widest = widest or _widest(lines, total)
    cells = []
    for name, n, share in lines:
        mark = "" if share is None else f'<s style="left:{100 * share / widest:.2f}%"></s>'
        bar = f'<u style="width:{100 * n / total / widest:.2f}%"></u>'
        told = f"{name}: {n:,}" + ("" if share is None else f", {share:.1%} in the paper")
        cells.append(
            f'<span title="{escape(told)}">{escape(name)}</span><div class="track" title="{escape(told)}">{bar}{mark}</div>'
            f"<i>{n:,} · {n / total:.1%}</i>"
        )
    return f'<div class="bars">{"".join(cells)}</div>'


def _compared(made: Statistics) -> str:
    lines = [(line.name, line.paper, line.here) for line in compare(made)]
    return _section(
        "Beside the paper", f'<div class="words">{_table(("", "paper", "this set"), lines)}</div>', wide=True
    )


def _types(made: Statistics) -> str:
    kinds = [*PAPER_TYPES, *(kind for kind, _ in made.types.most_common() if kind not in PAPER_TYPES)]
    bars = _bars([(kind, made.types[kind], paper_share(kind)) for kind in kinds], made.rows)
    negatives: list[_Line] = [(str(n), count, None) for n, count in sorted(made.negatives.items())]
    return _section("Types", f"{bars}{_KEY}<h3>Hard negatives a row</h3>{_bars(negatives, made.rows)}")


def _languages(made: Statistics) -> str:
    found = made.languages.most_common()
    lines: list[_Line] = [(code, n, paper_language(code)) for code, n in found[:_LANGUAGES]]
    if found[_LANGUAGES:]:
        lines.append((f"{len(found) - _LANGUAGES} others", sum(n for _, n in found[_LANGUAGES:]), None))
    half, widest = (len(lines) + 1) // 2, _widest(lines, made.rows)
    columns = [_bars(part, made.rows, widest) for part in (lines[:half], lines[half:]) if part]
    body = f'<div class="grid">{_boxed(columns)}</div>{_KEY}'
    if made.pairs:
        pairs = ", ".join(f"{escape(pair)} {n:,}" for pair, n in made.pairs.most_common(_VALUES))
        body += f'<h3>Pairs of two languages: {len(made.pairs):,}</h3><div class="key">{pairs}</div>'
    return _section("Languages of the queries", body, wide=True)


def _origin(made: Statistics) -> str:
    parts = []
    for title, counts in (("Models", made.models), ("Templates", made.templates)):
        lines: list[_Line] = [(name, n, None) for name, n in counts.most_common(_VALUES)]
        parts.append(f"<h3>{title}</h3>{_bars(lines, made.rows)}")
    if made.rejected:
        total = made.rejected.total()
        lines = [(name, n, None) for name, n in made.rejected.most_common(_VALUES)]
        parts.append(f"<h3>{total:,} answers rejected, by reason</h3>{_bars(lines, total)}")
    return _section("Where the rows come from", "".join(parts))


def _lengths(made: Statistics) -> str:
    lines = [(name, *_cells(found)) for name, found in made.lengths.items()]
    for kind, parts in made.lengths_by_type.items():
        lines += [(f"{kind}: {name}", *_cells(found)) for name, found in parts.items()]
    head = ("", "texts", "mean", "5%", "25%", "median", "75%", "95%", "longest")
    return _section("Lengths in words", _table(head, lines), wide=True)


def _cells(found: Lengths) -> tuple[str, ...]:
    marks = (f"{cut:,.0f}" for cut in found.percentiles.values())
    return (f"{found.count:,}", f"{found.mean:,.1f}", *marks, f"{found.longest:,.0f}")


def _placeholders(made: Statistics) -> str:
    parts = [
        f"<h3>{escape(name)}</h3>{_bars([(v, n, None) for v, n in counts.most_common(_VALUES)], counts.total())}"
        for name, counts in made.placeholders.items()
    ]
    parts += [f"<h3>{escape(name)}</h3>{n:,} different values" for name, n in made.values.items()]
    return _section(
        "Placeholders", f'<div class="grid">{_boxed(parts)}</div>' if parts else "none", wide=True
    )


def _boxed(parts: Iterable[str]) -> str:
    return "".join(f"<div>{part}</div>" for part in parts)
