# make demo   sets up, then trains, evaluates and scores on the embedded data set
# make test   sets up, then runs the tests
# make lint   sets up, then checks style, layers and links
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/python -m eamb.readers.demo --root data/demo
	$(BIN)/python main.py train --dataset demo --output runs/demo --force \
	    --emotion-checkpoint checkpoints/emotion_lite_para.safetensors
	$(BIN)/python main.py evaluate --dataset demo --checkpoint runs/demo/best.pt \
	    --output runs/demo/evaluation --force
	$(BIN)/python main.py predict data/demo/images/flower_* --checkpoint runs/demo/best.pt \
	    --output runs/demo/scores.csv --maps runs/demo/maps --force
	@echo
	@echo "data set    data/demo (contact_sheet.png shows it; its labels are synthetic)"
	@echo "network     runs/demo/best.pt, curves.png, metrics.jsonl"
	@echo "evaluation  runs/demo/evaluation/metrics.json, predictions.csv, scatter.png"
	@echo "scores      runs/demo/scores.csv"
	@echo "maps        runs/demo/maps"

test: .venv/installed-dev
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 0 tests/test_layers.py tests/test_docs.py -k 'not worked_examples'

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv runs data
