"""A model hub on loopback, which serves folders: as much of the protocol as huggingface_hub and
datasets speak.
"""

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c" * 40


@dataclass
class LocalHub:
    """address: for HF_ENDPOINT. repositories: "models/owner/name" or "datasets/owner/name" → its
    folder. asked: what was asked for. stalls: files that are sent by half, and then nothing.
    """

    repositories: dict[str, Path]
    address: str = ""
    asked: list[str] = field(default_factory=list)
    stalls: set[str] = field(default_factory=set)


@contextmanager
def local_hub(repositories: dict[str, Path]) -> Iterator[LocalHub]:
    """A hub that serves these folders until the block is left."""
    hub, closed = LocalHub(repositories), threading.Event()

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            length = int(self.headers.get("Content-Length") or 0)
            body = urllib.parse.parse_qs(self.rfile.read(length).decode())
            url = urllib.parse.urlsplit(self.path)
            path = urllib.parse.unquote(url.path).strip("/")
            words = path.removeprefix("api/").split("/")
            if words[0] not in ("models", "datasets"):
                words = ["models", *words]
            folder = hub.repositories.get("/".join(words[:3]))
            if path == "":
                return self.answer(200, b"")
            if folder is None:
                return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            match words[3:]:
                case ["resolve", _, *rest]:
                    return self.file(folder / "/".join(rest))
                case ["tree", _, *rest]:
                    return self.say(tree(folder, "/".join(rest), "recursive=true" in url.query))
                case ["paths-info", _]:
                    return self.say([f for f in listed(folder) if f["path"] in body["paths"]])
                case [] | ["revision", _]:
                    siblings = [{"rfilename": file["path"]} for file in listed(folder)]
                    name = "/".join(words[1:3])
                    return self.say({"id": name, "sha": COMMIT, "siblings": siblings, "tags": []})
            self.answer(404, b"")

        do_HEAD = do_POST = do_GET

        def file(self, file: Path) -> None:
            if not file.is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            whole = file.read_bytes()
            begin = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
            about = {"ETag": f'"{oid(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if begin:
                about["Content-Range"] = f"bytes {begin}-{len(whole) - 1}/{len(whole)}"
            self.answer(206 if begin else 200, whole[begin:], about, file.name in hub.stalls)

        def say(self, value: Any) -> None:
            self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def answer(
            self, status: int, body: bytes, about: dict[str, str] | None = None, stall: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in (about or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if stall:
                self.wfile.write(body[: len(body) // 2] if status == 200 else b"")
                closed.wait(60)
                self.close_connection = True
                return
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        closed.set()
        server.shutdown()
        server.server_close()


def listed(folder: Path) -> list[dict[str, Any]]:
    """What the hub says of a repository's files."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [
        {
            "type": "file",
            "path": str(file.relative_to(folder)),
            "size": file.stat().st_size,
            "oid": oid(file),
        }
        for file in files
    ]


def tree(folder: Path, under: str, recursive: bool) -> list[dict[str, Any]]:
    """What lies below a folder of a repository, or in it only, folders included."""
    if not (folder / under).is_dir():
        return []
    found = (folder / under).rglob("*") if recursive else (folder / under).iterdir()
    files = {file["path"]: file for file in listed(folder)}
    names = sorted(str(entry.relative_to(folder)) for entry in found)
    return [
        files.get(n, {"type": "directory", "path": n, "oid": "0" * 40, "size": 0}) for n in names
    ]


def oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
