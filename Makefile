.DEFAULT_GOAL := help
.PHONY: help run test lab tensorboard reference outputs bench address lock
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
SMOKE := AD_PROFILE=smoke $(BIN)/python -m pytest -x -q -n 2 --dist loadfile -p no:cacheprovider --nbval-lax --nbval-current-env

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): requirements.lock tools/environment.py
	@$(PYTHON) tools/environment.py

run: $(READY)  ## run every notebook at the profile this machine allows; one of them: make run NB=01
	@$(BIN)/python tools/run.py $(NB)

test: $(READY)  ## lint, unit tests, and a smoke run of every notebook
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m pytest -n 2
	@$(SMOKE) notebooks

lab: $(READY)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=notebooks

tensorboard: $(READY)  ## compare all versions in TensorBoard
	@$(BIN)/tensorboard --logdir "$${AD_LOGS_DIR:-lightning_logs}"

reference: $(READY)  ## full training into the committed versions; one of them: make reference NB=01
	@$(BIN)/python tools/run.py --reference $(NB)

outputs: $(READY)  ## the notebooks' outputs and RESULTS.md anew from the committed versions, without training
	@$(BIN)/python tools/run.py --outputs $(NB)
	@$(BIN)/python tools/results.py

bench: $(READY)  ## training speed beside plain PyTorch, the price of the live picture, the time to import
	@$(BIN)/python benchmarks/speed.py $(NB)

address:  ## write the repository's address into badges and set-up cells: make address REPO=owner/name
	@$(PYTHON) tools/notebooks.py $(REPO)

lock: $(READY)  ## resolve requirements.txt again into requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate requirements.txt -o requirements.lock
