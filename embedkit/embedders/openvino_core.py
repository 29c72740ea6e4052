"""OpenVINO's one Core of a process, imported without what embedkit does not need."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any


def shared_core() -> Any:
    """Return this process's one OpenVINO Core; it lives as long as the process.

    The CPU plug-in gives the thread that first compiles a stack for signal handlers, and takes it from the memory
    when the last Core goes, on whatever thread that is: from then on a signal kills the process without a word.
    """
    return _core_of(os.getpid())


@cache
def _core_of(process: int) -> Any:
    """Return the Core of a process: a forked one needs its own, the parent's threads did not come along."""
    return _openvino().Core()


def _openvino() -> Any:
    """Import OpenVINO without its converter, which costs more than the rest and loads a telemetry client.

    OpenVINO itself allows for the converter's absence; it stays importable as `openvino.tools.ovc`.
    """
    if "openvino" in sys.modules or "openvino.tools.ovc" in sys.modules:
        import openvino

        return openvino
    sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        del sys.modules["openvino.tools.ovc"]

    def convert_model(*args: Any, **kwargs: Any) -> Any:
        from openvino.tools.ovc import convert_model as convert

        return convert(*args, **kwargs)

    openvino.convert_model = convert_model
    return openvino
