"""One device or several: several run one process each, and batches go to whichever is free."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embedkit.embedders.batching import Ids, plan_batches
from embedkit.embedders.encoder import Encoder, EncoderSpec
from embedkit.errors import EmbedderError, InputError
from embedkit.threads import wanted_threads

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np
    from numpy.typing import NDArray

_SHARE = 4  # batches a device gets at a time: enough to sort by length, few enough to end together


def open_backend(spec: EncoderSpec, device: str | Sequence[str] | None) -> Encoder | DevicePool:
    """Return an encoder for one device, or a pool of processes for several."""
    devices = resolve_devices(device)
    if len(devices) > 1:
        return DevicePool(spec, devices)
    _limit_threads(devices[0], 1)
    return Encoder(spec, devices[0])


def resolve_devices(device: str | Sequence[str] | None) -> list[str]:
    """Return torch's names for "cpu", "cuda", "cuda:1", "auto" (None), "cuda:all" or a list of them.

    Raises InputError for anything else and for a GPU that is not there.
    """
    import torch

    if device is None or device == "auto":
        return ["cuda" if torch.cuda.is_available() else "cpu"]
    if device == "cuda:all":
        devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        if not devices:
            raise InputError(
                "device 'cuda:all': torch sees no GPU; use device 'cpu', or install torch for CUDA"
            )
        return devices
    devices = [device] if isinstance(device, str) else list(device)
    if not devices:
        raise InputError("device is an empty list: name at least one, such as 'cpu'")
    for name in devices:
        kind, _, number = name.partition(":")
        if kind not in ("cpu", "cuda") or (number and (kind == "cpu" or not number.isdigit())):
            raise InputError(f"device {name!r} is none of auto, cpu, cuda, cuda:0, cuda:1 …, cuda:all")
        if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
            raise InputError(
                f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs; use device 'cpu', "
                "or install torch for CUDA"
            )
    return devices


class DevicePool:
    """Keep one process per device; each loads the model once and answers until `close`."""

    def __init__(self, spec: EncoderSpec, devices: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._links: list[Connection] = []
        processes = []
        for device in devices:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(spec, device, len(devices), theirs), daemon=True)
            process.start()
            theirs.close()
            self._links.append(ours)
            processes.append(process)
        self.close = weakref.finalize(self, _stop, self._links, processes)
        self.processes = tuple(processes)
        self._devices = list(devices)
        self._turn = threading.Lock()
        answers = [_receive(link, device) for link, device in zip(self._links, devices, strict=True)]
        self.dim, self._budget = int(answers[0][0]), int(answers[0][1])

    def encode(self, rows: Sequence[Ids]) -> NDArray[np.float32]:
        """Return float32 `[n, dim]` for token ids of any lengths, not normalised. Callers take turns."""
        with self._turn:  # two at a time would read each other's answers from the pipes
            return self._encode(rows)

    def _encode(self, rows: Sequence[Ids]) -> NDArray[np.float32]:
        import numpy as np

        out = np.empty((len(rows), self.dim), dtype=np.float32)
        work: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for share in plan_batches([len(r) for r in rows], self._budget * _SHARE):
            work.put(share)
        errors: list[EmbedderError] = []

        def feed(link: Connection, device: str) -> None:
            try:
                while not errors:
                    share = work.get_nowait()
                    out[share] = _ask(link, device, [rows[i] for i in share])
            except queue.Empty:
                return
            except EmbedderError as e:
                errors.append(e)

        threads = [
            threading.Thread(target=feed, args=pair) for pair in zip(self._links, self._devices, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return out


def _ask(link: Connection, device: str, rows: list[Ids]) -> Any:
    with contextlib.suppress(OSError):  # a dead child is told by _receive
        link.send(rows)
    return _receive(link, device)


def _receive(link: Connection, device: str) -> Any:
    try:
        answer = link.recv()
    except (EOFError, OSError) as e:
        raise EmbedderError(
            f"the process on {device} ended early (out of memory?): lower token_budget"
        ) from e
    if isinstance(answer, str):
        raise EmbedderError(f"the process on {device} failed: {answer}")
    return answer


def _serve(spec: EncoderSpec, device: str, count: int, link: Connection) -> None:
    """Run in the child: load, then answer lists of token ids with vectors until the parent hangs up."""
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        try:
            _limit_threads(device, count)
            encoder = Encoder(spec, device)
        except Exception as e:
            link.send(f"{type(e).__name__}: {e}")
            return
        link.send((encoder.dim, encoder.run_batch.budget))
        while (rows := link.recv()) is not None:
            try:
                link.send(encoder.encode(rows))
            except Exception as e:
                link.send(f"{type(e).__name__}: {e}")


def _limit_threads(device: str, count: int) -> None:
    """Give torch on a CPU its share, one of `count`, of $EMBEDKIT_THREADS, else of torch's own number."""
    import torch

    wanted = wanted_threads()
    if device == "cpu" and (count > 1 or wanted is not None):
        torch.set_num_threads(max((wanted or torch.get_num_threads()) // count, 1))


def _stop(links: Sequence[Connection], processes: Sequence[Any]) -> None:
    for link in links:
        with contextlib.suppress(OSError):
            link.send(None)
            link.close()
    for process in processes:
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
