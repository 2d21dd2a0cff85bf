# make demo    toy models (checkpoints/toy) side by side on a generated video
# make test    lint, types and the default tests, with the compiled op where there is a compiler
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
export DETECTRON2_DATASETS ?= datasets
DEMO := output/demo

# A video of the occluded level: its seed and its number.
DEMO_SEED ?= 0
DEMO_VIDEO ?= val_0000

.PHONY: help install ops demo demo-train test lint test-slow test-gpu bench clean

help:
	@sed -n 's/^# make/make/p' Makefile

# constraints.txt pins the versions that the tests are run with.
$(VENV)/.installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	@touch $@

# make install    virtual environment in .venv with all dependencies
install: $(VENV)/.installed

# make ops    compile the deformable attention op where a compiler is at hand (optional)
ops: install
	PYTHON=$(abspath $(RUN)) sh mask2former/modeling/pixel_decoder/ops/make.sh

# make lint    ruff and mypy
lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: lint ops
	$(RUN) -m pytest

# make test-slow    the tests marked slow
test-slow: install
	$(RUN) -m pytest -m "slow and not gpu"

# make test-gpu    the tests marked gpu
test-gpu: install ops
	$(RUN) -m pytest -m gpu

# make bench    time and memory of everything, on the GPU if there is one (half an hour on two cores);
#               VIDEO=clip.mp4 also from the file to the masks
bench: install ops
	mkdir -p output/bench
	$(RUN) benchmarks/ms_deform_attn.py
	$(RUN) benchmarks/run.py inference --json output/bench/inference.json
	$(RUN) benchmarks/run.py pair inference --b MODEL.MASK_FORMER.TEST.PRECISION=auto --json output/bench/precision.json
	$(RUN) benchmarks/run.py memory --modes online offline --frames 20 120 --repeats 1 --json output/bench/memory.json
	$(RUN) benchmarks/run.py training --json output/bench/training.json
	$(RUN) benchmarks/run.py profile inference --modes online
	$(RUN) benchmarks/run.py profile training --modes online offline
	$(if $(VIDEO),$(RUN) benchmarks/run.py end-to-end --input $(VIDEO) --json output/bench/end_to_end.json)

demo: install
	$(RUN) datasets/generate_toy.py --level occluded --num-train 0 --num-val 10 --seed $(DEMO_SEED) \
		--output $(DEMO)/toy_occluded_$(DEMO_SEED)
	$(RUN) demo/compare.py --input $(DEMO)/toy_occluded_$(DEMO_SEED)/val/JPEGImages/$(DEMO_VIDEO) \
		--truth $(DEMO)/toy_occluded_$(DEMO_SEED)/val.json --scale 3 --fps 6 \
		--output $(DEMO)/side_by_side.mp4 --gif $(DEMO)/side_by_side.gif --json $(DEMO)/scores.json

# make demo-train    data, training of a small MinVIS, evaluation, overlay video: from nothing, within minutes
demo-train: install ops
	$(RUN) datasets/generate_toy.py --output $(DETECTRON2_DATASETS)/toy
	$(RUN) train_net_video.py --config-file configs/toy/MinVIS_toy.yaml --resume OUTPUT_DIR $(DEMO)
	$(RUN) train_net_video.py --config-file configs/toy/MinVIS_toy.yaml --eval-only \
		OUTPUT_DIR $(DEMO) MODEL.WEIGHTS $(DEMO)/model_final.pth
	$(RUN) demo/demo.py --config-file configs/toy/MinVIS_toy.yaml \
		--scale 4 --input "$$(ls -d $(DETECTRON2_DATASETS)/toy/val/JPEGImages/* | head -n 1)" \
		--output $(DEMO)/overlay.mp4 --opts MODEL.WEIGHTS $(DEMO)/model_final.pth

# make clean    remove the virtual environment and what make demo wrote (not the data)
clean:
	rm -rf $(VENV) $(DEMO)
