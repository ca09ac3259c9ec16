"""A miniature of the Hugging Face hub on loopback, with the faults a real one can have.

It serves the few addresses of https://huggingface.co/docs/hub/api that a download asks
for: the commits of a dataset, the tree of a commit, and files, LFS ones by a redirect
to another host name as the real hub does."""

import hashlib
import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

PINNED = "13f15b4" + "0" * 33
NEWEST = "b" * 40
SMALL = 100  # bytes above which a file is an LFS one


class Hub:
    """What is served, what goes wrong, and what was asked for.

    `files[repo][path]` is listed and served, `served[path]` comes instead, with
    `digests[path]` as its hash if that is given; `cuts[path]`
    are the lengths after which the next answers break off; `status[path]` is (code,
    name of the error). `requests` are the (path, range) of the contents asked for,
    `tokens` the (first folder of an address, whether a token came along)."""

    def __init__(self):
        self.files = defaultdict(dict)
        self.served, self.cuts, self.status = {}, defaultdict(list), {}
        self.digests = {}
        self.reached = defaultdict(threading.Event)  # a cut of -1 waits for the client
        self.requests, self.tokens = [], set()
        self.portal = False  # whether a page to sign in to comes instead of listings
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.socket.settimeout(1)  # a client that left must not block accept
        self.port = self.server.server_address[1]
        serve = self.server.serve_forever
        threading.Thread(target=serve, args=(0.05,), daemon=True).start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def fetched(self, ending=""):
        """Paths of the contents asked for that end so, in the order of the requests."""
        return [path for path, _ in self.requests if path.endswith(ending)]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "agent-harnesses"]:  # the library's own business
            self._json([], 404)
            return
        self.hub.tokens.add((parts[0], "Authorization" in self.headers))
        if parts[0] == "api":
            self._api("/".join(parts[2:4]), parts[4])
        elif parts[0] == "cdn":
            self._content("/".join(parts[1:3]), "/".join(parts[3:]))
        else:
            self._resolve("/".join(parts[1:3]), "/".join(parts[5:]))

    def _api(self, repo, what):
        if self.hub.portal:
            self._send(b"<html>Sign in</html>")
            return
        if what == "commits":
            dated = {"date": "2025-03-31T00:00:00.000Z", "title": "", "message": ""}
            ids = (NEWEST, PINNED)
            self._json([{"id": c, "authors": [{"user": "x"}], **dated} for c in ids])
            return
        entries = [{"type": "directory", "path": "videos", "oid": "0" * 40}]
        for path, data in self.hub.files[repo].items():
            size = len(data)
            blob = hashlib.sha1(b"blob %d\0" % size + data).hexdigest()
            entry = {"type": "file", "path": path, "size": size, "oid": blob}
            if size > SMALL:
                sha256 = self.hub.digests.get(path, hashlib.sha256(data).hexdigest())
                entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def _json(self, value, status=200):
        self._send(json.dumps(value).encode(), status)

    def _send(self, data, status=200, headers=()):
        self.send_response(status)
        for name, value in {**dict(headers), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _resolve(self, repo, path):
        if path in self.hub.status:
            status, name = self.hub.status[path]
            self.hub.requests.append((path, None))
            self._send(b"", status, {"X-Error-Code": name})
        elif len(self.hub.files[repo][path]) > SMALL:
            place = f"http://localhost:{self.hub.port}/cdn/{repo}/{path}"
            self._send(b"", 302, {"Location": place.replace(" ", "%20")})
        else:
            self._content(repo, path)

    def _content(self, repo, path):
        asked = self.headers.get("Range")
        self.hub.requests.append((path, asked))
        data = self.hub.served.get(path, self.hub.files[repo][path])
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        cut = self.hub.cuts[path].pop(0) if self.hub.cuts[path] else None
        if cut is None:
            self._send(data[start:], 206 if asked else 200, headers if asked else ())
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + abs(cut)])
        self.wfile.flush()
        if cut < 0:  # say so, and wait for the other side to go away
            self.hub.reached[path].set()
            self.rfile.read(1)
        self.close_connection = True
