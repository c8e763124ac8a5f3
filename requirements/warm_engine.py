"""Start the engine once on a tiny random model and let it generate a token, so that the first real start is warm.

Run by the engine environment's own interpreter, once, when the environment was installed. A failure here is a failure
of the installation: better now than in the first deployment.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

WAIT_S = 600.0
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


def make_model(directory: Path) -> None:
    """A Llama of two layers with random weights and a tokenizer of single bytes. head_dim 32: 16 is not supported."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<|end|>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def generated(port: int) -> bool:
    body = json.dumps({"model": "warm", "prompt": "a", "max_tokens": 1}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(json.load(response)["usage"]["completion_tokens"]) == 1
    except (urllib.error.URLError, OSError):
        return False  # not listening yet


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        model, log_path = Path(scratch) / "model", Path(scratch) / "log"
        make_model(model)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--served-model-name", "warm", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
        command += ["--enforce-eager", "--kv-cache-memory-bytes", "67108864"]
        env = {**os.environ, **SETTINGS, "VLLM_CACHE_ROOT": f"{scratch}/cache"}
        with open(log_path, "wb") as log:
            engine = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + WAIT_S
            while not generated(port):
                if engine.poll() is not None or time.monotonic() > deadline:
                    lines = log_path.read_text(errors="replace").splitlines()
                    print("\n".join(["the engine did not start; its last lines:", *lines[-30:]]), file=sys.stderr)
                    return 1
                time.sleep(0.5)
        finally:
            try:
                os.killpg(engine.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it died by itself, and its workers with it
            engine.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
