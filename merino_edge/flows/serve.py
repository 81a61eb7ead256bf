"""`serve`: the deployed model behind OpenAI's HTTP interface for completions, on this host.

The device opens no port: this host speaks to it through the agent, as `generate` does. One model, one
text at a time; further requests wait in a short queue, and what comes beyond it is told to come back
(429). Only this file knows HTTP.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import secrets
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from merino_edge.device.client import Device
from merino_edge.errors import DeviceError, InternalError, MerinoEdgeError, UsageError
from merino_edge.flows.completions import Completion, RequestError, parse_chat, parse_completion
from merino_edge.flows.devices import Ask, find_entry, opened, select_device
from merino_edge.flows.generate import DeployedModel
from merino_edge.progress import SILENT, Progress

DEFAULT_PORT = 8000
DEFAULT_WAITING = 8
MAX_BODY_BYTES = 1 << 20
RETRY_AFTER_S = 1
GONE_AFTER_S = 0.5  # without a token, until it is looked whether the client is still there


# -- the one thread that speaks with the device --


@dataclass(eq=False)
class Job:
    """One text to continue.

    Attributes:
        asked: The request.
        tell: Takes, in the worker's thread, `("text", piece)`, then `("done", usage)` or `("failed", error)`.
        cancelled: Set when nobody waits for it any more.
    """

    asked: Completion
    tell: Callable[[str, Any], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Continues one text at a time on one device, in a thread of its own.

    Args:
        model: The deployed model.
        waiting: Jobs that may wait beside the one at work.
    """

    def __init__(self, model: DeployedModel, waiting: int) -> None:
        """Start the thread."""
        self.model = model
        self.name = f"{model.device}-release-{model.release}"
        self.created = int(time.time())
        self._most = waiting + 1
        self._changed = threading.Condition()  # guards the three below
        self._waiting: collections.deque[Job] = collections.deque()
        self._at_work: Job | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            RequestError: 429 where too many wait already.
        """
        with self._changed:
            if len(self._waiting) + (self._at_work is not None) >= self._most:
                raise RequestError(429, "too many requests wait; try again", "rate_limit_error", "rate_limit_exceeded")
            self._waiting.append(job)
            self._changed.notify()

    def drop(self, job: Job) -> None:
        """Nobody waits for a job any more: stop at its next token, or give up its place among those that wait."""
        job.cancelled.set()
        with self._changed, contextlib.suppress(ValueError):  # it is at work, or done
            self._waiting.remove(job)

    def stop(self) -> None:
        """Cancel what is at work, drop what waits, end the thread."""
        with self._changed:
            self._stopping = True
            self._waiting.clear()
            if self._at_work is not None:
                self._at_work.cancelled.set()
            self._changed.notify()
        self._thread.join(timeout=10.0)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            self._at_work = None if self._stopping else self._waiting.popleft()
            return self._at_work

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._continue(job)
            except MerinoEdgeError as error:
                job.tell("failed", error)
            except Exception as error:  # noqa: BLE001  a mistake of ours must not leave the others waiting for ever
                traceback.print_exc()
                job.tell("failed", InternalError(f"internal error: {type(error).__name__}: {error}"))
            finally:
                with self._changed:
                    self._at_work = None

    def _continue(self, job: Job) -> None:
        if job.cancelled.is_set():
            return
        self.model.refresh()
        asked = job.asked
        prompt = asked.prompt
        ids = self.model.encode(prompt, special=not asked.chat) if isinstance(prompt, str) else prompt
        if max(ids) >= self.model.manifest["architecture"]["vocab_size"] or min(ids) < 0:
            raise UsageError("the prompt holds token ids beyond the vocabulary")
        if asked.echo:
            job.tell("text", asked.prompt if isinstance(asked.prompt, str) else self.model.tokenizer.decode(ids))
        with contextlib.closing(self.model.stream(ids, asked.sampling)) as texts:
            for piece in texts:
                if job.cancelled.is_set():
                    return
                job.tell("text", piece)
        count = int(self.model.stats.get("tokens", 0))
        full = count >= min(asked.sampling.max_tokens, self.model.context_length - len(ids))
        job.tell("done", {"prompt": len(ids), "completion": count, "reason": "length" if full else "stop"})


# -- the HTTP side --


def make_app(worker: Worker) -> Any:
    """Return the ASGI application.

    Routes: `GET /v1/models`, `GET /v1/models/NAME`, `POST /v1/completions`, `POST /v1/chat/completions` (where the
    tokenizer has a chat template, else refused), `GET /health`.
    """
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    entry = {"id": worker.name, "object": "model", "created": worker.created, "owned_by": "merino-edge"}

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status == 429 else None
        return JSONResponse(error.document, error.status, headers)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [entry]})

    async def one_model(request: Request) -> Response:
        if request.path_params["name"] != worker.name:
            raise RequestError(404, f"there is no such model; there is '{worker.name}'", code="model_not_found")
        return JSONResponse(entry)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": worker.name})

    async def chat(request: Request) -> Response:
        template = worker.model.chat
        if template is None:
            raise RequestError(
                404,
                f"the tokenizer of '{worker.name}' has no chat template: use /v1/completions",
                code="no_chat_template",
            )
        body = await _body(request)
        return await answer(request, await asyncio.to_thread(parse_chat, body, worker.name, template.render))

    async def completions(request: Request) -> Response:
        return await answer(request, parse_completion(await _body(request), worker.name))

    async def answer(request: Request, asked: Completion) -> Response:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[str, Any]]()
        job = Job(asked, lambda kind, value: _hand_over(loop, events, kind, value))
        worker.submit(job)
        if asked.stream:
            return StreamingResponse(_server_sent(request, worker, job, events), media_type="text/event-stream")
        return JSONResponse(await _whole(request, worker, job, events))

    routes = [
        Route("/v1/models", models),
        Route("/v1/models/{name}", one_model),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/health", health),
    ]
    return Starlette(routes=routes, exception_handlers={RequestError: refused})


async def _body(request: Any) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RequestError(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
    return body


def _hand_over(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[tuple[str, Any]], kind: str, value: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the server has stopped meanwhile
        loop.call_soon_threadsafe(events.put_nowait, (kind, value))


def _document(worker: Worker, asked: Completion, number: str, text: str, reason: str | None) -> dict[str, Any]:
    """Return one answer in OpenAI's form, or one piece of a stream."""
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
    kind = "text_completion"
    if not asked.chat:
        choice["text"] = text
    elif asked.stream:
        kind, choice["delta"] = "chat.completion.chunk", {"role": "assistant", "content": text} if text else {}
    else:
        kind, choice["message"] = "chat.completion", {"role": "assistant", "content": text}
    return {
        "id": number,
        "object": kind,
        "created": int(time.time()),
        "model": worker.name,
        "choices": [choice],
    }


def _new_id(asked: Completion) -> str:
    return f"{'chatcmpl' if asked.chat else 'cmpl'}-{secrets.token_hex(12)}"


def _usage(counts: dict[str, Any]) -> dict[str, int]:
    prompt, completion = counts["prompt"], counts["completion"]
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _failure(error: MerinoEdgeError) -> RequestError:
    """Say whose fault it was."""
    if isinstance(error, UsageError):
        return RequestError(400, error.message)
    status = 503 if isinstance(error, DeviceError) else 500
    return RequestError(status, error.message, "server_error")


async def _whole(request: Any, worker: Worker, job: Job, events: asyncio.Queue[tuple[str, Any]]) -> dict[str, Any]:
    """Wait for the whole text; a client that goes away frees the device."""
    text = ""
    while True:
        event = await _next_event(request, events)
        if event is None:
            worker.drop(job)
            raise RequestError(499, "the client is gone")
        kind, value = event
        if kind == "text":
            text += value
        elif kind == "failed":
            raise _failure(value)
        else:
            document = _document(worker, job.asked, _new_id(job.asked), text, value["reason"])
            return {**document, "usage": _usage(value)}


async def _next_event(request: Any, events: asyncio.Queue[tuple[str, Any]]) -> tuple[str, Any] | None:
    """Wait for what the worker tells next; None where the client has gone meanwhile, as while a request waits."""
    while True:
        try:
            return await asyncio.wait_for(events.get(), timeout=GONE_AFTER_S)
        except TimeoutError:
            if await request.is_disconnected():
                return None


async def _server_sent(
    request: Any, worker: Worker, job: Job, events: asyncio.Queue[tuple[str, Any]]
) -> AsyncIterator[str]:
    """Yield the text as server-sent events; a client that goes away frees the device."""
    number = _new_id(job.asked)
    try:
        while True:
            event = await _next_event(request, events)
            if event is None:
                return
            kind, value = event
            if kind == "failed":
                yield f"data: {json.dumps(_failure(value).document)}\n\n"
                break
            if kind == "text":
                yield f"data: {json.dumps(_document(worker, job.asked, number, value, None))}\n\n"
                continue
            yield f"data: {json.dumps(_document(worker, job.asked, number, '', value['reason']))}\n\n"
            if job.asked.usage:
                last = {**_document(worker, job.asked, number, "", None), "choices": [], "usage": _usage(value)}
                yield f"data: {json.dumps(last)}\n\n"
            break
        yield "data: [DONE]\n\n"
    finally:
        worker.drop(job)


def serve(
    device_name: str | None,
    host: str,
    port: int,
    waiting: int,
    ask: Ask | None = None,
    progress: Progress = SILENT,
) -> None:
    """Serve the deployed model until the process is told to stop.

    Args:
        device_name: `--device`.
        host: Address to listen on; this machine's loopback unless somebody wants otherwise.
        port: 0 takes a free one.
        waiting: Requests that may wait.
        ask: Puts a question to a person.
        progress: Hears the address.

    Raises:
        UsageError: the packages are missing, the port is taken, or nothing trained is deployed.
    """
    try:
        import uvicorn
    except ImportError:
        raise UsageError("serving needs starlette and uvicorn", hint="pip install 'merino-edge[serve]'") from None
    name = select_device(device_name, None, progress)
    with opened(find_entry(name), ask) as device, _listening(host, port) as listener:
        worker = Worker(_model(name, device), waiting)
        address = f"http://{host}:{listener.getsockname()[1]}"
        progress.note(f"serving {worker.name} at {address}/v1 (Ctrl-C stops it)")
        config = uvicorn.Config(make_app(worker), log_level="warning", timeout_graceful_shutdown=5)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # how a server is stopped
        finally:
            worker.stop()
    progress.note("stopped")


def _model(name: str, device: Device) -> DeployedModel:
    return DeployedModel(name, device, ("serve",))


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[Any]:
    """Open the socket before anything else, so that a taken port is one clear line."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            hint = "choose another with --host or --port"
            raise UsageError(f"cannot listen on {host}:{port}: {reason}", hint=hint) from None
        listener.listen(64)
        yield listener
    finally:
        listener.close()
