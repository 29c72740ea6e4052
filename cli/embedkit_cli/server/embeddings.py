"""POST /v1/embeddings and GET /v1/models, as OpenAI has them."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from embedkit.errors import InputError
from embedkit.texts import is_visible
from embedkit_cli.server.embedders import ServedEmbedder
from embedkit_cli.server.errors import ApiError, invalid, sentence
from embedkit_cli.server.schemas import EmbeddingsBody, read_body
from embedkit_cli.server.service import Service
from embedkit_cli.server.units import Unit, UnitEncoder
from embedkit_cli.server.workers import check_wanted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_cli.server.config import Limits


# Texts whose tokens are counted at a time.
_PART = 64
# Tokens that an embedder sets around a text, at most; and those of one character outside ASCII: Unicode's normal forms
# make 18 of it, and tokenizers up to a token of each byte.
_SPECIAL, _WIDEST = 16, 64


async def embeddings(service: Service, request: Request) -> Response:
    """Embed texts: documents, or queries under a task or an instruction."""
    service.check_ready()
    body = read_body(EmbeddingsBody, request.scope["embedkit.body"])
    name, embedder = _model(service, body.model)
    dim = _dimensions(embedder, body.dimensions)
    units = _units(embedder, body, service.config.limits)
    most = service.config.limits.tokens
    counted: list[int] | None = None
    if _bound(embedder, units) > most:
        with service.counters.place():
            counted = await service.counters.run(_counted, embedder, units, most)
    done = await embedder.batcher.encode(units, count=counted is None)
    tokens = done.tokens if counted is None else counted
    limit = embedder.info.max_length
    read = sum(min(count, limit) for count in tokens)
    cut = sum(tokens) - read
    service.metrics.tokens.inc(sum(tokens))
    headers = {}
    if cut:
        service.metrics.truncated.inc(cut)
        headers["X-Truncated-Tokens"] = str(cut)
    content = _answer(
        done.vectors if dim is None else _shortened(done.vectors, dim), name, read, body.encoding_format
    )
    return Response(content, headers=headers, media_type="application/json")


async def models(service: Service, request: Request) -> Response:
    """List the embedders."""
    del request
    service.check_ready()
    data = [_described(name, embedder) for name, embedder in service.models().items()]
    return Response(orjson.dumps({"object": "list", "data": data}), media_type="application/json")


async def model(service: Service, request: Request) -> Response:
    """Describe one embedder."""
    service.check_ready()
    name, embedder = _model(service, request.path_params["model"])
    return Response(orjson.dumps(_described(name, embedder)), media_type="application/json")


def _described(name: str, embedder: ServedEmbedder) -> dict[str, Any]:
    info = embedder.info
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "embedkit",
        "fingerprint": embedder.fingerprint,
        "dimensions": info.dim,
        "shorter_dimensions": [d for d in info.matryoshka_dims if d < info.dim],
        "max_length": info.max_length,
        "instruction_trained": info.instruction_trained,
        "default_task": info.default_task,
    }


def _model(service: Service, wanted: str | None) -> tuple[str, ServedEmbedder]:
    known = service.models()
    if not known:
        raise ApiError(503, "no embedder is open at present: try again later", headers={"Retry-After": "5"})
    if wanted is None:
        return next(iter(known.items()))
    for name, embedder in known.items():
        if wanted in (name, embedder.full_name):
            return name, embedder
    of_spec = [item for item in known.items() if _spelt(wanted) == item[1].spec.removesuffix(":")]
    if len(of_spec) == 1 or (of_spec and of_spec[0][1] is service.embedders.own):
        return of_spec[0]
    raise ApiError(
        404,
        f"there is no model {wanted[:80]!r}: this server has {', '.join(known)}",
        param="model",
        code="model_not_found",
    )


def _spelt(name: str) -> str:
    from embedkit.registry import BUNDLED, DEFAULT

    # Not `full_name`, which looks for a folder of the name.
    return BUNDLED if name == DEFAULT else name


def _dimensions(embedder: ServedEmbedder, wanted: int | None) -> int | None:
    info = embedder.info
    if wanted is None or wanted == info.dim:
        return None
    shorter = [d for d in info.matryoshka_dims if d < info.dim]
    if wanted in shorter:
        return wanted
    allowed = " or ".join(map(str, [info.dim, *shorter]))
    raise invalid(f"dimensions is {wanted}: {info.name} gives {allowed}", "dimensions")


def _units(embedder: ServedEmbedder, body: EmbeddingsBody, limits: Limits) -> list[Unit]:
    if len(body.input) > limits.texts:
        raise invalid(
            f"{len(body.input):,} texts are more than the {limits.texts:,} that one request may hold", "input"
        )
    asked = body.task is not None or body.instruction is not None
    role = body.input_type or ("query" if asked else "document")
    if asked and role != "query":
        raise invalid(f"a task and an instruction are for queries, and input_type is {role}", "input_type")
    if body.instruction is not None and len(body.instruction) > limits.text_characters:
        raise invalid(f"the instruction is longer than {limits.text_characters:,} characters", "instruction")
    told = _instruction(embedder, body) if role == "query" else None
    for number, text in enumerate(body.input):
        check_text(
            text, limits, "input", f"text {number}" if len(body.input) > 1 else "the text", role == "query"
        )
    return [Unit(role, told, text) for text in body.input]


def _instruction(embedder: ServedEmbedder, body: EmbeddingsBody) -> str | None:
    try:
        return embedder.instruction_for(body.task, body.instruction)
    except InputError as e:
        raise invalid(sentence(e), "task" if body.instruction is None else "instruction") from None


def _bound(embedder: ServedEmbedder, units: Sequence[Unit]) -> int:
    """Return a number of tokens that is not exceeded, without looking for them: most requests need no more."""
    limit = embedder.info.max_length
    first, template = units[0], embedder.info.template
    around = (
        template.render_query("", first.instruction)
        if first.role == "query"
        else template.render_document("")
    )
    extra = len(around) + _SPECIAL
    return sum([min(len(u.text) * (1 if u.text.isascii() else _WIDEST) + extra, limit) for u in units])


def _counted(embedder: ServedEmbedder, units: Sequence[Unit], most: int) -> list[int]:
    """Count the tokens of each text. Raises ApiError 400 as soon as more are read than the limit allows."""
    encoder, limit = UnitEncoder(embedder), embedder.info.max_length
    counts: list[int] = []
    read = 0
    for start in range(0, len(units), _PART):
        check_wanted()
        part = encoder.tokens(units[start : start + _PART])
        read += sum(min(count, limit) for count in part)
        if read > most:
            raise invalid(
                f"the texts have more than the {most:,} tokens that one request may hold: send fewer at a time",
                "input",
            )
        counts += part
    return counts


def check_text(text: str, limits: Limits, param: str, what: str, visible: bool) -> None:
    """Raise ApiError 400 for a text that is empty or too long to be looked at."""
    if len(text) > limits.text_characters:
        raise invalid(
            f"{what} has {len(text):,} characters, more than the {limits.text_characters:,} that one text may have",
            param,
        )
    if not (is_visible(text) if visible else text.strip()):
        raise invalid(f"{what} is empty: give it some text", param)


def _shortened(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    import numpy as np

    cut = vectors[:, :dim]
    norm = np.linalg.norm(cut, axis=1, keepdims=True)
    out: NDArray[np.float32] = np.divide(cut, norm, out=np.zeros_like(cut), where=norm > 0)
    return out


def _answer(vectors: NDArray[np.float32], model: str, tokens: int, encoding: str | None) -> bytes:
    import numpy as np

    rows: list[Any]
    if encoding == "base64":
        raw = np.ascontiguousarray(vectors, "<f4")
        rows = [binascii.b2a_base64(row, newline=False).decode() for row in raw]
    else:
        rows = list(np.ascontiguousarray(vectors))
    return orjson.dumps(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
