"""A stand-in for the hub on this machine: what huggingface_hub asks of it to create, fill, list and read repositories.

Regular files travel in the commit, ``*.safetensors`` through the LFS interface. Everything is kept in memory.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKENS = {"hf_me": "me", "hf_other": "other"}
_ROUTES = []


def _route(method, pattern):
    def register(function):
        _ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class Repo:
    """Files by commit; the last one is ``main``."""

    def __init__(self, owner, private):
        self.owner, self.private = owner, private
        self.commits = {}
        self.commit({".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, files):
        self.head = hashlib.sha1(f"{len(self.commits)}".encode() + b"".join(files.values())).hexdigest()
        self.commits[self.head] = files

    @property
    def files(self):
        return self.commits[self.head]


class Hub:
    """The server; use as a context manager. ``repos`` by name, ``requests`` in their order."""

    def __init__(self):
        self.repos, self.objects, self.requests = {}, {}, []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class Refused(Exception):
    def __init__(self, status, code="", message=""):
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


def _is_lfs(path):
    return path.endswith(".safetensors")


def _entry(path, data):
    """One file as listings describe it."""
    entry = {"type": "file", "path": path, "rfilename": path, "size": len(data), "oid": _git_sha(data)}
    if _is_lfs(path):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        entry["lfs"]["sha256"] = entry["lfs"]["oid"]
        entry["oid"] = _git_sha(entry["lfs"]["oid"].encode())
    return entry | {"blobId": entry["oid"]}


def _git_sha(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def _answer(self):
        self.body = self._read()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.user = TOKENS.get(token)
        try:
            for method, pattern, function in _ROUTES:
                if method == self.command.replace("HEAD", "GET") and (match := pattern.fullmatch(path)):
                    status, data, headers = function(self, **match.groupdict())
                    break
            else:
                raise Refused(404)
        except Refused as refused:
            status, data, headers = refused.status, b"{}", refused.headers
        if not isinstance(data, bytes):
            data, headers = json.dumps(data).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _read(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def log_message(self, *_):
        pass

    def repo(self, name, write=False):
        """A repository that the caller may see; like the real hub, strangers are told that it is not there."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.user != repo.owner):
            raise Refused(404 if self.user else 401, "RepoNotFound")
        if write and self.user != repo.owner:
            raise Refused(403 if self.user else 401, message="no write access")
        return repo

    def json(self):
        return json.loads(self.body)


@_route("POST", "/api/repos/create")
def _create(request):
    if request.user is None:
        raise Refused(401, message="Invalid credentials in Authorization header")
    asked = request.json()
    owner = asked.get("organization") or request.user
    if owner != request.user:
        raise Refused(403, message="no rights in this namespace")
    name = f"{owner}/{asked['name']}"
    url = {"url": f"{request.hub.url}/{name}", "name": name}
    if name in request.hub.repos:
        return 409, url, {}
    request.hub.repos[name] = Repo(owner, asked.get("visibility") == "private" or asked.get("private") is True)
    return 200, url, {}


@_route("POST", "/api/validate-yaml")
def _validate(request):
    match = re.match(r"---\n(.*?)\n---\n", request.json()["content"], re.S)
    try:
        data = yaml.safe_load(match[1]) if match else {}
        wrong = [key for key in ("license", "library_name", "pipeline_tag") if not isinstance(data.get(key, ""), str)]
    except yaml.YAMLError as error:
        wrong = [str(error)]
    warnings = [] if match else [{"message": "empty or missing yaml metadata in repo card"}]
    return 400 if wrong else 200, {"errors": [{"message": item} for item in wrong], "warnings": warnings}, {}


@_route("GET", "/api/models/(?P<name>[^/]+/[^/]+)(/revision/(?P<revision>.+))?")
def _info(request, name, revision):
    repo = request.repo(name)
    siblings = [_entry(path, data) for path, data in repo.files.items()]
    return 200, {"id": name, "sha": repo.head, "private": repo.private, "tags": [], "siblings": siblings}, {}


@_route("GET", "/api/models/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/?")
def _tree(request, name, revision):
    return 200, [_entry(path, data) for path, data in request.repo(name).files.items()], {}


@_route("POST", "/api/models/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>.+)")
def _preupload(request, name, revision):
    files = request.repo(name, write=True).files
    answers = []
    for file in request.json()["files"]:
        path = file["path"]
        there = _entry(path, files[path])["oid"] if path in files else None
        mode = "lfs" if _is_lfs(path) else "regular"
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": there})
    return 200, {"files": answers}, {}


@_route("POST", r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
def _batch(request, name):
    request.repo(name, write=True)
    objects = []
    for item in request.json()["objects"]:
        upload = {"upload": {"href": f"{request.hub.url}/lfs/{item['oid']}"}}
        objects.append(item | ({} if item["oid"] in request.hub.objects else {"actions": upload}))
    return 200, {"transfer": "basic", "objects": objects}, {}


@_route("PUT", "/lfs/(?P<oid>.+)")
def _put(request, oid):
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400)
    request.hub.objects[oid] = request.body
    return 200, b"", {}


@_route("POST", "/api/models/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>.+)")
def _commit(request, name, revision):
    repo = request.repo(name, write=True)
    files = dict(repo.files)
    for line in request.body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header" and value.get("parentCommit", repo.head) != repo.head:
            raise Refused(412)
        if item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            files[value["path"]] = request.hub.objects[value["oid"]]
        elif item["key"] == "deletedFile":
            del files[value["path"]]
    repo.commit(files)
    return 200, {"commitUrl": f"{request.hub.url}/{name}/commit/{repo.head}", "commitOid": repo.head}, {}


@_route("GET", "/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def _resolve(request, name, revision, path):
    repo = request.repo(name)
    commit = repo.head if revision == "main" else revision
    if commit not in repo.commits:
        raise Refused(404, "RevisionNotFound")
    if path not in repo.commits[commit]:
        raise Refused(404, "EntryNotFound")
    data = repo.commits[commit][path]
    entry = _entry(path, data)
    headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["lfs"]["oid"] if _is_lfs(path) else entry["oid"]}"'}
    return 200, data, headers
