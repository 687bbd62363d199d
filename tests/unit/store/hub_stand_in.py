"""A local stand-in for the hub that speaks the few routes huggingface_hub asks."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "team/colors"


class Hub:
    """One repository at one commit; remembers what was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, head=True)

            def do_GET(self) -> None:
                hub.answer(self, head=False)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, *, head: bool) -> None:
        path = request.path.partition("?")[0]
        self.asked.append(path)
        prefix = f"/{REPO}/resolve/{COMMIT}/"
        name = path.removeprefix(prefix)
        body, status = b'{"error": "not found"}', 404
        if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main", f"/api/models/{REPO}/revision/v1"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            body, status = json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode(), 200
        elif path.startswith(prefix) and name in self.files:
            body, status = self.files[name], 200
        request.send_response(status)
        if status == 404:
            request.send_header("X-Error-Code", "RepoNotFound")
        request.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if not head:
            request.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
