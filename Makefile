.DEFAULT_GOAL := help
.PHONY: help run test lab tensorboard reference bench compare readme screenshots address lock
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): requirements.lock tools/environment.py
	@$(PYTHON) tools/environment.py

run: $(READY)  ## run every notebook at the profile this machine allows; one of them: make run NB=01
	@$(BIN)/python tools/run.py $(NB)

test: $(READY)  ## lint, unit tests, and a smoke run of every notebook
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m pytest
	@AD_PROFILE=smoke $(BIN)/python -m pytest -x --nbval-lax --nbval-current-env notebooks

lab: $(READY)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=notebooks

tensorboard: $(READY)  ## compare all versions in TensorBoard
	@$(BIN)/tensorboard --logdir "$${AD_LOGS_DIR:-lightning_logs}"

reference: $(READY)  ## full training on real data into the committed versions, notebook 6 anew from them; one of them: make reference NB=01
	@$(BIN)/python tools/run.py --reference $(NB)

compare: $(READY)  ## after a new reference version: pictures of TensorBoard, notebook 6 and README anew
	@$(BIN)/python tools/screenshots.py || echo "the pictures of TensorBoard stay as they are"
	@$(BIN)/python tools/run.py --reference 06
	@$(BIN)/python tools/readme.py

readme: $(READY)  ## write the README's tables and pictures from the committed versions
	@$(BIN)/python tools/readme.py

screenshots: $(READY)  ## take notebook 6's pictures of TensorBoard (needs Chromium and its driver)
	@$(BIN)/python tools/screenshots.py

bench: $(READY)  ## training and scoring speed beside plain PyTorch and the customary loaders
	@$(BIN)/python benchmarks/speed.py

address:  ## write the repository's address into badges and set-up cells: make address REPO=owner/name
	@$(PYTHON) tools/notebooks.py $(REPO)

lock: $(READY)  ## resolve requirements.txt again into requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate requirements.txt -o requirements.lock
