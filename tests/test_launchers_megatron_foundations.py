"""What a recipe takes from elsewhere: presets, weights it begins with, tokenizers. Files only, no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launchers.megatron import hugging_face, manifest
from launchers.megatron.arithmetic import check, padded_vocab
from launchers.megatron.flops import flops_per_token, parameters
from launchers.megatron.presets import PRESETS
from launchers.megatron.recipe import Data, Model, Recipe, RecipeError, Train, from_dict, read_recipe, to_dict
from registry.strict_toml import ConfigError, flag_layers

TRAIN = "[train]\niterations = 10\nmicro_batch = 1\nglobal_batch = 8\nlr = 1e-3\n"
CONFIG = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
    "vocab_size": 515, "tie_word_embeddings": True, "rope_theta": 20_000.0,
}  # fmt: skip
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "factor": 32.0}


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """Reads a recipe file of these lines, which stands in tmp_path/recipes."""
    (tmp_path / "recipes").mkdir()

    def read(text: str, *flags: str) -> Recipe:
        path = tmp_path / "recipes" / "r.toml"
        path.write_text(text + "\n" + TRAIN)
        return read_recipe(path, flag_layers(flags))

    return read


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return model_directory(tmp_path / "llama")


def model_directory(path: Path, **changed: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**CONFIG, **changed}))
    vocab = {f"t{i}": i for i in range(510)}
    added = [{"id": 511, "content": "<|end|>"}]
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added}))
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_trained_and_survives_a_spec(recipe: Callable[..., Recipe], name: str) -> None:
    made = recipe(f'[model]\npreset = "{name}"\n[data]\ntext = ["x.txt"]\nvocab_size = 32000')
    check(made, 8)
    assert from_dict(json.loads(json.dumps(to_dict(made)))) == made


def test_the_large_presets_are_llamas() -> None:
    vocab = 128_256
    for name, billions in (("llama-1b", 1.24), ("llama-8b", 8.03), ("llama-70b", 70.6)):
        assert parameters(Model(**PRESETS[name]), vocab) / 1e9 == pytest.approx(billions, abs=0.05), name


def test_what_is_said_beside_a_preset_overrides_it_and_a_flag_overrides_both(recipe: Callable[..., Recipe]) -> None:
    text = '[model]\npreset = "llama-60m"\nlayers = 3\n[data]\ntext = ["x"]\nvocab_size = 512'
    made = recipe(text, "model.heads=16", "train.lr=2e-3")
    assert (made.model.hidden, made.model.layers, made.model.heads, made.train.lr) == (512, 3, 16, 2e-3)
    assert recipe(text, "model.preset=llama-tiny").model.hidden == 128
    with pytest.raises(
        RecipeError, match=r"r\.toml:2: model\.preset = 'lama-60m' is none of .* did you mean 'llama-60m"
    ):
        recipe(text.replace("llama", "lama"))


def test_the_shape_and_the_tokenizer_are_those_of_the_weights(recipe: Callable[..., Recipe], llama: Path) -> None:
    init = 'kind = "continue"\n[init]\nhugging_face = "../llama"\n'
    made = recipe(init + '[model]\nseq_length = 64\n[data]\ntext = ["x"]')
    check(made, 1)
    m = made.model
    assert (m.hidden, m.layers, m.heads, m.kv_heads, m.ffn) == (128, 2, 4, 2, 192)
    assert (m.seq_length, m.max_length, m.context, m.tied_embeddings) == (64, 256, 256, True)
    assert (m.rope_base, m.rope_scaling, m.norm_epsilon) == (20_000.0, 1.0, 1e-6)
    assert (made.data.tokenizer, made.data.vocab_size) == (llama, 515)
    assert from_dict(json.loads(json.dumps(to_dict(made)))) == made


def test_one_directory_written_in_two_ways_is_no_contradiction(recipe: Callable[..., Recipe], llama: Path) -> None:
    made = recipe(f'kind = "continue"\n[init]\nhugging_face = "../llama"\n[data]\ntext = ["x"]\ntokenizer = "{llama}"')
    assert made.data.tokenizer == llama


@pytest.mark.parametrize(
    "said", ["[]", '{"model": [1], "data": {"vocab_size": 1}}', '{"model": {}, "data": {"vocab_size": 1}}', "{"]
)
def test_a_checkpoint_whose_recipe_cannot_be_read_is_named(
    recipe: Callable[..., Recipe], tmp_path: Path, said: str
) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "recipe.json").write_text(said)
    manifest.write(tmp_path / "checkpoint", "checkpoint")
    with pytest.raises(RecipeError, match=rf"^{tmp_path}/checkpoint: not a checkpoint to begin with: "):
        recipe('kind = "continue"\n[init]\ncheckpoint = "../checkpoint"')


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[model]\nhidden = 64", r"r\.toml:3: model\.hidden = 64 contradicts 128 of .*/llama/config\.json"),
        ("[data]\nvocab_size = 512", r"r\.toml:3: data\.vocab_size = 512 contradicts 515"),
        ('[data]\ntokenizer = "elsewhere"', r"data\.tokenizer = '.*/recipes/elsewhere' contradicts '.*/llama'"),
        ('[model]\npreset = "llama-tiny"', r"model\.preset = 'llama-tiny': the shape is that of .*/llama"),
    ],
)
def test_what_contradicts_the_weights_is_refused_with_both_values(
    recipe: Callable[..., Recipe], llama: Path, said: str, told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        recipe(f'kind = "continue"\n{said}\n[init]\nhugging_face = "../llama"')


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model_type": "qwen2"}, 'model_type = "qwen2" cannot be trained here; allowed: "llama"'),
        ({"mlp_bias": True}, "mlp_bias = true cannot be trained here; allowed: false"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = .* allowed: nothing"),
        ({"head_dim": 64}, "head_dim = 64; allowed: hidden_size / num_attention_heads = 128 / 4"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear' .* allowed: default, or llama3 with"),
        ({"num_hidden_layers": None}, "config.json: "),
        ({"vocab_size": 500}, "tokenizer.json has 512 tokens, config.json vocab_size = 500"),
    ],
)
def test_weights_of_another_architecture_are_refused(
    recipe: Callable[..., Recipe], tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    model_directory(tmp_path / "other", **changed)
    with pytest.raises(RecipeError, match=told):
        recipe('kind = "continue"\n[init]\nhugging_face = "../other"')


def test_llama_3s_rotation_is_read_in_both_spellings(tmp_path: Path) -> None:
    before = model_directory(tmp_path / "before", rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3})
    now = model_directory(tmp_path / "now", rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3})
    for directory in (before, now):
        shape = hugging_face.shape(directory)
        assert (shape["rope_base"], shape["rope_scaling"]) == (5e5, 32.0)


def test_the_vocabulary_of_a_given_tokenizer_is_its_own(recipe: Callable[..., Recipe], llama: Path) -> None:
    text = '[model]\npreset = "llama-tiny"\n[data]\ntext = ["x"]\ntokenizer = "../llama"'
    assert recipe(text).data.vocab_size == 512
    with pytest.raises(RecipeError, match=r"data\.vocab_size = 600 contradicts 512 of .*/llama/tokenizer\.json"):
        recipe(text + "\nvocab_size = 600")
    with pytest.raises(RecipeError, match=r"/nowhere/tokenizer\.json: No such file"):
        recipe(text.replace("../llama", "/nowhere"))


def test_files_are_named_from_the_recipe_on(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    made = recipe(
        '[model]\npreset = "llama-tiny"\n[data]\nvocab_size = 512\n'
        '[[data.sources]]\ntext = ["{stdlib}", "a/*.txt"]\n[[data.sources]]\njsonl = ["/b.jsonl"]\nweight = 3'
    )
    assert [s.text for s in made.data.blend] == [("{stdlib}", f"{tmp_path}/recipes/a/*.txt"), ()]
    assert [(s.jsonl, s.weight) for s in made.data.blend] == [((), 1.0), (("/b.jsonl",), 3.0)]
    with pytest.raises(ConfigError, match=r"data\.sources\.0\.wieght: unknown key; did you mean 'weight'\?"):
        recipe('[model]\npreset = "llama-tiny"\n[[data.sources]]\nwieght = 3')


def test_the_vocabulary_is_padded_the_same_in_every_layout() -> None:
    assert [padded_vocab(n) for n in (128, 129, 50_257, 128_256)] == [128, 256, 50_304, 128_256]


def test_flops_of_a_token_are_those_counted_by_hand() -> None:
    model = Model(hidden=4, layers=2, heads=2, kv_heads=1, ffn=8, seq_length=16)
    recipe = Recipe(model=model, data=Data(), train=Train(iterations=1, micro_batch=1, global_batch=1, lr=1.0))
    # A layer: queries and output 2 x 16, keys and values 2 x 8, MLP 3 x 32 = 144 weights. Two of them, and 4 x 10 for
    # the vocabulary: 328 weights, six operations each. Scores: 6 x 2 layers x 4 x 16.
    assert flops_per_token(recipe, 10) == 6 * 328 + 768
