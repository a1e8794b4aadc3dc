"""The few requests that are sent to a vLLM server. Each has a time-out, and an error that says who waits for whom."""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from locus_lightning.errors import ConfigError, TrainingError

log = logging.getLogger("locus_lightning")

KEY_VARIABLE = "VLLM_API_KEY"
"""The environment variable that holds the server's key, for vLLM and for us; a key in a configuration would end up in run folders."""

_SHORT_S = 30.0
"""Seconds for requests that do not generate."""
_TELL_EVERY_S = 60.0
"""Seconds between two messages while a server is waited for."""


class ServerLostError(Exception):
    """The server cannot be reached, or has ended before it answered."""


class AdapterLostError(Exception):
    """The server is there and does not know the adapter, as after a restart."""


class VLLMServer:
    """A client of ``vllm serve``; the connection of every request is its own, so that requests may come from several threads.

    Proxies of the environment are not used.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
        timeout: seconds that completions of a prompt may take.

    Raises:
        ConfigError: the URL is none.
    """

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"rollout.url is {url!r}; give the address of a vLLM server, such as http://127.0.0.1:8000.")
        self.url, self.timeout = url.rstrip("/"), timeout
        self._parts = parts
        self._open: set[http.client.HTTPConnection] = set()
        self.dropped = 0  # times that requests were dropped
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"the vLLM server at {self.url}"

    def __reduce__(self) -> tuple[type[VLLMServer], tuple[str, float]]:
        return VLLMServer, (self.url, self.timeout)

    # ---- requests ------------------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return self._request("GET", "/health", None, _SHORT_S)[0] == 200
        except ServerLostError:
            return False

    def wait_until_ready(self, patience: float, why: str) -> None:
        """Wait for the server.

        Args:
            patience: seconds.
            why: what happened, for the messages.

        Raises:
            TrainingError: it did not answer in that time.
        """
        started, told = time.monotonic(), -_TELL_EVERY_S
        while not self.is_ready():
            waited = time.monotonic() - started
            if waited >= patience:
                raise TrainingError(
                    f"{self} did not answer for {patience:.0f} s (rollout.wait): {why}. Start it with the line that `locus serve` prints; a run that "
                    "had begun goes on with --ckpt_path last."
                )
            if waited - told >= _TELL_EVERY_S:
                told = waited
                log.warning("training waits for %s, at most another %.0f s (rollout.wait): %s.", self, patience - waited, why)
            time.sleep(min(1.0, max(0.05, patience - waited)))

    def models(self) -> list[dict[str, Any]]:
        """What it serves: the model, and adapters, which have a ``parent``."""
        return list(self._ask("GET", "/v1/models", None)["data"])

    def version(self) -> str:
        """Of vLLM."""
        return str(self._ask("GET", "/version", None).get("version", "unknown"))

    def generate(self, request: Mapping[str, Any], since: int | None = None) -> dict[str, Any]:
        """Completions of one prompt of token ids and images.

        Args:
            request: in vLLM's form.
            since: ``dropped`` when the rollout began: a request that was prepared before a drop is not sent after it.

        Raises:
            ServerLostError: try again when it is back.
            AdapterLostError: load the adapter first.
        """
        status, answer = self._request("POST", "/inference/v1/generate", request, self.timeout, since)
        if status == 404 and "does not exist" in _message(answer):
            raise AdapterLostError(_message(answer))
        if status in (403, 404):
            raise ConfigError(
                f"{self} takes no token ids ({_message(answer)}); start vLLM 0.32 or a later one with --enable-scale-out, as in the line that "
                "`locus serve` prints."
            )
        return self._good(status, answer)

    def load_adapter(self, name: str, folder: str) -> None:
        """Load an adapter that lies in a folder which the server can read.

        Raises:
            ConfigError: it cannot, or takes no adapters.
        """
        status, answer = self._request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, self.timeout)
        if status == 400 and "already" in _message(answer):
            return
        if status >= 500 and not self.is_ready():
            raise ServerLostError(_message(answer))
        if status == 404 and not (isinstance(answer, dict) and "error" in answer):  # the route itself is not there
            raise ConfigError(
                f"{self} takes no adapters while it runs; set VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 for it and start it with --enable-lora, as in "
                "the line that `locus serve` prints."
            )
        if status != 200:
            raise ConfigError(
                f"{self} cannot load the adapter in {folder} ({_message(answer)}); rollout.adapter_folder is a folder that both machines see, and "
                "--max-lora-rank is at least backbone.lora.rank."
            )

    def unload_adapter(self, name: str) -> None:
        """Let go of an adapter; nothing where the server is gone or does not have it."""
        try:
            self._request("POST", "/v1/unload_lora_adapter", {"lora_name": name}, _SHORT_S)
        except (ServerLostError, ConfigError):
            log.info("%s was not there to let the adapter %s go.", self, name)

    def drop_requests(self) -> None:
        """End all requests under way, those that have not connected yet too; the server then stops generating for them."""
        with self._lock:
            self.dropped += 1
            connections = list(self._open)
        for connection in connections:
            if connection.sock is not None:
                try:
                    connection.sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    log.debug("a connection had ended by itself.")

    # ---- the wire ------------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        return self._good(*self._request(method, path, body, _SHORT_S))

    def _good(self, status: int, answer: Any) -> dict[str, Any]:
        if status >= 500 and not self.is_ready():
            raise ServerLostError(_message(answer))
        if status != 200:
            raise TrainingError(f"{self} refuses a request (status {status}): {_message(answer)}")
        return dict(answer)

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float, since: int | None = None) -> tuple[int, Any]:
        """Status and answer.

        Raises:
            ServerLostError: there is none.
            ConfigError: the server wants a key.
        """
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=timeout)
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        with self._lock:
            self._open.add(connection)
            before = self.dropped if since is None else since
        try:
            connection.connect()
            if self.dropped != before:
                raise ServerLostError("the request was dropped")
            connection.request(method, self._parts.path.rstrip("/") + path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
        except TimeoutError as cause:
            raise ServerLostError(f"no answer to {path} within {timeout:.0f} s") from cause
        except (OSError, http.client.HTTPException) as cause:
            raise ServerLostError(str(cause) or type(cause).__name__) from cause
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if response.status == 401:
            raise ConfigError(f"{self} wants an API key; set {KEY_VARIABLE} in the environment to the one it was started with.")
        try:
            return response.status, json.loads(content) if content else {}
        except ValueError:
            return response.status, content.decode(errors="replace")


def data_url(image: Image.Image) -> str:
    """An image as a URL that holds it, without loss."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _message(answer: Any) -> str:
    """What the server says is wrong, on one line."""
    if isinstance(answer, dict):
        error = answer.get("error", answer)
        answer = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(answer).split())[:500] or "no reason given"
