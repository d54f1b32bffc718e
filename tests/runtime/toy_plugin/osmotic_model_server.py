# SPDX-License-Identifier: Apache-2.0
"""A model server of the tests: answers, notes what it was asked; and pipelines and policies that name it."""

import json
import sqlite3
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from osmotic.plugins.host import Registry
from osmotic.runtime import api


class Handler(BaseHTTPRequestHandler):
    """Answers, and notes what it was asked and what the transcripts said at that moment."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.prompts.append(body["messages"][-1]["content"])
        server.keys.append(self.headers.get("authorization"))
        server.written.append([row for folder in server.watched for row in calls(folder)])
        echo = f"refused: {self.headers.get('authorization')}" if server.status != 200 else "because of it"
        answer = {"choices": [{"message": {"content": echo}, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
        content = json.dumps(answer if server.status == 200 else {"error": echo}).encode()
        self.send_response(server.status, echo)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *given: Any) -> None:
        pass


def calls(folder: Path) -> list[dict[str, Any]]:
    """Model calls in a party's transcript, as a stranger reads the file."""
    with sqlite3.connect(f"file:{folder}/run.sqlite?mode=ro", uri=True) as db:
        rows = [json.loads(body) for (body,) in db.execute("SELECT body FROM crossings ORDER BY seq")]
    db.close()
    return [row for row in rows if row["kind"] in ("call", "answer")]


class ModelServer(ThreadingHTTPServer):
    """Listens on a free port of this machine. status: of every answer; watched: folders whose transcripts are noted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.prompts: list[str] = []
        self.keys: list[str | None] = []
        self.written: list[list[dict[str, Any]]] = []
        self.watched: list[Path] = []
        self.status = 200
        self.origin = f"http://127.0.0.1:{self.server_address[1]}"

    calls = staticmethod(calls)

    def models(self, at: str = "server", **more: Any) -> dict[str, Any]:
        config = {"url": f"{self.origin}/v1", "model": "m", "attempts": 1, **more}
        return {"teacher": {"type": "openai", "at": at, "config": config}}

    def teach(self, at: str, source: Any, **inputs: Any) -> dict[str, Any]:
        each = {"each": "party"} if at == "server" else {}
        config = {"model": "teacher", "template": "Why {{ colour }}?"}
        return {"component": "teacher_generator", "at": at, **each, "inputs": {"prompts": source, **inputs}, "config": config}

    def listed(self, sees: str = "protected", **more: Any) -> dict[str, Any]:
        return {"remote": [{"url": self.origin, "sees": sees, **more}]}

    def opened(self, shop: Any, toys: Registry, made: dict[str, Any], party: str, at: str) -> Any:
        """A site that took a plan without checking it, as if it had been forged."""
        ready = api.prepare(shop.write(made, models=self.models(at)), home=shop.home, registry=toys)
        site = ready.open()[party]
        site.take(ready.graph, ready.configs)
        return ready, site
