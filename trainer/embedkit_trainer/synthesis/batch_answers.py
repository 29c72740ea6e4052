"""What a batch says of each request becomes what a request sent by itself would have become."""

from __future__ import annotations

from embedkit_trainer.synthesis.answers import Reason, Rejected
from embedkit_trainer.synthesis.batch_files import Line
from embedkit_trainer.synthesis.batch_ledger import Batch
from embedkit_trainer.synthesis.budget import count_tokens
from embedkit_trainer.synthesis.chat import LARGEST_BODY, Malformed, one_line, read_completion, read_usage
from embedkit_trainer.synthesis.plan import Plan, PlannedRequest
from embedkit_trainer.synthesis.recording import Recorder, Usage

#: What a server says of requests that it did not come to; they cost nothing.
_UNTRIED = ("batch_expired", "batch_cancelled")


class Taker:
    """Store the answers of one batch.

    `answered` counts requests that are stored, `unstructured` are those refused for their JSON schema, `refused` says
    why a request was refused where none before was answered.
    """

    def __init__(self, plan: Plan, batch: Batch, recorder: Recorder, key: str) -> None:
        self._plan, self._batch, self._recorder, self._key = plan, batch, recorder, key
        self.answered = 0
        self.unstructured: list[int] = []
        self.refused = ""
        self._works = False

    def take(self, line: Line) -> None:
        """Store what came of a request, but for what is to be sent again."""
        planned = self._plan.request(line.number)
        if line.status == 200:
            self._take_answer(planned, line)
        elif line.code not in _UNTRIED:
            self._take_refusal(planned, line)

    def lose(self, number: int) -> None:
        """Store that a batch which ended says nothing of a request, which may have been paid for."""
        self._lost(self._plan.request(number), "the batch's files hold no answer")

    def _take_answer(self, planned: PlannedRequest, line: Line) -> None:
        estimated = _tokens(planned)
        usage = Usage(attempts=1)
        if line.too_large:
            usage.tokens_in, usage.tokens_out = estimated, planned.model.max_tokens
            rejected = Rejected(Reason.TOO_LARGE, f"the answer exceeds {LARGEST_BODY >> 20} MB")
            self._store_failure(planned, rejected, "", usage)
            return
        text = ""
        try:
            completion = read_completion(line.body or {}, self._key)
            usage.tokens_in, usage.tokens_out = read_usage(line.body or {}, estimated)
            self._works, text = True, completion.text
            answer = planned.parse(text, completion.finish_reason)
        except Malformed:
            self._lost(planned, "an answer without choices")
        except Rejected as e:
            self._works = True
            usage.tokens_in, usage.tokens_out = read_usage(line.body or {}, estimated)
            self._store_failure(planned, e, text, usage)
        else:
            self._recorder.answer(planned, answer, usage, batch=self._batch.key)
            self.answered += 1

    def _take_refusal(self, planned: PlannedRequest, line: Line) -> None:
        said = one_line(line.problem, self._key) if line.problem else line.code
        detail = f"status {line.status or 'unknown'}{f', {said}' if said else ''}"
        reason = Reason.SERVER
        if "content_filter" in line.code or "content_policy" in line.code:
            reason = Reason.REFUSAL
        elif line.status in (400, 422):
            if self._batch.structured and planned.model.structured_output == "auto":
                self.unstructured.append(planned.number)
                return
            if not self._works:
                self.refused = self.refused or detail
                return
            reason = Reason.REFUSAL
        elif line.status in (401, 403, 404) and not self._works:
            self.refused = self.refused or detail
            return
        self._store_failure(planned, Rejected(reason, detail), "", Usage(attempts=1))

    def _lost(self, planned: PlannedRequest, detail: str) -> None:
        usage = Usage(attempts=1, lost_in=_tokens(planned), lost_out=planned.model.max_tokens)
        self._store_failure(planned, Rejected(Reason.SERVER, detail), "", usage)

    def _store_failure(self, planned: PlannedRequest, rejected: Rejected, text: str, usage: Usage) -> None:
        self._recorder.failure(planned, rejected, text, usage, batch=self._batch.key)
        self.answered += rejected.reason is not Reason.SERVER


def _tokens(planned: PlannedRequest) -> int:
    return count_tokens(planned.prompt) + 4
