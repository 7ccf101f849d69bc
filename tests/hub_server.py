"""The Hugging Face Hub on loopback: the part of its protocol that huggingface_hub speaks to push and load a model."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopback_token_0123456789"
LARGE = (".safetensors", ".bin", ".pt")


class Repo:
    """Branches, pull requests and commits; a commit is its message and all files."""

    def __init__(self, private):
        self.private, self.refs, self.commits = private, {}, {}
        self.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, ref, message, files):
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha] = {"message": message, "files": files}
        self.refs[ref] = sha
        return sha

    def sha(self, revision):
        return revision if revision in self.commits else self.refs.get(revision)

    def files(self, revision="main"):
        return self.commits[self.sha(revision)]["files"]


class Hub:
    """The server; `fault` says what goes wrong. Use as a context manager."""

    def __init__(self):
        self.repos, self.objects, self.requests, self.faults = {}, {}, [], []
        handler = type("Bound", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def fault(self, where, status, times=1, **headers):
        """The next `times` requests whose line matches `where` get `status`; "drop" breaks the line in mid-body."""
        self.faults.append({"where": where, "status": status, "times": times, "headers": headers})

    def sent(self):
        """Every byte that any client has sent: the lines of requests, and their bodies, base64 undone."""
        return b"\n".join(part for line, body in self.requests for part in (line.encode(), body, *_decoded(body)))


def _decoded(body):
    """The contents of the files in a commit, and the samples of a preupload."""
    for encoded in re.findall(rb'"(?:content|sample)": ?"([A-Za-z0-9+/=]+)"', body):
        yield base64.b64decode(encoded)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def do_POST(self):
        self.handle_one()

    do_GET = do_PUT = do_HEAD = do_POST

    def handle_one(self):
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        line = f"{self.command} {self.path}"
        for fault in self.hub.faults:
            if fault["times"] and re.search(fault["where"], line):
                fault["times"] -= 1
                if fault["status"] == "drop":
                    self.rfile.read1(16)
                    self.close_connection = True
                    self.connection.close()
                    return
                self.body()
                self.reply(
                    fault["status"], {"error": f"as planned, {self.headers['Authorization']}"}, fault["headers"]
                )
                return
        self.content = self.body()
        self.hub.requests.append((line, self.content))
        for pattern, name in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                getattr(self, name)(*match.groups())
                return
        self.reply(404, {"error": f"no route for {line}"})

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status, content=None, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def payload(self):
        return json.loads(self.content)

    def may(self, repo_id=None, revision=None):
        """The repository, where there is one and the caller may see it; None once the refusal is sent."""
        is_authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        repo = self.hub.repos.get(repo_id)
        if not is_authorised and (repo is None or repo.private or self.command not in ("GET", "HEAD")):
            self.reply(401, {"error": "Invalid username or password."})
        elif repo is None:
            self.reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif revision is not None and repo.sha(revision) is None:
            self.reply(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        else:
            return repo
        return None

    # ---- routes ----

    def whoami(self):
        is_authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self.reply(200 if is_authorised else 401, {"name": "me", "orgs": []})

    def create(self):
        settings = self.payload()
        name = f"{settings.get('organization') or 'me'}/{settings['name']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid username or password."})
        elif name in self.hub.repos:
            self.reply(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        else:
            private = settings.get("visibility") == "private" or bool(settings.get("private"))
            self.hub.repos[name] = Repo(private)
            self.reply(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def validate(self):
        """The Hub's checks, as far as its documentation of the metadata says."""
        content = self.payload()["content"]
        data = yaml.safe_load(content.split("---\n")[1])
        errors = [name for name in ("tags", "model-index") if name in data and not isinstance(data[name], list)]
        for entry in data.get("model-index", []):
            errors += ["name"] * (not isinstance(entry.get("name"), str))
            for result in entry["results"]:
                errors += ["task"] * ("type" not in result["task"])
                errors += ["dataset"] * (not {"type", "name"} <= result["dataset"].keys())
                errors += ["metrics"] * (not all({"type", "value"} <= metric.keys() for metric in result["metrics"]))
        self.reply(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})

    def branch(self, repo_id, name):
        if repo := self.may(repo_id):
            if name in repo.refs:
                self.reply(409, {"error": "Reference already exists"})
                return
            repo.refs[name] = repo.refs["main"]
            self.reply(200, {})

    def preupload(self, repo_id, revision):
        if repo := self.may(repo_id, revision):
            existing = repo.files(revision)
            self.reply(200, {"files": [
                {
                    "path": file["path"], "shouldIgnore": False,
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "oid": _git_oid(existing[file["path"]]) if file["path"] in existing else None,
                }
                for file in self.payload()["files"]
            ]})  # fmt: skip

    def batch(self, repo_id):
        if self.may(repo_id):
            objects = []
            for item in self.payload()["objects"]:
                if item["oid"] not in self.hub.objects:
                    links = {
                        what: {"href": f"{self.hub.url}/lfs/{what}/{item['oid']}"} for what in ("upload", "verify")
                    }
                    item = {**item, "actions": links}
                objects.append(item)
            self.reply(200, {"transfer": "basic", "objects": objects})

    def put(self, oid):
        if hashlib.sha256(self.content).hexdigest() != oid:
            self.reply(400, {"error": "content and oid differ"})
            return
        self.hub.objects[oid] = self.content
        self.reply(200, {})

    def verify(self, oid):
        self.reply(200 if oid in self.hub.objects else 404, {})

    def commit(self, repo_id, revision):
        if repo := self.may(repo_id, revision):
            files, message = dict(repo.files(revision)), ""
            for line in self.content.splitlines():
                operation = json.loads(line)
                key, value = operation["key"], operation["value"]
                if key == "header":
                    message = value["summary"]
                elif key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                else:
                    del files[value["path"]]
            pull = "create_pr" in self.query
            number = sum(name.startswith("refs/pr/") for name in repo.refs) + 1
            ref = f"refs/pr/{number}" if pull else revision
            sha = repo.commit(ref, message, files)
            answer = {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha, "success": True}
            if pull:
                answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{number}"
            self.reply(200, answer)

    def info(self, repo_id, revision=None):
        if repo := self.may(repo_id, revision or "main"):
            sha = repo.sha(revision or "main")
            names = [{"rfilename": name} for name in repo.files(sha)]
            about = {"_id": "0", "id": repo_id, "modelId": repo_id, "sha": sha, "private": repo.private, "tags": []}
            self.reply(200, {**about, "siblings": names, "downloads": 0, "likes": 0})

    def tree(self, repo_id, revision, folder):
        if repo := self.may(repo_id, revision):
            files = [
                {"type": "file", "path": name, "size": len(data), "oid": _git_oid(data)}
                for name, data in repo.files(revision).items()
                if name.startswith((folder or "").lstrip("/"))
            ]
            if folder and not files:
                self.reply(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
                return
            self.reply(200, files)

    def resolve(self, repo_id, revision, name):
        if repo := self.may(repo_id, revision):
            sha = repo.sha(revision)
            if name not in repo.files(sha):
                self.reply(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
                return
            data = repo.files(sha)[name]
            self.reply(200, data, {"ETag": f'"{_git_oid(data)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"})


def _git_oid(data):
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


ID = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST /api/models/{ID}/branch/(.+)", "branch"),
    (rf"POST /api/models/{ID}/preupload/(.+)", "preupload"),
    (rf"POST /{ID}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/upload/(\w+)", "put"),
    (r"POST /lfs/verify/(\w+)", "verify"),
    (rf"POST /api/models/{ID}/commit/(.+)", "commit"),
    (rf"GET /api/models/{ID}", "info"),
    (rf"GET /api/models/{ID}/revision/(.+)", "info"),
    (rf"GET /api/models/{ID}/tree/(refs/[^/]+/[^/]+|[^/]+)(/.*)?", "tree"),
    (rf"(?:GET|HEAD) /{ID}/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.+)", "resolve"),
]
