"""One rank of a training run: `python -m launchers.megatron.pretrain RUN_FOLDER`.

The supervisor sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Ends with 0 when the run is finished, or
was asked to stop and is saved, and with one line and 78 (EX_CONFIG) for what a person must change, 1 for what may pass.
SIGQUIT prints where every thread is, and changes nothing.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

from launchers.megatron import quiet
from launchers.megatron.arithmetic import check
from launchers.megatron.corpus import DataError
from launchers.megatron.manifest import CheckpointError
from launchers.megatron.recipe import RecipeError, from_dict
from launchers.megatron.stop import Stop
from launchers.run_folder import RunFolder
from launchers.spec import SpecError, TrainSpec, load


def main(arguments: list[str]) -> int:
    started = time.monotonic()
    if len(arguments) != 1:
        print("usage: python -m launchers.megatron.pretrain RUN_FOLDER", file=sys.stderr)
        return 2
    faulthandler.register(signal.SIGQUIT, all_threads=True, chain=False)
    stop = Stop()
    stop.listen()  # before the seconds that importing torch takes
    folder = RunFolder(Path(arguments[0]).absolute())
    try:
        spec = load(folder.spec)
        if not isinstance(spec, TrainSpec):
            raise SpecError(f"{folder.spec}: kind {spec.kind!r}, but this program reads train")
        recipe = from_dict(spec.recipe)
        check(recipe, int(os.environ.get("WORLD_SIZE", "1")))

        quiet.known_messages()
        from launchers.megatron import training  # torch: only once the recipe is known to make sense

        training.run(folder, recipe, Path(spec.dataset_dir), stop, started)
    except (SpecError, RecipeError, DataError) as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return os.EX_CONFIG
    except CheckpointError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
