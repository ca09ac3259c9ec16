# make reproduce   install, then the whole comparison on the mini track
# make test        everything that must hold before a commit
# make lab         the notebooks in JupyterLab

PYTHON ?= python3
VENV ?= .venv
PARAMS ?= params/mini.yaml
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install reproduce test lab clean

install: $(INSTALLED)

$(INSTALLED): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

reproduce: install
	$(BIN)/python -m lib.pipeline $(PARAMS)

# nbval runs the notebooks with their defaults, which write outputs/smoke; no network.
test: export HF_HUB_OFFLINE = 1
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest
	rm -rf outputs/smoke
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env \
		--nbval-cell-timeout 300 notebooks

lab: install
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf outputs/smoke .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
