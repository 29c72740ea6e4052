"""What answers are written with: JSON that every client reads, whatever a document's metadata holds."""

from __future__ import annotations

import json

import pytest

from embedkit_cli.server.errors import json_bytes


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("big", [10**30, -(10**30), 2**64, -(2**63) - 1, 2**64 - 1, -(2**63)])
def test_whole_numbers_of_any_size(big: int) -> None:
    """They are written out, and what stands beside them is what it is without them: no NaN, keys that are text."""
    value = {"hits": [{"big": big, "true": True, "none": float("nan"), 3: "Häuser"}, (big, [big])]}
    told = json.loads(json_bytes(value), parse_constant=_refuse)
    assert told == {"hits": [{"big": big, "true": True, "none": None, "3": "Häuser"}, [big, [big]]]}
