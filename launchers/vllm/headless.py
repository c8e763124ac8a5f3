"""A node's part of an engine that has its front on another node: `python -m launchers.vllm.headless ARGUMENTS`.

Takes the arguments of vLLM's API server. Runs in the engine's environment, where `vllm serve --headless` may not be
had (the CPU build's command fails), and `python -m vllm.entrypoints.openai.api_server` knows no such thing.
"""

from __future__ import annotations


def main() -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args()
    ServeSubcommand().validate(arguments)
    ServeSubcommand.cmd(arguments)


if __name__ == "__main__":  # its workers import this module anew
    main()
