"""No Loki can be installed here: this stands in for its push API and judges every request.

usage: loki.py ADDRESS PORT USER:PASSWORD FILE

Accepted lines go to FILE, one JSON object a line, with their labels and nanoseconds. What breaks the
rules of <https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs> is answered 400
and written to FILE as {"refused": reason}. The first push is answered 503, as by a server that starts.
"""
import base64
import http.server
import json
import socket
import sys

address, port, user, path = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
expected = "Basic " + base64.b64encode(user.encode()).decode()
record = open(path, "a", buffering=1)
newest = {}
pushes = 0


def judge(handler, body):
    if handler.path != "/loki/api/v1/push":
        raise ValueError(f"path {handler.path}")
    if handler.headers.get("Content-Type") != "application/json":
        raise ValueError(f"content type {handler.headers.get('Content-Type')}")
    if handler.headers.get("Authorization") != expected:
        raise ValueError("credentials")
    push = json.loads(body)
    if set(push) != {"streams"} or not push["streams"]:
        raise ValueError(f"keys {sorted(push)}")
    lines = []
    for stream in push["streams"]:
        if set(stream) != {"stream", "values"}:
            raise ValueError(f"keys of a stream {sorted(stream)}")
        labels = stream["stream"]
        if not labels or not all(isinstance(v, str) and v for v in labels.values()):
            raise ValueError(f"labels {labels}")
        last = newest.get(str(labels), 0)
        for value in stream["values"]:
            nanos, line = value
            if not (isinstance(nanos, str) and isinstance(line, str) and nanos.isdigit()):
                raise ValueError(f"value {value}")
            if int(nanos) <= last:
                raise ValueError(f"{nanos} is not after {last}")
            last = int(nanos)
            lines.append({"labels": labels, "nanos": nanos, "line": line})
        newest[str(labels)] = last
    return lines


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        global pushes
        body = self.rfile.read(int(self.headers["Content-Length"]))
        pushes += 1
        status = 204
        if pushes == 1:
            status = 503
        else:
            try:
                for line in judge(self, body):
                    record.write(json.dumps(line) + "\n")
            except (ValueError, KeyError, TypeError) as error:
                status = 400
                record.write(json.dumps({"refused": str(error)}) + "\n")
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


Server((address, port), Handler).serve_forever()
