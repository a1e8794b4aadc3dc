"""A stand-in for the Hub's API on loopback: repositories in memory, files through LFS as the real one asks for them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubStandIn:
    """What it has, and what a test may change.

    Attributes:
        repos: name -> whether it is private.
        files: (repository, path) -> content.
        uploads: hashes that were sent, in order.
        refuse_commits: answer the next commits with 500.
        log: method and path of every request.
    """

    def __init__(self) -> None:
        self.repos: dict[str, bool] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.log: list[str] = []
        self.refuse_commits = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.log.append(f"{self.command} {self.path}")
                status, answer = hub.answer(self.command, self.path.partition("?")[0], body, self.headers.get("Authorization"))
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_HEAD = _serve

            def log_message(self, *_: Any) -> None:
                """Be quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._http.shutdown()
        self._http.server_close()

    def answer(self, method: str, path: str, body: bytes, authorization: str | None) -> tuple[int, Any]:
        """Status and content of an answer, in the Hub's form."""
        if path.startswith("/blob/"):
            digest = path.removeprefix("/blob/")
            assert hashlib.sha256(body).hexdigest() == digest
            self.blobs[digest] = body
            self.uploads.append(digest)
            return 200, {}
        if authorization != "Bearer hf_test":
            return 401, {"error": "Invalid credentials"}
        sent = json.loads(body) if body and "commit" not in path else {}
        if path == "/api/repos/create":
            name = f"{sent['organization']}/{sent['name']}" if sent.get("organization") else sent["name"]
            known = name in self.repos
            self.repos.setdefault(name, bool(sent.get("private") or sent.get("visibility") == "private"))
            return (409 if known else 200), {"url": f"{self.url}/{name}", **({"error": "You already created this"} if known else {})}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if match := re.fullmatch(r"/api/(?:models|datasets)/(.+)/preupload/main", path):
            mode = {True: "lfs", False: "regular"}
            return 200, {
                "files": [{"path": f["path"], "uploadMode": mode[f["size"] > 20_000], "shouldIgnore": False} for f in sent["files"]]
            }
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = []
            for one in sent["objects"]:
                actions = {"upload": {"href": f"{self.url}/blob/{one['oid']}"}} if one["oid"] not in self.blobs else None
                objects.append({**one, **({"actions": actions} if actions else {})})
            return 200, {"objects": objects, "transfer": "basic"}
        if match := re.fullmatch(r"/api/(?:models|datasets)/(.+)/commit/main", path):
            if self.refuse_commits:
                self.refuse_commits -= 1
                return 400, {"error": "the disk of the Hub is full"}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[match[1], value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[match[1], value["path"]] = self.blobs[value["oid"]]
            return 200, {"commitUrl": f"{self.url}/{match[1]}/commit/1", "commitOid": "1" * 40, "success": True}
        return 404, {"error": f"no {method} {path} here"}
