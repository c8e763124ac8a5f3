"""Make a servable model of a checkpoint: `python -m launchers.megatron.convert RUN_FOLDER`.

Ends with 0 when RUN_FOLDER/model is complete and announced, with 1 and one line for a checkpoint that is not whole or
a conversion that does not compute what the checkpoint computes; nothing is left that looks done.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from launchers import announce
from launchers.megatron import manifest, quiet
from launchers.megatron.manifest import CheckpointError, Manifest
from launchers.megatron.recipe import RecipeError, from_dict
from launchers.run_folder import RunFolder
from launchers.spec import ConvertSpec, SpecError, load


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m launchers.megatron.convert RUN_FOLDER", file=sys.stderr)
        return 2
    folder = RunFolder(Path(arguments[0]).absolute())
    try:
        spec = load(folder.spec)
        if not isinstance(spec, ConvertSpec):
            raise SpecError(f"{folder.spec}: kind {spec.kind!r}, but this program reads convert")
        done = _already(folder) or _convert(folder, Path(spec.checkpoint))
    except (SpecError, RecipeError, CheckpointError) as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return 1
    facts = done.facts
    announce.announce(
        folder.announcements,
        "model-converted",
        path=folder.model.name,
        max_logit_difference=facts["max_logit_difference"],
        parameters=facts["parameters"],
        bytes=done.bytes,
    )
    print(
        f"model: {facts['parameters']:,} parameters, {done.bytes:,} bytes, {facts['precision']}: {folder.model}\n"
        f"its logits differ from the checkpoint's by at most {facts['max_logit_difference']:.2e} "
        f"over {facts['compared_tokens']} tokens",
        flush=True,
    )
    return 0


def _already(folder: RunFolder) -> Manifest | None:
    """The model an earlier attempt finished, when only its announcement may be missing."""
    return manifest.verify(folder.model) if folder.model.exists() else None


def _convert(folder: RunFolder, checkpoint: Path) -> Manifest:
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

    return conversion.convert(checkpoint, promised, recipe, folder.model)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
