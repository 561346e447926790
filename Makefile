# Every target is a task, not a file; the stamps in .venv record what is installed.
.PHONY: help denoise test test-all train simulate export ship quality gallery example bench record \
    check clean

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
#: FRAMES  file or folder that `make denoise` denoises
FRAMES ?= deploy/examples/frames.h5
#: DATA    folder of the training data
DATA   ?= data/graphene
#: OUT     folder of weights, exports and measurements
OUT    ?= outputs
#: SPLIT   folder of the fixed test frames of `make quality`
SPLIT  ?= data/testset
#: EPOCHS  how long `make train` trains
EPOCHS ?= 2
#: ARGS    further options of the command, such as ARGS="--model cafcn --overwrite"
ARGS   ?=

# As written, so that names with blanks, quotes or $ reach the shell unchanged.
override FRAMES := $(value FRAMES)
export FRAMES

TESTS = $(BIN)/python -m pytest tests -n logical --maxprocesses 8 --dist worksteal

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12
	@echo
	@echo "Variables, given as in: make denoise FRAMES=\"my data/movie.dm4\""
	@sed -n 's/^#: \([A-Z]*\) */\1	/p' $(MAKEFILE_LIST) | expand -t 12

denoise: $(VENV)/.deploy  ## Denoise FRAMES (default: the example) into a file and a picture beside it
	@$(BIN)/emdn-deploy denoise "$$FRAMES" --preview "$$(dirname "$$FRAMES")" $(ARGS)

test: $(VENV)/.dev  ## Install what the tests need and run all but the slow ones
	$(TESTS) -m "not slow" $(ARGS)

test-all: $(VENV)/.test-all  ## Install what the slow tests compare with too, and run all
	$(TESTS) $(ARGS)

train: $(VENV)/.train  ## Fit the seven models for EPOCHS on DATA (simulated first if missing)
	@test -e $(DATA)/train/graphene_img_clean.h5 || { \
	    echo "first simulates $(DATA): 1.2 GB, about a minute"; \
	    echo "then fits: 15 to 30 minutes of one core for 2 epochs"; \
	    $(MAKE) simulate; }
	$(BIN)/emdn-train fit --data $(DATA) --out $(OUT) --epochs $(EPOCHS) $(ARGS)

simulate: $(VENV)/.train  ## Simulate a small data set in DATA
	$(BIN)/emdn-train simulate $(DATA) --frames 2048 --workers 2

export: $(VENV)/.train  ## Convert OUT/em_denoise_model.h5 to ONNX in OUT/onnx
	$(BIN)/emdn-train export $(OUT)/em_denoise_model.h5 --out $(OUT)/onnx $(ARGS)

ship: $(VENV)/.train  ## Export OUT/em_denoise_model.h5 into the package, calibrate --sigma, and measure
	$(BIN)/emdn-train export $(OUT)/em_denoise_model.h5 --out models/emdn_models/weights --half $(ARGS)
	$(BIN)/emdn-train calibrate $(ARGS)
	$(MAKE) quality

quality: $(VENV)/.train  ## Measure every shipped model on the fixed test split in SPLIT; tables in OUT/quality
	@test -e $(SPLIT)/test || $(BIN)/emdn-train testset $(SPLIT) --multislice tests/data/multislice.h5
	$(BIN)/emdn-train quality $(SPLIT) --save $(OUT)/quality $(ARGS)

gallery: $(VENV)/.train  ## Draw what the simulator makes into train/gallery.png
	$(BIN)/python -m benchmarks.pictures gallery train/gallery.png

example: $(VENV)/.train  ## Simulate deploy/examples/frames.h5 and its truth.h5 again
	$(BIN)/emdn-train simulate data/example --kind movie --frames 16 --dose-e-per-a2 8000 8000 \
	    --pixel-size-nm 0.01 0.01 --seed 0
	cp data/example/movie.h5 deploy/examples/frames.h5
	$(BIN)/python deploy/examples/make_truth.py data/example/movie_truth.h5 deploy/examples/truth.h5

bench: $(VENV)/.dev  ## Time every shipped model, beside others; tables in benchmarks/results
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-quiet $(ARGS)

record: $(VENV)/.train  ## Run the em_denoise benchmark: one line, and OUT/record/record.json, to compare machines by
	$(BIN)/emdn-train benchmark data/record --out $(OUT)/record $(ARGS)

check: $(VENV)/.check  ## Lint, format and strict types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:  ## Remove the environment and everything that commands made, but not DATA and OUT
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.deploy: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.train: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	@touch $@ $(VENV)/.deploy

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	@touch $@ $(VENV)/.train $(VENV)/.deploy

$(VENV)/.check: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[check]'
	@touch $@ $(VENV)/.train $(VENV)/.deploy

$(VENV)/.test-all: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test-all]'
	@touch $@ $(VENV)/.dev $(VENV)/.train $(VENV)/.deploy
