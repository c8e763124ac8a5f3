"""An engine in miniature for a promotion's steps: takes vLLM's arguments, speaks TLS, generates with logprobs.

python evaluated_engine.py --host H --port P ... [--logprob X] [--mute] [--die]
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--served-model-name", "--middleware", "--shutdown-timeout", "--host"):
        parser.add_argument(name, required=True)
    for name in ("--ssl-keyfile", "--ssl-certfile"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--enable-prompt-tokens-details", action="store_true")
    parser.add_argument("--logprob", type=float, default=-1.0, help="of each token")
    parser.add_argument("--mute", action="store_true", help="generate nothing, for ever")
    parser.add_argument("--die", action="store_true", help="at once")
    asked, _ = parser.parse_known_args()
    if asked.die:
        sys.exit("RuntimeError: no attention of that shape")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            models = {"data": [{"id": asked.served_model_name, "max_model_len": 128}]}
            self.answer(models if self.path == "/v1/models" else {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            tokens = body["max_tokens"]
            while asked.mute:
                time.sleep(1)
            choice = {"text": "a" * tokens, "logprobs": {"token_logprobs": [asked.logprob] * tokens}}
            self.answer({"choices": [choice], "usage": {"completion_tokens": tokens}})

        def answer(self, document: object) -> None:
            known = self.headers.get("Authorization") == f"Bearer {os.environ['HEADGATE_REPLICA_KEY']}"
            data = json.dumps(document).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((asked.host, asked.port), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(asked.ssl_certfile, asked.ssl_keyfile)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
