"""The plain way to serve embeddings: FastAPI and sentence-transformers in twenty lines.

uvicorn serving_plain:app --port 9000      (MODEL names the folder, DTYPE the arithmetic)
"""

import os

from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

app = FastAPI()
dtype = os.environ.get("DTYPE")
model = SentenceTransformer(
    os.environ["MODEL"],
    device=os.environ.get("DEVICE", "cpu"),
    model_kwargs={"dtype": dtype} if dtype else None,
)


class Body(BaseModel):
    """A request of OpenAI's shape."""

    input: str | list[str]


@app.post("/v1/embeddings")
def embeddings(body: Body) -> dict[str, object]:
    """Answer in OpenAI's shape."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    data = [{"object": "embedding", "index": i, "embedding": v.tolist()} for i, v in enumerate(vectors)]
    return {"object": "list", "data": data}
