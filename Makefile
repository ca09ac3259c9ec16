# make reproduce   install, then the whole comparison on the mini track
# make test        everything that must hold before a commit
# make test-fast   the part of it that needs no torch: data, numbers, params
# make lab         the notebooks in JupyterLab
# make lock        .requirements.lock anew, from what the index has today

PYTHON ?= python3
VENV ?= .venv
PARAMS ?= params/mini.yaml
# and params/accelerate/requirements.txt, for ZeRO-3
REQUIREMENTS ?= requirements.txt
LOCK := .requirements.lock
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# no network: what is asked of a hub fails
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
# files of tests at the same time
WORKERS ?= 2
INSTALLED := $(VENV)/.installed
FAST := $(patsubst %,tests/test_%.py, chain claims compare footage golden markup params \
	paths prompts questions readme records reward_stages rewards seed_bench sketches stats)

.PHONY: install lock reproduce test test-fast lab clean

install: $(INSTALLED)

# torch comes first and without a hash: its builds for CPU and CUDA have others.
$(INSTALLED): $(REQUIREMENTS) $(LOCK)
	@$(PYTHON) lib/__init__.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) "pip>=26"
	$(PIP) --no-deps $$(grep "^torch==" requirements.txt)
	$(PIP) $(patsubst %,-r %,$(REQUIREMENTS)) --constraint $(LOCK)
	touch $@

lock:
	@$(PYTHON) lib/__init__.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep "^uv==" requirements.txt)
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes --no-annotate --custom-compile-command "make lock" \
		--output-file $(LOCK) requirements.txt params/accelerate/requirements.txt
	$(BIN)/python -m tests.platforms

reproduce: install
	$(BIN)/python -m lib.run $(PARAMS)

# nbval runs the notebooks with their defaults, which write outputs/smoke.
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) -n $(WORKERS) --dist loadfile -m "not slow and not alone"
	$(PYTEST) -m "alone and not slow"
	rm -rf outputs/smoke
	$(PYTEST) --nbval-lax --nbval-current-env \
		--nbval-cell-timeout 300 notebooks

test-fast: install
	$(BIN)/ruff check .
	$(PYTEST) -n $(WORKERS) --dist loadfile $(FAST)

lab: install
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf outputs/smoke .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
