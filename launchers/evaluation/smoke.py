"""Whether an engine can serve a model: `python -m launchers.evaluation.smoke RUN_FOLDER`.

Ends with 0 when the engine started, generated for each prompt, and what it generated is sane, which is then announced.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from launchers.announce import announce
from launchers.evaluation import engine, step
from launchers.run_folder import RunFolder
from launchers.spec import SmokeSpec
from launchers.task import task_of

PROMPTS = ("The", "1, 2, 3,", "def main(")
MAX_TOKENS = 16


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    def work(folder: RunFolder, spec: SmokeSpec) -> None:
        generated = 0
        with engine.running(spec, folder, task_of(environ)) as started:
            for prompt in PROMPTS:
                answer = started.complete(prompt, MAX_TOKENS)
                if (wrong := fault(answer)) is not None:
                    raise step.Refused(f"what the model generates for {prompt!r} is not sane: {wrong}")
                generated += answer["usage"]["completion_tokens"]
                print(f"{prompt!r} -> {answer['choices'][0]['text']!r}", flush=True)
        announce(
            folder.announcements,
            "model-generated",
            start_s=started.start_s,
            prompts=len(PROMPTS),
            completion_tokens=generated,
        )

    return step.run(arguments, SmokeSpec, work)


def fault(answer: Mapping[str, Any]) -> str | None:
    """What is wrong with an answer of /v1/completions with logprobs; None: it is sane. Pure.

    Weights that are broken give logits that are no numbers, and their engine the first token of the vocabulary.
    """
    try:
        choice, tokens = answer["choices"][0], answer["usage"]["completion_tokens"]
        text, logprobs = choice["text"], choice["logprobs"]["token_logprobs"]
        if not isinstance(text, str) or not isinstance(tokens, int) or tokens < 1:
            return f"{tokens!r} tokens, and the text {text!r}"
        wrong = [p for p in logprobs if not isinstance(p, int | float) or not math.isfinite(p) or p > 1e-3]
    except (KeyError, IndexError, TypeError) as e:
        return f"the answer has no {e}"
    if len(logprobs) != tokens:
        return f"{tokens} tokens have {len(logprobs)} logprobs"
    return f"its tokens' logprobs are {logprobs}" if wrong else None


if __name__ == "__main__":
    import os

    sys.exit(main(sys.argv[1:], os.environ))
