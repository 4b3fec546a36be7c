# make demo    environment, sample data, training, inference, evaluation: the whole job in a few minutes
# make test    the test suite
# make demo-video    from videos to a page that one can click at: samples, features, training, proposals
# PYTHON=python3.12 takes another interpreter; VENV=none uses the environment of PYTHON as it is (Ascend images).
# CONSTRAINTS=none installs the newest versions that requirements.txt allows, and not those that CI runs.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
DEMO_VIDEOS ?= 160
DEMO_EPOCHS ?= 6
CLIPS ?= 160
CLIP_EPOCHS ?= 10
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
READY_VIDEO :=
else
RUN := $(abspath $(VENV))/bin/python
PINS := $(filter-out none,$(CONSTRAINTS))
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check $(addprefix -c ,$(PINS))
READY := $(VENV)/.ready
READY_TEST := $(VENV)/.ready-test
READY_VIDEO := $(VENV)/.ready-video
endif

.PHONY: demo demo-video test test-quick test-legacy test-matrix lint bench clean

demo: $(READY)
	mkdir -p demo
	$(RUN) tools/make_sample_data.py --output demo/data --videos $(DEMO_VIDEOS)
	cd demo && $(RUN) ../main.py --mode full --train_epochs $(DEMO_EPOCHS) --batch_size 8
	@echo "The files are under demo/: output/report.html is the one to open."

demo-video: $(READY_VIDEO)
	$(RUN) tools/make_sample_videos.py --output demo-video --videos $(CLIPS)
	$(RUN) tools/extract_features.py demo-video/videos --backbone demo-video/backbone --snippet_stride 4 \
		--output demo-video/features
	$(RUN) tools/prepare_features.py --input demo-video/features --output demo-video/data --temporal_scale 50
	cd demo-video && $(RUN) ../main.py --mode full --data_path data --feat_dim 192 --temporal_scale 50 \
		--video_anno anno.json --train_epochs $(CLIP_EPOCHS) --batch_size 8 --videos videos
	cd demo-video && $(RUN) ../tools/predict.py videos/sample_$$(printf %03d $$(($(CLIPS) - 1))).mp4 \
		--video_anno anno.json --page page.html
	@echo "The files are under demo-video/: page.html is the one to open, output/report.html the report of the run."

test: $(READY_TEST)
	$(RUN) -m pytest $(PYTEST_ARGS)

test-quick: $(READY_TEST)
	$(RUN) -m pytest test/unit $(PYTEST_ARGS)

test-legacy: $(READY_TEST)
	PYTHON="$(RUN)" bash test/legacy.sh

# Every PyTorch at which the code forks and every Python that is here: an hour, and some 30 GB under .matrix/
test-matrix: $(READY_TEST)
	$(RUN) test/matrix.py $(MATRIX_ARGS)

lint: $(READY_TEST)
	$(RUN) -m ruff check .
	PATH="$(dir $(RUN)):$$PATH" shellcheck -x $$(git ls-files '*.sh' .ci/run)

# REFERENCE: a clone of github.com/JJBOY/BMN-Boundary-Matching-Network at a92c1d7
bench: $(READY)
	$(RUN) benchmarks/all.py --reference "$(REFERENCE)"

clean:
	rm -rf demo demo-video test/output .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

# The environment: made once, again when a requirements file changes. The file is written last.
$(VENV)/.ready: requirements.txt $(PINS)
	$(PYTHON) -m venv $(VENV)
	@echo "$(INSTALL) -r requirements.txt"
	@$(INSTALL) -r requirements.txt 2>$(VENV)/pip.log || { cat $(VENV)/pip.log >&2; \
	if grep -qE '(distribution found for|Cannot install) torch' $(VENV)/pip.log; then \
		echo "error: pip finds no PyTorch for $$($(PYTHON) -V)." "$$(sed -n 's/^# //p;q' constraints.txt)" \
		"Give one of these with PYTHON=python3.12, try the newest PyTorch with CONSTRAINTS=none," \
		"or use an environment that has PyTorch with VENV=none PYTHON=..." >&2; fi; exit 1; }
	touch $@

$(VENV)/.ready-video: $(VENV)/.ready requirements-video.txt
	$(INSTALL) -r requirements-video.txt
	touch $@

$(VENV)/.ready-test: $(VENV)/.ready requirements-test.txt requirements-video.txt
	$(INSTALL) -r requirements-test.txt
	touch $@
