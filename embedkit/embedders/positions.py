"""Where a transformer looks: its mask, its positions, and overrides of how far they reach."""

from __future__ import annotations

from typing import Any

from embedkit.errors import InputError

# Right-padded, a causal model's real tokens never see the padding: it needs no mask, and runs faster without.
_CAUSAL = ("mistral", "mixtral", "llama", "qwen2", "qwen3", "phi3")
#: Model types whose positions count from the padding token's id + 1.
FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")


def needs_no_mask(config: Any) -> bool:
    """Tell from a transformers config whether right-padded rows give the same states without an attention mask."""
    return (
        getattr(config, "model_type", "") in _CAUSAL
        and getattr(config, "is_causal", True) is not False
        and not getattr(config, "use_bidirectional_attention", False)
        and not getattr(config, "auto_map", None)
    )


def override_positions(config: Any, rope_theta: float | None, sliding_window: int | None) -> None:
    """Change a transformers config in place; None leaves what the model was trained with.

    Where layers of full and of sliding attention have a base each, that of full attention changes. A window goes to
    every layer of a model that slides none of its own, else to those that slide. Raises InputError for a model that
    knows no such thing.
    """
    kind = getattr(config, "model_type", "this model")
    if rope_theta is not None and not _set_rope(config, float(rope_theta)):
        raise InputError(
            f"{kind} has no rotary positions, so rope_theta {rope_theta:g} means nothing: leave it out"
        )
    if sliding_window is not None and not _set_window(config, sliding_window):
        raise InputError(
            f"{kind} has no sliding window, so sliding_window {sliding_window} means nothing: leave it out"
        )


def _set_rope(config: Any, theta: float) -> bool:
    parameters = getattr(config, "rope_parameters", None)  # transformers 5
    if isinstance(parameters, dict):
        nested = parameters.get("full_attention")
        target = nested if isinstance(nested, dict) else parameters
        if "rope_theta" in target:
            target["rope_theta"] = theta
            return True
    if getattr(config, "rope_theta", None) is not None:  # transformers 4
        config.rope_theta = theta
        return True
    return False


def _set_window(config: Any, window: int) -> bool:
    if not hasattr(config, "sliding_window"):
        return False
    config.sliding_window = window
    if hasattr(config, "use_sliding_window"):  # Qwen: off unless asked for, and said again layer by layer
        config.use_sliding_window = True
    layers = getattr(config, "layer_types", None)
    if layers and "sliding_attention" not in layers:
        config.layer_types = ["sliding_attention"] * len(layers)
    return True
