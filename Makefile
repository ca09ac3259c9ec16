# make reproduce   install, then the whole comparison on the mini track
# make test        everything that must hold before a commit
# make test-fast   the part of it that needs no torch: data, numbers, params
# make lab         the notebooks in JupyterLab

PYTHON ?= python3
VENV ?= .venv
PARAMS ?= params/mini.yaml
BIN := $(VENV)/bin
# files of tests at the same time
WORKERS ?= 2
INSTALLED := $(VENV)/.installed
FAST := $(patsubst %,tests/test_%.py, chain claims compare footage golden markup params \
	paths prompts questions readme records reward_stages rewards seed_bench sketches stats)

.PHONY: install reproduce test test-fast lab clean

install: $(INSTALLED)

$(INSTALLED): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

reproduce: install
	$(BIN)/python -m lib.run $(PARAMS)

# nbval runs the notebooks with their defaults, which write outputs/smoke; no network.
test: export HF_HUB_OFFLINE = 1
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not alone"
	$(BIN)/python -m pytest -m "alone and not slow"
	rm -rf outputs/smoke
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env \
		--nbval-cell-timeout 300 notebooks

test-fast: export HF_HUB_OFFLINE = 1
test-fast: install
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(FAST)

lab: install
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf outputs/smoke .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
