"""Plays the server of Kubeflow Trainer over TLS, and prints each request as a line of JSON when it is read.

Arguments: the server's certificate, its key, and the answers: one word for each request, the last one for all others.
`ok` is status 200, a number is that status with a Kubernetes `Status`, `redirect` names another path of this server, and
`hang` is no answer at all.
"""

import json
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CERTIFICATE, KEY, *ANSWERS = sys.argv[1:]


def say(**line):
    print(json.dumps(line), flush=True)


class Handler(BaseHTTPRequestHandler):
    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        at = time.monotonic()
        answer = ANSWERS.pop(0) if len(ANSWERS) > 1 else ANSWERS[0]
        say(method=self.command, path=self.path, at=at, headers={k.lower(): v for k, v in self.headers.items()}, body=body)
        if answer == "hang":
            threading.Event().wait()
        elif answer == "redirect":
            self.answer(302, {"Location": "/elsewhere"}, b"")
        elif answer == "ok":
            self.answer(200, {}, body.encode())
        else:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no such TrainJob"}
            self.answer(int(answer), {}, json.dumps(status).encode())

    do_GET = do_POST = do_PUT = do_PATCH = handle_any

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        # A client that leaves in the middle is not this test's concern.
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)
server = Server(("127.0.0.1", 0), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
say(port=server.server_port)
server.serve_forever()
