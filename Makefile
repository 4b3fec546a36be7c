# make demo    environment, sample data, training, inference, evaluation: the whole job in a few minutes
# make test    the test suite
# PYTHON=python3.12 takes another interpreter; VENV=none uses the environment of PYTHON as it is (Ascend images).

PYTHON ?= python3
VENV ?= .venv
DEMO_VIDEOS ?= 160
DEMO_EPOCHS ?= 6
PYTEST_ARGS ?=

ifneq ($(words $(VENV)),1)
$(error VENV is "$(VENV)": give the name of a folder, without spaces, or none)
endif
ifeq ($(VENV),none)
RUN := $(abspath $(shell command -v "$(PYTHON)"))
ifeq ($(RUN),)
$(error there is no program PYTHON=$(PYTHON): give the interpreter that has PyTorch)
endif
READY :=
READY_TEST :=
else
RUN := $(abspath $(VENV))/bin/python
READY := $(VENV)/.ready
READY_TEST := $(VENV)/.ready-test
endif

.PHONY: demo test test-quick test-legacy lint bench clean

demo: $(READY)
	mkdir -p demo
	$(RUN) tools/make_sample_data.py --output demo/data --videos $(DEMO_VIDEOS)
	cd demo && $(RUN) ../main.py --mode full --train_epochs $(DEMO_EPOCHS) --batch_size 8
	@echo "The files are under demo/: output/report.html is the one to open."

test: $(READY_TEST)
	$(RUN) -m pytest $(PYTEST_ARGS)

test-quick: $(READY_TEST)
	$(RUN) -m pytest test/unit $(PYTEST_ARGS)

test-legacy: $(READY_TEST)
	PYTHON="$(RUN)" bash test/legacy.sh

lint: $(READY_TEST)
	$(RUN) -m ruff check .
	PATH="$(dir $(RUN)):$$PATH" shellcheck -x $$(git ls-files '*.sh' .ci/run)

# REFERENCE: a clone of github.com/JJBOY/BMN-Boundary-Matching-Network at a92c1d7
bench: $(READY)
	$(RUN) benchmarks/all.py --reference "$(REFERENCE)"

clean:
	rm -rf demo test/output .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

# The environment: made once, again when a requirements file changes. The file is written last.
$(VENV)/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else \
	"Python 3.10 to 3.13 is needed, $(PYTHON) is %d.%d: give another with PYTHON=..., or VENV=none to use an environment that has PyTorch" % v)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.ready-test: $(VENV)/.ready requirements-test.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@
