"""A servable model of a checkpoint, or a checkpoint of a model: `python -m launchers.megatron.convert RUN_FOLDER`.

Ends with 0 when RUN_FOLDER/model (direction to-hf) or RUN_FOLDER/checkpoints/iter_0000000 (from-hf) is complete and
announced, with 1 and one line for a source that is not whole or a conversion that does not compute what the source
computes; nothing is left that looks done.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from launchers import announce
from launchers.megatron import hugging_face, manifest, quiet, shelf
from launchers.megatron.manifest import CheckpointError, Manifest
from launchers.megatron.recipe import RecipeError, from_dict
from launchers.run_folder import RunFolder
from launchers.spec import ConvertSpec, SpecError, load


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m launchers.megatron.convert RUN_FOLDER", file=sys.stderr)
        return 2
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):  # before torch: the model is built on the CPU
        os.environ[name] = ""
    folder = RunFolder(Path(arguments[0]).absolute())
    try:
        spec = load(folder.spec)
        if not isinstance(spec, ConvertSpec):
            raise SpecError(f"{folder.spec}: kind {spec.kind!r}, but this program reads convert")
        to_hf = spec.direction == "to-hf"
        final = folder.model if to_hf else folder.checkpoints / "iter_0000000"
        done = _already(final)
        if done is None:
            done = _to_hf(Path(spec.checkpoint), final) if to_hf else _from_hf(Path(spec.checkpoint), folder.id, final)
    except (SpecError, RecipeError, CheckpointError) as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return 1
    facts = done.facts
    if to_hf:
        announce.announce(
            folder.announcements,
            "model-converted",
            path=folder.model.name,
            max_logit_difference=facts["max_logit_difference"],
            parameters=facts["parameters"],
            bytes=done.bytes,
        )
    else:
        # Not where it is made: an earlier attempt may have been killed once the directory had its name.
        shelf.note_latest(final.parent, final.name)
        announce.announce(
            folder.announcements,
            "checkpoint",
            iteration=facts["iteration"],
            path=final.relative_to(folder.root).as_posix(),
            bytes=done.bytes,
            manifest_sha256=manifest.sha256(final / manifest.NAME),
        )
    print(
        f"{done.kind}: {facts['parameters']:,} parameters, {done.bytes:,} bytes, {facts['precision']}: {final}\n"
        f"its logits differ from those of {spec.checkpoint} by at most {facts['max_logit_difference']:.2e} "
        f"over {facts['compared_tokens']} tokens",
        flush=True,
    )
    return 0


def _already(final: Path) -> Manifest | None:
    """What an earlier attempt finished, when only what is said of it may be missing."""
    return manifest.verify(final) if final.exists() else None


def _to_hf(checkpoint: Path, final: Path) -> Manifest:
    promised = manifest.verify(checkpoint)
    if promised.kind != "checkpoint":
        raise CheckpointError(f"{checkpoint}: a {promised.kind}, not a checkpoint")
    print(f"checkpoint {checkpoint}: complete, {promised.bytes:,} bytes", flush=True)
    try:
        recipe = from_dict(json.loads((checkpoint / "recipe.json").read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError) as e:
        raise CheckpointError(f"{checkpoint / 'recipe.json'}: {e}") from e

    quiet.known_messages()
    from launchers.megatron import conversion  # torch: only for a checkpoint that is whole

    return conversion.to_hugging_face(checkpoint, promised, recipe, final)


def _from_hf(source: Path, run: str, final: Path) -> Manifest:
    hugging_face.shape(source)  # a model of another kind is refused before torch is imported
    final.parent.mkdir(exist_ok=True)
    quiet.known_messages()
    from launchers.megatron import conversion

    return conversion.from_hugging_face(source, run, final)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
