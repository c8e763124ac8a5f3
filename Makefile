# Everything a person types: make demo, make demo-slurm, make test, make lint.
# Environments are made from locks with hashes and made once; a second call takes seconds.

VENVS ?= $(CURDIR)/.venvs
HEADGATE = $(VENVS)/control/bin/headgate
PYTHON_CONTROL = $(VENVS)/control/bin/python
CLUSTER = tests/cluster/cluster
# Bytecode is compiled at install and must be used: without it vLLM takes minutes to start.
export PYTHONDONTWRITEBYTECODE =
export VENVS

.PHONY: demo demo-slurm test test-pyslurm bench-pyslurm lint environments control dev warm clean help

help:
	@echo "make demo         from raw text to a metered answer on this machine (ARGS=--once stops everything at the end)"
	@echo "make demo-slurm   the same on a real, private Slurm cluster that is started for it (Debian, root to install it)"
	@echo "make test         everything, on real parts"
	@echo "make test-pyslurm slurm/ on Slurm 26.05, with pyslurm, in a chroot made for it (root)"
	@echo "make lint         ruff and mypy"
	@echo "make bench-NAME   what benchmarks/NAME.py measures, one JSON object per figure: slurm, training, gateway, routing,"
	@echo "                  ledger, crashes, reports, soak, deployments"
	@echo "make environments the three Python environments: control plane, training, engine"

demo: environments
	@$(HEADGATE) demo $(ARGS)

demo-slurm: environments
	@tests/cluster/install
	@tests/cluster/demo $(HEADGATE) $(ARGS)

environments: control training engine

control training engine dev: %:
	@requirements/install.sh $@

.PHONY: training engine

test: dev training engine
	@tests/cluster/install || test $$? -eq 3
	@requirements/pango.sh || test $$? -eq 3
	@$(if $(ARGS),$(PYTHON_CONTROL) -m pytest $(ARGS),tests/lanes $(PYTHON_CONTROL))

test-pyslurm:
	@tests/chroot/run $(if $(ARGS),python -m pytest -p no:cacheprovider $(ARGS))

lint: dev
	@$(PYTHON_CONTROL) -m ruff check .
	@$(PYTHON_CONTROL) -m ruff format --check .
	@$(PYTHON_CONTROL) -m mypy

bench-pyslurm:
	@tests/chroot/run python -m benchmarks.slurm $(ARGS)

bench-training bench-restarts: training

bench-%: dev
	@$(PYTHON_CONTROL) -m benchmarks.$* $(ARGS)

clean:
	rm -rf .venvs .headgate build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
