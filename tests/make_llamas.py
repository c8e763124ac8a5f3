"""Small Llamas as Hugging Face keeps them, and datasets as it saves them: `python make_llamas.py DIRECTORY`.

Runs in the training environment. Random weights, larger than an initialisation's, so that logits tell mistakes apart.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow
import torch
from pyarrow import parquet
from transformers import LlamaConfig, LlamaForCausalLM

from launchers.megatron import corpus, data
from launchers.megatron.recipe import Source

TOKENS = 512
VOCAB = 515  # the embedding has rows that no token uses, and is no multiple of anything
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


def main(root: Path) -> None:
    texts = list(corpus.documents(corpus.resolve(Source(text=("{stdlib}/json/*.py", "{stdlib}/email/*.py")))))
    tokenizer = data.train_tokenizer(texts, TOKENS)
    shape = {
        "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "initializer_range": 0.08, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    llama3 = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    plain = {"rope_type": "default", "rope_theta": 20_000.0}
    save(root / "plain", tokenizer, torch.float32, **shape, rope_parameters=plain, tie_word_embeddings=False)
    save(root / "tied", tokenizer, torch.bfloat16, **shape, rope_parameters=llama3, tie_word_embeddings=True)
    save_datasets(root, texts)


def save(directory: Path, tokenizer: object, dtype: torch.dtype, **settings: object) -> None:
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # transformers begins with ones, which hide a norm in the wrong place
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(str(directory))
    data.save_tokenizer(tokenizer, directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)


def save_datasets(root: Path, texts: list[str]) -> None:
    """The same documents as parquet, as JSONL, and as `datasets` 5.2 leaves them after `save_to_disk`."""
    table = pyarrow.table({"id": list(range(len(texts))), "content": texts})
    parquet.write_table(table, root / "texts.parquet", row_group_size=7)
    (root / "texts.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))
    saved = root / "saved"
    saved.mkdir()
    with (
        pyarrow.OSFile(str(saved / "data-00000-of-00001.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table, max_chunksize=7)
    state = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0", "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    (saved / "state.json").write_text(json.dumps(state))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
