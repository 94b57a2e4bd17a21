"""A small S3 on loopback: what `pyarrow.fs.S3FileSystem` asks of one, in memory, with failures on demand."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import stubhttp


class Store:
    """The objects by ``bucket/key``; ``fail(method, path)`` returns a status to answer with, or None."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.fail = lambda method, path: None
        self.lock = threading.Lock()


def _plain(headers, content):
    """Undo the framing of uploads that carry a checksum behind them."""
    if "aws-chunked" not in headers.get("Content-Encoding", "") and "STREAMING" not in headers.get(
        "x-amz-content-sha256", ""
    ):
        return content
    plain = b""
    while content:
        size, _, content = content.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        if length == 0:
            return plain
        plain, content = plain + content[:length], content[length + 2 :]
    return plain


class _Handler(stubhttp.Quiet):
    store: Store

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if not (self.command == "HEAD" and "Content_Length" in headers):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self):
        return _plain(self.headers, super().body())

    def serve(self):
        parts = urlsplit(self.path)
        path, query = unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)
        content = self.body()
        with self.store.lock:
            self.store.requests.append((self.command, path))
            status = self.store.fail(self.command, path)
            if status is not None:
                return self.answer(status)
            if "/" not in path.rstrip("/"):
                return self.bucket(path.rstrip("/"), query, content)
            return getattr(self, f"object_{self.command.lower()}")(path, query, content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = serve  # noqa: N815 - http.server names them so

    def bucket(self, bucket, query, content):
        if self.command == "POST":  # delete many
            keys = re.findall(rb"<Key>(.*?)</Key>", content)
            for key in keys:
                self.store.objects.pop(f"{bucket}/{key.decode()}", None)
            return self.answer(200, b"<DeleteResult/>")
        if self.command != "GET":
            return self.answer(200)
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        keys = sorted(k[len(bucket) + 1 :] for k in self.store.objects if k.startswith(f"{bucket}/{prefix}"))
        common = sorted(
            {prefix + k[len(prefix) :].split(delimiter)[0] + delimiter for k in keys if delimiter in k[len(prefix) :]}
            if delimiter
            else ()
        )
        plain = [k for k in keys if not (delimiter and delimiter in k[len(prefix) :])]
        limit = int(query.get("max-keys", ["1000"])[0])
        after = query.get("continuation-token", [""])[0]
        page = [k for k in plain if k > after][:limit]
        more = bool(page) and page[-1] != plain[-1]
        rows = [
            f"<Contents><Key>{escape(k)}</Key><Size>{len(self.store.objects[f'{bucket}/{k}'])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for k in page
        ]
        rows += [f"<CommonPrefixes><Prefix>{escape(c)}</Prefix></CommonPrefixes>" for c in common if not after]
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        text = (
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(rows)}</KeyCount>"
            f"{token}{''.join(rows)}</ListBucketResult>"
        )
        return self.answer(200, text.encode(), Content_Type="application/xml")

    def object_put(self, path, query, content):
        if "uploadId" in query:
            self.store.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = content
        else:
            self.store.objects[path] = content
        self.answer(200, ETag='"0"')

    def object_post(self, path, query, content):
        if "uploads" in query:
            upload = str(len(self.store.uploads))
            self.store.uploads[upload] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        else:
            parts = self.store.uploads.pop(query["uploadId"][0])
            self.store.objects[path] = b"".join(parts[number] for number in sorted(parts))
            text = "<CompleteMultipartUploadResult><ETag>0</ETag></CompleteMultipartUploadResult>"
        self.answer(200, text.encode())

    def object_get(self, path, query, content):
        found = self.store.objects.get(path)
        if found is None:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and int(asked[1]) < len(found):
            part = found[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None]
            where = f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(found)}"
            return self.answer(206, part, Content_Range=where)
        return self.answer(200, found)

    def object_head(self, path, query, content):
        found = self.store.objects.get(path)
        if found is None:
            return self.answer(404)
        return self.answer(
            200, Content_Length=str(len(found)), Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT", ETag='"0"'
        )

    def object_delete(self, path, query, content):
        if "uploadId" in query:
            self.store.uploads.pop(query["uploadId"][0], None)
        else:
            self.store.objects.pop(path, None)
        self.answer(204)


@contextmanager
def serving():
    """Serve an empty store; yields it and the address."""
    store = Store()
    with stubhttp.serving(_Handler, store=store) as address:
        yield store, address
