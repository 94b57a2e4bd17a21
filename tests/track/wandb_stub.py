"""A W&B server on loopback: as much of it as the real client needs, with faults that a test switches on.

History lines are kept by their offset, as W&B keeps them: a line sent again to the same place replaces itself, a line
sent to a new place is one more.
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub:
    """The server's memory: ``runs`` by id, ``artifacts`` by name, ``requests`` as they came."""

    def __init__(self, port=0):
        self.runs = {}
        self.artifacts = {}
        self.views = {}
        self.requests = []
        self.seconds = 0.0  # processor time of the server's threads
        self.fault = None  # None | an HTTP status | "drop" | "hang"
        self.fault_share = 1.0  # which share of requests the fault takes, in turn
        self._count = 0
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.port = port

    def __enter__(self):
        stub = self

        class Handler(_Handler):
            server_state = stub

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                """Clients that are killed leave connections behind: no news."""

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._released.set()
        self.server.shutdown()
        self.server.server_close()

    def die(self):
        """Refuse new connections and drop the old ones; what it knew is kept for `revive`."""
        self.fault = "drop"
        self.__exit__()

    def revive(self):
        """Answer as before, at the same address."""
        self._released.clear()
        self.fault, self.fault_share = None, 1.0
        self.__enter__()

    def hang(self):
        self._released.wait(600)

    def strikes(self):
        """Whether the fault takes this request."""
        with self._lock:
            self._count += 1
            if self.fault is None:
                return None
            return (
                self.fault if int(self._count * self.fault_share) > int((self._count - 1) * self.fault_share) else None
            )

    def epochs(self, run_id):
        """The epochs of a run's history in the order of its lines."""
        return [json.loads(line)["epoch"] for _, line in sorted(self.runs[run_id]["history"].items())]

    def run(self, name):
        with self._lock:
            return self.runs.setdefault(
                name,
                {"config": {}, "history": {}, "summary": {}, "tags": [], "files": {}, "group": None, "job": None,
                 "display": None, "exit": None, "notes": None, "project": None, "entity": None},
            )  # fmt: skip

    # -- GraphQL -------------------------------------------------------------------------------------------

    def answer(self, query, variables):
        for name in (
            "RunResumeStatus", "UpsertBucket", "CreateRunFiles", "Viewer", "ServerInfo", "ServerFeatures",
            "CreateArtifactManifest", "UpdateArtifactManifest", "CreateArtifactFiles", "CommitArtifact",
            "CreateArtifact", "ArtifactType", "UseArtifact", "UpsertView2", "TypeFields", "InputFields",
        ):  # fmt: skip
            if f" {name}" in query.split("{")[0]:
                return getattr(self, f"_{name.lower()}")(variables)
        print("UNKNOWN", query, file=sys.stderr)
        return {}

    def _viewer(self, _):
        return {"viewer": {"id": "U", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}}

    def _serverinfo(self, _):
        return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "99"}, "features": []}}

    _serverfeatures = _serverinfo

    def _typefields(self, _):
        return {"TypeInfo": None}

    _inputfields = _typefields

    def _runresumestatus(self, v):
        model = {
            "id": "P",
            "name": v["project"],
            "entity": {"id": "E", "name": v.get("entity") or "me"},
            "bucket": None,
        }
        run = self.runs.get(v["name"])
        if run is not None:
            lines = [line for _, line in sorted(run["history"].items())]
            model["bucket"] = {
                "id": "B-" + v["name"],
                "name": v["name"],
                "summaryMetrics": json.dumps(run["summary"]),
                "displayName": run["display"],
                "logLineCount": 0,
                "historyLineCount": len(lines),
                "eventsLineCount": 0,
                "historyTail": json.dumps(lines[-1:]),
                "eventsTail": "[]",
                "config": json.dumps(run["config"]),
                "tags": run["tags"],
                "notes": run["notes"],
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {"model": model}

    def _upsertbucket(self, v):
        inserted = v["name"] not in self.runs
        run = self.run(v["name"])
        run["config"] |= json.loads(v["config"] or "{}")
        for key, field in (("groupName", "group"), ("jobType", "job"), ("displayName", "display"), ("tags", "tags"),
                           ("notes", "notes"), ("project", "project"), ("entity", "entity")):  # fmt: skip
            if v.get(key) is not None:
                run[field] = v[key]
        if v.get("summaryMetrics"):
            run["summary"] = json.loads(v["summaryMetrics"])
        project = {"id": "P", "name": v["project"], "entity": {"id": "E", "name": v.get("entity") or "me"}}
        bucket = {
            "id": "B-" + v["name"],
            "name": v["name"],
            "displayName": run["display"],
            "description": "",
            "config": json.dumps(run["config"]),
            "sweepName": None,
            "historyLineCount": len(run["history"]),
            "project": project,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _createrunfiles(self, v):
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": "B-" + v["run"], "uploadHeaders": [], "files": files}}

    def _createartifact(self, v):
        given = v.get("input", v)
        name = given.get("artifactCollectionName") or given["artifactCollectionNames"][0]
        known = self.artifacts.get(name)
        if known is None or known["digest"] != given["digest"]:  # a version is its content
            known = self.artifacts[name] = {
                "digest": given["digest"], "type": given["artifactTypeName"], "metadata": given.get("metadata"),
                "aliases": [], "state": "PENDING", "logged_by": given["runName"], "used_by": [],
            }  # fmt: skip
        known["aliases"] = sorted({*known["aliases"], *(alias["alias"] for alias in given.get("aliases") or ())})
        sequence = {"id": "S", "latestArtifact": None}
        artifact = {"id": "A-" + name, "state": known["state"], "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def _useartifact(self, v):
        name = v["input"]["artifactID"].removeprefix("A-")
        self.artifacts[name]["used_by"].append(v["input"]["runName"])
        return {"useArtifact": {"artifact": {"id": "A-" + name}}}

    def _upsertview2(self, v):
        self.views[v["name"]] = {"display": v["displayName"], "spec": json.loads(v["spec"])}
        return {"upsertView": {"view": {"id": "V-" + v["name"], "name": v["name"]}, "inserted": True}}

    def _artifacttype(self, _):
        return {"project": None}

    def _createartifactmanifest(self, v):
        name = (v.get("artifactID") or v["input"]["artifactID"]).removeprefix("A-")
        file = {"id": "F", "name": "wandb_manifest.json", "displayName": "m", "uploadHeaders": [],
                "uploadUrl": f"{self.url}/manifest/{name}"}  # fmt: skip
        return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}

    def _updateartifactmanifest(self, v):
        file = self._createartifactmanifest(v)["createArtifactManifest"]["artifactManifest"]["file"]
        return {"updateArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}

    def _createartifactfiles(self, v):
        edges = [
            {"node": {"id": "F", "name": f["name"], "displayName": f["name"], "uploadUrl": f"{self.url}/upload/artifact",
                      "uploadHeaders": [], "uploadMultipartUrls": None, "storagePath": "x", "artifact": {"id": "A"}}}
            for f in v["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _commitartifact(self, v):
        name = (v.get("artifactID") or v["input"]["artifactID"]).removeprefix("A-")
        if name in self.artifacts:
            self.artifacts[name]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": "A-" + name, "digest": ""}}}

    # -- the file stream -----------------------------------------------------------------------------------

    def stream(self, run_id, body):
        run = self.run(run_id)
        for name, chunk in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                for at, line in enumerate(chunk["content"], start=chunk["offset"]):
                    run["history"][at] = line
            elif name == "wandb-summary.json":
                run["summary"] = json.loads(chunk["content"][-1])
        if body.get("complete"):
            run["exit"] = body.get("exitcode")
        return {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Stub

    def log_message(self, *_):
        pass

    def handle_one_request(self):
        began = time.thread_time()
        super().handle_one_request()
        self.server_state.seconds += time.thread_time() - began

    def _take(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        stub = self.server_state
        stub.requests.append((time.time(), self.command, self.path, body))
        fault = stub.strikes()
        if fault == "hang":
            stub.hang()
        if fault in ("drop", "hang"):
            self.close_connection = True
            self.connection.close()
            return None
        if isinstance(fault, int):
            self._reply({"errors": [{"message": f"injected {fault}"}]}, fault)
            return None
        return body

    def _reply(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self._take() is not None:
            self._reply({})

    def do_PUT(self):
        body = self._take()
        if body is None:
            return
        parts = self.path.split("/", 3)
        if parts[1] == "manifest":
            self.server_state.artifacts[parts[2]]["files"] = json.loads(body)["contents"]
        if len(parts) == 4 and parts[1] == "upload":
            self.server_state.run(parts[2])["files"][parts[3]] = body
        self._reply({})

    def do_POST(self):
        body = self._take()
        if body is None:
            return
        stub = self.server_state
        if self.path == "/graphql":
            request = json.loads(body)
            self._reply({"data": stub.answer(request["query"], request.get("variables") or {})})
        else:
            self._reply(stub.stream(self.path.split("/")[4], json.loads(body)))
