"""A stand-in for ``vllm serve``: the same requests on loopback, answered by a model of our own in a thread."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.hf import HFRollout


class StandIn:
    """Serves a loaded backbone with LoRA. What a test may change while it runs:

    Attributes:
        refuse: connections that are closed without an answer from now on; -1 is all of them.
        ignore_adapters: answer from the base model whatever adapter is asked for.
        raw: give log-probabilities before the temperature.
        scale_out: whether token ids are taken.
        sees_folders: whether the folders of adapters are there.
        key: what the server wants as its key.
        adapters: name -> folder.
        log: paths of the requests in order.
    """

    def __init__(self, backbone: HFBackbone) -> None:
        self.backbone, self.adapters, self.log = backbone, {}, []  # type: ignore[var-annotated]
        self.refuse, self.ignore_adapters, self.raw, self.scale_out, self.sees_folders, self.key = 0, False, False, True, True, None
        self._lock, self._zeros = threading.Lock(), {n: p.detach().clone() for n, p in backbone.named_parameters() if "lora_" in n}
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._serve(None)

            def do_POST(self) -> None:
                self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _serve(self, body: Any) -> None:
                if stand_in.refuse:
                    stand_in.refuse -= 1
                    self.close_connection = True
                    return
                stand_in.log.append(self.path)
                status, answer = stand_in.answer(self.path, body, self.headers.get("Authorization"))
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Be quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign] - clients go away, which tests ask for
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: Any, authorization: str | None) -> tuple[int, Any]:
        """Status and content of an answer, in vLLM's form."""
        if path == "/health":
            return 200, {}
        if self.key and authorization != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if path == "/version":
            return 200, {"version": "0.0-stand-in"}
        if path == "/v1/models":
            names = [{"id": "base", "parent": None}, *({"id": name, "parent": "base"} for name in self.adapters)]
            return 200, {"data": names}
        if path == "/v1/load_lora_adapter":
            if not self.sees_folders:
                name, path = body["lora_name"], body["lora_path"]
                return 404, {"error": {"message": f"Loading lora {name} failed: No adapter found for {path}", "code": 404}}
            self.adapters[body["lora_name"]] = load_file(Path(body["lora_path"]) / "adapter_model.safetensors")
            return 200, "Success"
        if path == "/v1/unload_lora_adapter":
            return (200, "Success") if self.adapters.pop(body["lora_name"], None) else (404, {"error": {"message": "not found"}})
        if path == "/inference/v1/generate" and self.scale_out:
            if body["model"] not in ("base", *self.adapters):
                return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
            with self._lock:
                return 200, self._generate(body)
        return 403, {"error": {"message": "Scale-out endpoints are disabled."}}

    def _generate(self, body: Any) -> dict[str, Any]:
        backbone, asked = self.backbone, body["sampling_params"]
        weights = self.adapters.get(body["model"], {}) if not self.ignore_adapters else {}
        with torch.no_grad():
            for name, parameter in backbone.model.named_parameters():
                if "lora_" in name:
                    stored = weights.get(name.replace(".default.", "."))
                    parameter.copy_(self._zeros[f"model.{name}"] if stored is None else stored)
            images = [Image.open(io.BytesIO(base64.b64decode(part["url"].partition(",")[2]))) for part in body["content_parts"]]
            text = backbone.processor.tokenizer.decode(body["token_ids"], skip_special_tokens=False)
            (prompt,) = backbone.encode_prepared(backbone._prepare([text], [images]))
            sampling = SamplingParams(asked["max_tokens"], asked["temperature"], asked["top_p"], asked["top_k"], asked["min_tokens"])
            state = torch.get_rng_state()
            torch.manual_seed(asked["seed"])
            (group,) = HFRollout(merge_adapters=False).generate(backbone, [prompt], asked["n"], sampling)
            torch.set_rng_state(state)
            logps, _ = backbone.logps(
                [prompt], [[one.ids_T for one in group]], temperature=1.0 if self.raw else asked["temperature"] or 1.0
            )
        choices = [
            {
                "index": i,
                "token_ids": one.ids_T.tolist(),
                "finish_reason": "length" if one.truncated else "stop",
                "logprobs": {"content": [{"logprob": value} for value in logps[0, i, : len(one.ids_T)].tolist()]},
            }
            for i, one in enumerate(group)
        ]
        return {"prompt_token_ids": prompt.ids_P.tolist(), "choices": choices[::-1]}  # vLLM does not promise an order
