"""An engine in miniature: takes vLLM's arguments, answers /health and /v1/completions to whoever has the replica's key.

python stand_in_engine.py --host H --port P ... [--die WORDS | --no-tokens-until FILE | --leave-when FILE
                                                 | --hang-when FILE | --worker FILE | --deaf]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--served-model-name", "--middleware", "--shutdown-timeout", "--host"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--load-format", choices=["safetensors"], required=True)
    parser.add_argument("--enable-prompt-tokens-details", action="store_true")
    parser.add_argument("--ssl-keyfile", help="with --ssl-certfile: speak TLS")
    parser.add_argument("--ssl-certfile")
    parser.add_argument("--die", help="say this and exit with status 3")
    parser.add_argument("--no-tokens-until", type=Path, help="healthy, and generates nothing until the file is there")
    parser.add_argument("--leave-when", type=Path, help="exit with status 0 when the file is there")
    parser.add_argument("--leave-once", type=Path, help="remove the file when it is there, and exit with status 0")
    parser.add_argument("--hang-when", type=Path, help="take requests, and answer none while the file is there")
    parser.add_argument("--runner", help="pooling: /v1/embeddings and /score")
    parser.add_argument("--convert")
    parser.add_argument("--enable-lora", action="store_true", help="as the next three: ignored")
    for name in ("--max-lora-rank", "--max-loras", "--max-cpu-loras"):
        parser.add_argument(name)
    parser.add_argument("--worker", type=Path, help="start a process that outlives us, and write its id there")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    asked = parser.parse_args()
    if asked.die:
        print("loading\nRuntimeError: " + asked.die + "\nbye", flush=True)
        sys.exit(3)
    signal.signal(signal.SIGTERM, lambda *_: asked.deaf or leave("got SIGTERM"))
    if asked.worker:
        worker = subprocess.Popen(["sleep", "1000"])
        asked.worker.write_text(str(worker.pid))

    served: list[str] = []  # paths

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.hang()
            if self.path == "/metrics":
                page = f'vllm:num_requests_running{{engine="0"}} 2.0\nvllm:prompt_tokens_total {len(served)}\n'
                self.answer(200, page.encode())
            else:
                self.answer(200 if self.path == "/health" else 404, b"OK")

        def hang(self) -> None:
            while asked.hang_when is not None and asked.hang_when.exists():
                time.sleep(0.02)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.hang()
            served.append(self.path)
            if self.path == "/v1/load_lora_adapter":
                self.answer(200, b"loaded")
                return
            if self.path == "/v1/unload_lora_adapter":
                self.answer(200, b"unloaded")
                return
            if asked.runner == "pooling":
                told = {"/v1/embeddings": {"embedding": [0.5]}, "/score": {"score": 0.5}}.get(self.path)
                usage = {"prompt_tokens": 3}
                self.answer(200 if told else 404, json.dumps({"data": [told], "usage": usage}).encode())
                return
            if body["model"] != asked.served_model_name:
                self.answer(404, b"")
                return
            mute = asked.no_tokens_until is not None and not asked.no_tokens_until.exists()
            say("asked for a token")
            usage = {"prompt_tokens": 2, "completion_tokens": 0 if mute else body["max_tokens"]}
            self.answer(200, json.dumps({"usage": usage}).encode())

        def answer(self, status: int, data: bytes) -> None:
            known = self.headers.get("Authorization") == f"Bearer {os.environ['HEADGATE_REPLICA_KEY']}"
            self.send_response(status if known else 401)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    say(f"serving {asked.model}")
    if asked.leave_once:
        threading.Thread(target=leave_when, args=(asked.leave_once, True), daemon=True).start()
    if asked.leave_when:
        threading.Thread(target=leave_when, args=(asked.leave_when,), daemon=True).start()
    server = ThreadingHTTPServer((asked.host, asked.port), Handler)
    if asked.ssl_certfile:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(asked.ssl_certfile, asked.ssl_keyfile)
        # The handshake is left to the thread of each connection: a silent client must not hold up the others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


def say(words: str) -> None:
    """A whole line at once: other threads speak, too, and a process may end in between."""
    with contextlib.suppress(OSError):  # a full disk
        os.write(1, f"{words}\n".encode())


def leave(words: str) -> None:
    say(words)
    os._exit(0)


def leave_when(path: Path, once: bool = False) -> None:
    while not path.exists():
        time.sleep(0.02)
    if once:
        path.unlink()
    leave("done here")


if __name__ == "__main__":
    main()
