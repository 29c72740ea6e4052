"""Whether an embedder is the one that an index was built with, by its fingerprint and by what it encodes."""

from __future__ import annotations

from embedkit.embedder import Embedder
from embedkit.errors import EmbedderError, FingerprintError
from embedkit_indexes.manifest import Manifest


def check_probes(manifest: Manifest, embedder: Embedder) -> None:
    """Encode the probe texts again: the same weights may still be run wrongly. Raises EmbedderError.

    0.98 leaves room for bf16, float32 and int8 arithmetic over the same weights (0.994 was the lowest
    seen), and none for another model, pooling or tokenizer.
    """
    import numpy as np

    vectors = embedder.encode_document([p.text for p in manifest.probes])
    stored = np.array([p.vector for p in manifest.probes], dtype=np.float32)
    cosine = (vectors * stored).sum(axis=1)
    blank = ~stored.any(axis=1) & ~vectors.any(axis=1)
    if not bool(((cosine >= 0.98) | blank).all()):
        raise EmbedderError(
            f"embedder {embedder.info.name!r} has the fingerprint of the index ({manifest.fingerprint}) but encodes "
            f"its probe texts otherwise (cosine {float(cosine.min()):.3f}): check its installation, or rebuild the index"
        )


def check_fingerprint(manifest: Manifest, embedder: Embedder, where: str) -> None:
    """Raise FingerprintError, both fingerprints shown, unless the index was built with this embedder."""
    if embedder.fingerprint == manifest.fingerprint:
        return
    raise FingerprintError(
        f"{where} was built with {manifest.embedder['name']} ({manifest.dim} dimensions, {manifest.fingerprint}), "
        f"this is {embedder.info.name} ({embedder.info.dim} dimensions, {embedder.fingerprint}): their vectors "
        f"cannot be compared; open it with {manifest.spec or 'the first one'}, re-embed it with `embedkit migrate`, "
        "or rebuild it with `embedkit index --force`"
    )
