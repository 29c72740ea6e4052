"""Which filters the options of `embedkit synth filter` ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedkit_cli.options import EmbedderChoice
from embedkit_cli.output import note
from embedkit_cli.synth_running import begin, run_requests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from embedkit_cli.progress import Meter
    from embedkit_trainer.synthesis.filters.example import Filter, WholeFilter
    from embedkit_trainer.synthesis.filters.judging import JudgedConsistency
    from embedkit_trainer.synthesis.running import RunReport
    from embedkit_trainer.synthesis.settings import SynthesisConfig


@dataclass(slots=True)
class Chosen:
    """Hold the filters, the cheap ones first, for later ones see fewer rows; and the LLM that judges, where one does."""

    filters: list[Filter | WholeFilter] = field(default_factory=list)
    judge: JudgedConsistency | None = None
    config: SynthesisConfig | None = None

    @property
    def judges(self) -> str:
        """The names of the models that judge, empty where none does."""
        return ", ".join(m.name for m in self.config.models if m.share > 0) if self.config else ""


def choose(
    choice: EmbedderChoice,
    verdicts: Path,
    meter: Meter,
    *,
    duplicates: bool,
    language: bool,
    sure: float,
    lengths: bool,
    placeholders: bool,
    factor: float,
    slack: float,
    evaluation: tuple[str, ...],
    ngram: int,
    near: float | None,
    consistency: bool,
    relabel: bool,
    max_ratio: float | None,
    judge: str | None,
    overrides: tuple[str, ...],
    no_budget: bool,
    retry_failed: bool,
) -> Chosen:
    """Return the filters that were asked for. Raises InputError for options that do not go together."""
    from embedkit.errors import InputError
    from embedkit_trainer.synthesis.filters.compliance import LengthFilter
    from embedkit_trainer.synthesis.filters.duplicates import DuplicateFilter
    from embedkit_trainer.synthesis.filters.placeholders import PlaceholderFilter

    _check_together(
        choice, consistency or relabel, judge, max_ratio, bool(overrides or no_budget or retry_failed)
    )
    chosen = Chosen()
    made = chosen.filters
    if duplicates:
        made.append(DuplicateFilter())
    if language:
        made.append(_language_filter(sure))
    if lengths:
        made.append(LengthFilter(factor, slack))
    if placeholders:
        made.append(PlaceholderFilter())
    if evaluation:
        from embedkit_trainer.synthesis.filters.contamination import ContaminationFilter

        made.append(ContaminationFilter(evaluation, ngram))
    if near is not None:
        from embedkit_trainer.synthesis.filters.near import NearDuplicateFilter

        made.append(NearDuplicateFilter(near))
    if judge is not None:
        from embedkit_trainer.synthesis.filters.judging import JudgedConsistency
        from embedkit_trainer.synthesis.settings_file import load_synthesis

        chosen.config = load_synthesis(judge, overrides)
        _check_prices(chosen.config, no_budget)
        chosen.judge = JudgedConsistency(
            chosen.config, verdicts, _asking(meter), relabel=relabel, retry_failed=retry_failed
        )
        made.append(chosen.judge)
    by_embedder = (consistency or relabel) and judge is None
    if by_embedder or max_ratio is not None:
        made += _ranking_filters(choice, by_embedder, relabel, max_ratio)
    if not made:
        raise InputError("every filter is turned off: leave one on")
    return chosen


def _check_together(
    choice: EmbedderChoice, consistency: bool, judge: str | None, max_ratio: float | None, of_judge: bool
) -> None:
    from embedkit.errors import InputError
    from embedkit.registry import DEFAULT

    if judge is not None and not consistency:
        raise InputError("--judge says who judges: give --consistency or --relabel with it")
    if judge is None and of_judge:
        raise InputError("--set, --no-budget and --retry-failed are for --judge: give it a config")
    needed = max_ratio is not None or (consistency and judge is None)
    if not needed and (choice.options or choice.name != DEFAULT):
        raise InputError(
            "an embedder judges for --consistency, --relabel and --max-ratio alone, and not where --judge does: "
            "leave out what speaks of one"
        )


def _check_prices(config: SynthesisConfig, no_budget: bool) -> None:
    """Refuse a model without a price."""
    planned: Any = None  # prices alone are checked
    begin(config, planned, 0, dry_run=False, prompts=0, no_budget=no_budget, as_json=False)


def _asking(meter: Meter) -> Callable[[Callable[..., RunReport]], RunReport]:
    def ask(work: Callable[..., RunReport]) -> RunReport:
        with meter.paused():
            return run_requests(work, "judging")

    return ask


def _language_filter(sure: float) -> Filter:
    from embedkit_indexes.corpus.language import identify_language, known_languages
    from embedkit_trainer.synthesis.filters.language import LanguageFilter

    return LanguageFilter(identify_language, known_languages(), sure)


def _ranking_filters(
    choice: EmbedderChoice, consistency: bool, relabel: bool, max_ratio: float | None
) -> list[Filter]:
    from embedkit_trainer.synthesis.filters.ranking import ConsistencyFilter, Cosines, NegativeFilter

    opened = choice.open()
    if not opened.info.instruction_trained:
        note(f"{opened.info.name} was not trained on instructions: it judges the bare queries")
    cosines = Cosines(opened)
    made: list[Filter] = [ConsistencyFilter(cosines, relabel=relabel)] if consistency else []
    if max_ratio is not None:
        made.append(NegativeFilter(cosines, max_ratio))
    return made
