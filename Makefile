# make demo   sets up, then evaluates, trains and scores on the embedded data set
# make test   sets up, then runs the tests
# make test-portable   the tests of computing, as on processors without AVX-512
# make test-pages   sets up, then tests the pages in an installed Chromium or Chrome
# make lint   sets up, then checks style, layers and links
PYTHON ?= python3
BIN := .venv/bin
SHIPPED := checkpoints/eambnet_lite_para.safetensors
srcc = $(BIN)/python -c 'import json; m = json.load(open("runs/demo/$(1)/metrics.json")); \
    print("%.2f (%.2f to %.2f)" % (m["metrics"]["srcc"], *m["intervals_95"]["srcc"]))'

# Tests start many processes: compiled once, not in each.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-portable test-pages lint clean

demo: .venv/installed
	$(BIN)/python -m eamb.readers.demo --root data/demo
	$(BIN)/python main.py evaluate --dataset demo --checkpoint $(SHIPPED) --output runs/demo/before --force
	$(BIN)/python main.py train --dataset demo --weights $(SHIPPED) --output runs/demo --force
	$(BIN)/python main.py predict data/demo/images/rocket_whole_none_0.jpg data/demo/images/rocket_whole_noise_?.jpg \
	    --checkpoint runs/demo/best.pt --maps runs/demo/maps --force
	@echo
	@echo "data set    data/demo (contact_sheet.png shows it; its labels are synthetic)"
	@echo "network     runs/demo/best.pt, curves.png, metrics.jsonl"
	@echo "evaluation  runs/demo/before and, after the training, runs/demo/test: predictions.csv, metrics.json"
	@echo "maps        runs/demo/maps, of the photographs scored above: the same one with ever more noise"
	@echo "SRCC        $$($(call srcc,before)) for the shipped network, $$($(call srcc,test)) after the training"

test: .venv/installed-dev
	$(BIN)/python -m pytest

# Without AVX, where OpenVINO cannot run our resizes, and with AVX2 alone.
test-portable: .venv/installed-dev
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/python -m pytest -m 'portable and not slow' \
	    --ignore tests/test_export.py --ignore tests/test_exported.py
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -m 'portable and not slow'

test-pages: .venv/installed-dev
	$(BIN)/python -m pytest -n 0 -m slow tests/test_page_browser.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 0 tests/test_layers.py tests/test_docs.py -k 'not worked_examples and not commands'

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt requirements-photos.txt requirements-cluster.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv runs data
