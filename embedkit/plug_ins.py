"""Open what an entry point names, with the options it takes; a failure names the plug-in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from embedkit.errors import EmbedkitError, UnknownNameError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


def find_plug_ins(group: str) -> dict[str, EntryPoint]:
    """Return a group's entry points by name, sorted, none of them imported."""
    from importlib.metadata import entry_points

    return {e.name: e for e in sorted(entry_points(group=group), key=lambda e: e.name)}


def open_plug_in(
    entry: EntryPoint,
    model: str,
    options: Mapping[str, Any],
    wanted: type[T],
    failure: type[EmbedkitError],
) -> T:
    """Return what the plug-in opens for `model`: by its `open`, else by itself.

    Raises UnknownNameError for an option that it does not take; `failure`, naming the plug-in, where its import or
    opening fails or it gives no `wanted`. Its own EmbedkitErrors pass.
    """
    plug_in = f"the plug-in {entry.name!r} ({entry.value})"
    noun = wanted.__name__.lower()
    try:
        factory = entry.load()
        opener = getattr(factory, "open", factory)
        _check_options(f"option of the {noun} {entry.name!r}:", opener, options)
        opened = opener(model, **options)
    except EmbedkitError:
        raise
    except Exception as e:
        raise failure(f"{plug_in} cannot be opened: {type(e).__name__}: {e}") from e
    if not isinstance(opened, wanted):
        article = "an" if noun[0] in "aeiou" else "a"
        raise failure(f"{plug_in} gave {type(opened).__name__}, not {article} {wanted.__name__}")
    return opened


def _check_options(what: str, opener: Callable[..., Any], options: Mapping[str, Any]) -> None:
    from inspect import Parameter, signature

    first, *parameters = signature(opener).parameters.values()
    known = [p.name for p in parameters if p.kind is not Parameter.VAR_KEYWORD]
    if len(known) < len(parameters) and first.name not in options:
        return
    for name in options:
        if name not in known:
            raise UnknownNameError(what, name, known)
