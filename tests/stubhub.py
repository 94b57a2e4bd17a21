"""A model and data hub on loopback: just enough of the Hub's HTTP interface for its real clients."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import stubhttp

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(stubhttp.Quiet):
    folders: dict[str, Path]  # "models/acme/bert" or "datasets/acme/intents": its files
    log: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        body = self.body().decode()
        paths = parse_qs(body).get("paths") or json.loads(body or "{}").get("paths", [])
        self.answer_api([path for path in paths if path])

    def do_GET(self):
        self.answer_api(None) if self.path.startswith("/api/") else self.answer_file()

    def answer_api(self, paths):
        self.log.append(f"{self.command} {self.path}")
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")[1:]
        folder = self.folders.get("/".join(parts[:3]))
        if folder is None:
            return self.answer(404, b'{"error": "no such repository"}', {"X-Error-Code": "RepoNotFound"})
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        what = parts[3] if len(parts) > 3 else "revision"
        if what in ("tree", "paths-info"):
            listed = [f for f in files if paths is None or f in paths]
            rows = [{"type": "file", "path": f, "size": files[f].stat().st_size, "oid": _sha(files[f])} for f in listed]
            return self.answer(200, json.dumps(rows).encode())
        info = {"id": "/".join(parts[1:3]), "sha": COMMIT, "siblings": [{"rfilename": f} for f in files], "tags": []}
        return self.answer(200, json.dumps(info).encode())

    def answer_file(self):
        self.log.append(f"{self.command} {self.path}")
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        parts = parts if parts[0] == "datasets" else ["models", *parts]
        folder = self.folders.get("/".join(parts[:3]))
        file = folder / "/".join(parts[5:]) if folder else None
        if file is None or not file.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        headers = {"ETag": f'"{_sha(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        return self.answer(200, file.read_bytes(), headers)

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _sha(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serve(**folders: Path):
    """Serve ``models__acme__bert=FOLDER`` as model ``acme/bert``; yields the address and the list of requests."""
    known = {name.replace("__", "/"): folder for name, folder in folders.items()}
    log: list[str] = []
    with stubhttp.serving(_Handler, folders=known, log=log) as address:
        yield f"http://{address}", log
