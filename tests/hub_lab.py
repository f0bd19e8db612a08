"""A hub of models in this process: the calls of huggingface_hub that push and fetch make, over HTTP, and nothing else.

It keeps what is committed, as the hub does: every commit for good, large files apart (Git LFS). Who writes must show
the token. An answer that the real hub gives as an error has its codes.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_the_test"
LARGE = (".h5", ".safetensors", ".npy")


class Hub:
    """The repositories of a hub, and the requests that came."""

    def __init__(self):
        self.repositories = {}
        self.private = {}
        self.blobs = {}
        self.requests = []
        self.answer_with = None
        """A status with which every request is answered, where the hub is to be down."""
        self.changes = {}
        """By file name what is served in place of the content, as a hub that was tampered with would."""

    def commit(self, repository, files):
        """Adds a commit with these files to a repository, made if need be; gives its sha."""
        commits = self.repositories.setdefault(repository, [])
        sha = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits.append((sha, files))
        return sha

    def files(self, repository, revision="main"):
        """The files of a revision, which is a sha or main; None where there is none."""
        commits = self.repositories[repository]
        if revision == "main":
            return commits[-1] if commits else ("0" * 40, {})
        return next(((sha, files) for sha, files in commits if sha == revision), None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_any(self):
        hub, url = self.server.hub, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(url.path)
        hub.requests.append((self.command, path))
        if hub.answer_with:
            return self.answer(hub.answer_with, {"error": "down"})
        writes = self.command == "POST"
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        if self.command == "PUT" and path.startswith("/upload/"):
            hub.blobs[path.removeprefix("/upload/")] = body
            return self.answer(200)
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return self.batch(json.loads(body))
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(\w+)/(.+))?", path):
            return self.model(match[1], match[2] or "revision", match[3] or "main", body)
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*match.groups())
        return self.answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def create(self, wanted):
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if name in self.server.hub.repositories:
            return self.answer(
                409, {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"}
            )
        self.server.hub.repositories[name] = []
        self.server.hub.private[name] = wanted["visibility"] == "private"
        return self.answer(200, {"url": f"{self.server.address}/{name}", "name": name, "id": "1"})

    def validate(self, card):
        """The head of a README: YAML, with a licence."""
        head = yaml.safe_load(card.split("---\n")[1])
        errors = [] if isinstance(head, dict) and head.get("license") else [{"message": "no license"}]
        return self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def batch(self, wanted):
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.address}/upload/{each['oid']}"}}}
            for each in wanted["objects"]
        ]
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def model(self, repository, verb, revision, body):
        hub = self.server.hub
        if repository not in hub.repositories:
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if verb == "preupload":
            names = [each["path"] for each in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            return self.answer(200, {"files": files})
        if verb == "commit":
            return self.take(repository, [json.loads(line) for line in body.splitlines()])
        found = hub.files(repository, revision)
        if found is None:
            return self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        sha, files = found
        if verb == "tree":
            return self.answer(200, [entry_of(name, data) for name, data in files.items()])
        siblings = [{"rfilename": name} for name in files]
        return self.answer(200, {"id": repository, "modelId": repository, "sha": sha, "siblings": siblings})

    def take(self, repository, lines):
        _, before = self.server.hub.files(repository)
        files = dict(before)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.server.hub.commit(repository, files)
        url = f"{self.server.address}/{repository}/commit/{sha}"
        return self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def resolve(self, repository, revision, name):
        hub = self.server.hub
        found = hub.files(repository, revision) if repository in hub.repositories else None
        if found is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        sha, files = found
        if name not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        etag = entry_of(name, files[name])["oid"]
        return self.answer(200, hub.changes.get(name, files[name]), ETag=f'"{etag}"', X_Repo_Commit=sha)


def entry_of(name, data):
    """A file in a listing: a git blob, or a large file."""
    oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    return {"type": "file", "path": name, "size": len(data), "oid": oid}


@contextlib.contextmanager
def running_hub():
    """A hub that answers at an address on this machine: gives both."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub, server.address = Hub(), f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub, server.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
