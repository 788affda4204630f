"""A local HTTP server that answers as the Hugging Face hub does for one repository, which is a folder: info, files, ranges, commits."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_server(repo: str, folder: Path, asked: list[tuple[str, str, str]] | None = None) -> Iterator[str]:
    """Serve a folder as the repository `repo`; yields the endpoint. asked: gets (method, path, range) of every request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path, wanted = unquote(self.path.split("?")[0]), self.headers.get("Range", "")
            if asked is not None:
                asked.append((self.command, path, wanted))
            found = re.fullmatch(rf"/{re.escape(repo)}/resolve/[^/]+/(.+)", path)
            if re.fullmatch(rf"/api/models/{re.escape(repo)}(/revision/[^/]+)?", path):
                siblings = [{"rfilename": name, "size": (folder / name).stat().st_size} for name in listed(folder)]
                self.answer(
                    200, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode(), {"Content-Type": "application/json"}
                )
            elif re.fullmatch(rf"/api/models/{re.escape(repo)}/tree/[^/]+", path):
                tree = [{"type": "file", "path": name, "oid": "0", "size": (folder / name).stat().st_size} for name in listed(folder)]
                self.json(tree)
            elif found and (folder / found[1]).is_file():
                self.file((folder / found[1]).read_bytes(), wanted)
            else:
                self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        def do_POST(self) -> None:
            """Make the repository, say how to upload, and take a commit of whole files into the folder."""
            path, content = unquote(self.path.split("?")[0]), self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if asked is not None:
                asked.append(("POST", path, ""))
            if self.headers.get("Authorization") == "Bearer wrong":
                self.answer(401, b'{"error": "Invalid credentials"}', {})
            elif path == "/api/repos/create":
                self.json({"url": f"http://{self.headers['Host']}/{repo}", "id": repo, "name": repo})
            elif path == "/api/validate-yaml":
                self.json({"errors": [], "warnings": []})
            elif path == f"/api/models/{repo}/preupload/main":
                names = [file["path"] for file in json.loads(content)["files"]]
                self.json({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
            elif path == f"/api/models/{repo}/commit/main":
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "file":
                        (folder / line["value"]["path"]).parent.mkdir(parents=True, exist_ok=True)
                        (folder / line["value"]["path"]).write_bytes(base64.b64decode(line["value"]["content"]))
                self.json({"success": True, "commitOid": COMMIT, "commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{COMMIT}"})
            else:
                self.answer(404, b"{}", {})

        def json(self, value: object) -> None:
            self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def file(self, content: bytes, wanted: str) -> None:
            head = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if not wanted:
                self.answer(200, content, head)
                return
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()  # type: ignore[union-attr]
            end = min(int(last or len(content) - 1), len(content) - 1)
            head["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
            self.answer(206, content[int(first) : end + 1], head)

        def answer(self, status: int, content: bytes, head: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**head, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    class Server(ThreadingHTTPServer):
        request_queue_size = 64  # the hub's client opens eight connections at once

    server = Server(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
