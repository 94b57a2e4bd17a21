"""A small Google Cloud Storage on loopback: what `pyarrow.fs.GcsFileSystem` asks of its JSON interface, in memory."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

import stubhttp

OBJECT = re.compile(r"(?:/storage/v1)?/b/([^/]+)/o/(.+)")
LIST = re.compile(r"(?:/storage/v1)?/b/([^/]+)/o")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)|bytes \*/(\d+|\*)")


class Store:
    """The objects by ``bucket/key``, and the tokens that requests came with; ``is_out``: it answers 503 to all."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self.is_out = False
        self.lock = threading.Lock()


class _Handler(stubhttp.Quiet):
    store: Store

    def answer(self, status, content=b"", **headers):
        content = json.dumps(content).encode() if isinstance(content, dict) else content
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def serve(self):
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        content = self.body()
        with self.store.lock:
            self.store.requests.append((self.command, self.path))
            self.store.tokens.add(self.headers.get("Authorization", ""))
            if parts.path == "/token":
                return self.answer(200, {"access_token": "planted", "expires_in": 3600, "token_type": "Bearer"})
            if self.store.is_out:
                return self.answer(503)
            if match := UPLOAD.fullmatch(parts.path):
                return self.upload(match[1], query, content)
            if match := OBJECT.fullmatch(parts.path):
                return self.object(f"{match[1]}/{unquote(match[2])}", query)
            if match := LIST.fullmatch(parts.path):
                return self.list(match[1], query)
            return self.answer(404, {"error": {"code": 404, "message": self.path}})

    do_GET = do_PUT = do_POST = do_DELETE = serve  # noqa: N815 - http.server names them so

    def described(self, key):
        bucket, _, name = key.partition("/")
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(self.store.objects[key])),
            "generation": "1",
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def object(self, key, query):
        if key not in self.store.objects:
            return self.answer(404, {"error": {"code": 404, "message": "No such object", "errors": []}})
        if self.command == "DELETE":
            del self.store.objects[key]
            return self.answer(204)
        if query.get("alt") != "media":
            return self.answer(200, self.described(key))
        found = self.store.objects[key]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and int(asked[1]) >= len(found) > 0:
            return self.answer(416)
        if asked:
            part = found[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None]
            where = f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(found)}"
            return self.answer(206, part, Content_Range=where)
        return self.answer(200, found)

    def list(self, bucket, query):
        start = f"{bucket}/{query.get('prefix', '')}"
        after = query.get("pageToken", "")
        keys = sorted(key for key in self.store.objects if key.startswith(start) and key > after)
        page = keys[: int(query.get("maxResults", 1000))]
        more = {"nextPageToken": page[-1]} if len(page) < len(keys) else {}
        return self.answer(200, {"kind": "storage#objects", "items": [self.described(key) for key in page], **more})

    def upload(self, bucket, query, content):
        if query.get("uploadType") == "multipart":
            edge = re.search(r"boundary=([^;]+)", self.headers["Content-Type"])[1].strip('"').encode()
            about, data = content.split(b"--" + edge)[1:3]
            named = json.loads(about.partition(b"\r\n\r\n")[2])
            key = f"{bucket}/{query.get('name') or named['name']}"
            self.store.objects[key] = data.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            return self.answer(200, self.described(key))
        if "upload_id" not in query:
            name = query.get("name") or json.loads(content)["name"]
            identity = str(len(self.store.requests))
            self.store.uploads[identity] = (f"{bucket}/{name}", b"")
            place = f"http://{self.headers['Host']}{urlsplit(self.path).path}?uploadType=resumable&upload_id={identity}"
            return self.answer(200, Location=place)
        key, before = self.store.uploads[query["upload_id"]]
        first, total, bare = RANGE.fullmatch(self.headers["Content-Range"]).groups()
        whole = before[: int(first or len(before))] + content
        self.store.uploads[query["upload_id"]] = (key, whole)
        if (total or bare) == "*":
            return self.answer(308, **({"Range": f"bytes=0-{len(whole) - 1}"} if whole else {}))
        self.store.objects[key] = whole
        return self.answer(200, self.described(key))


@contextmanager
def serving():
    """Serve an empty store; yields it and the address."""
    store = Store()
    with stubhttp.serving(_Handler, store=store) as address:
        yield store, address
