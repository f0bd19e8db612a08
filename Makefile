# Start here: `make train-classifier`, `make train-segmenter`, `make detect`, `make test`. Each target installs what it needs.
#
#   DATA=FOLDER        radiographs (DICOM, PNG or JPEG) with a label csv, or a prepared folder; default: phantoms
#   PATIENTS=TABLE     the patient of each image, where no such table is found in DATA or beside it
#   EXPERIMENT=FILE    what to train; default: the demo
#   PREPARED=FOLDER    where DATA's radiographs are prepared; default: data/prepared/<name of DATA>. make detect searches
#                      data/prepared for the folder that the runs were trained on
#   OUT=FOLDER         the run folder; default: runs/<experiment>
#   CLASSIFIER=RUN SEGMENTER=RUN    the runs that make detect joins; default: the demos' runs
#   DETECTOR=FOLDER    an existing detector for make detect
#   START_FROM=RUN     a run whose weights are the start, for example of a smaller image size
#   SET="NAME=VALUE ..."    settings of the experiment that are to be others, such as SET="epochs=5 learning_rate=3e-4"
#
# An interrupted training goes on when the same command is started again.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GPU := $(shell nvidia-smi -L 2>/dev/null)

# Every file that is installed has its SHA-256 in constraints.txt (PyPI's; constraints-gpu.txt holds what a GPU needs
# beside). HASHES= installs the same versions without comparing, for a mirror that builds its own files.
HASHES ?= --require-hashes

# Six times SIIM's areas: at the demos' image sizes the median pneumothorax would otherwise have about a hundred pixels.
PHANTOMS := data/phantom
PHANTOM_OPTIONS := --images 900 --seed 0 --size-scale 6
EXPERIMENT ?= experiments/demo_classifier.py
train-segmenter torch-segmenter: EXPERIMENT := experiments/demo_segmenter.py
OPTIONS = $(if $(OUT),--out "$(OUT)") $(if $(PREPARED),--prepared "$(PREPARED)") $(if $(PATIENTS),--patients "$(PATIENTS)") $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(START_FROM),--start-from "$(START_FROM)") $(foreach setting,$(SET),--set $(setting))

.PHONY: help setup setup-torch train-classifier train-segmenter torch-classifier torch-segmenter fastai-classifier slurm-classifier slurm-segmenter detect test test-slow parity planted-faults compare-frameworks docs notebooks screenshots lint doctor wheel-check lowest compare bench bench-docs kills fuzz audit sbom lock clean

help:
	@echo "make train-classifier   train, predict, score; prints the path of report.html (DATA= EXPERIMENT= OUT=)"
	@echo "make train-segmenter    the same for the outline of the pneumothorax"
	@echo "make detect             joins both and answers for the radiographs in DATA= (CLASSIFIER= SEGMENTER= or DETECTOR=; DICOM=1)"
	@echo "make torch-classifier   the other team: PyTorch, same experiment, prepared folder and starting weights;"
	@echo "                        make torch-segmenter, make fastai-classifier (DATA=prepared folder EXPERIMENT= OUT=)"
	@echo "make slurm-classifier   submit a training to Slurm (NODES= DATA=prepared folder EXPERIMENT= OUT=); slurm-segmenter too"
	@echo "make compare            score submissions side by side (DATA=folder of submissions TRUTH= OUT=)"
	@echo "make test               the fast tests; make test-slow the others"
	@echo "make kills              kills each command at random moments: does the same line then give the same result? (N= ONLY=)"
	@echo "make parity             compares Keras with PyTorch, check by check; PyTorch has an environment of its own (5 GB with CUDA)"
	@echo "make planted-faults     plants some fifty faults, one at a time, and says at which check each is found (RESUME=1)"
	@echo "make compare-frameworks trains both teams with several seeds: are they equivalent? (DATA= EXPERIMENT= SEEDS= MARGIN=)"
	@echo "make bench              measures speed and memory against PyTorch and others (ONLY= OUT= GROWTH=)"
	@echo "make fuzz               mutated files, for MINUTES= (default 30): counts, and what was found"
	@echo "make audit              known weaknesses of the pinned packages; make sbom: a bill of materials (CycloneDX)"
	@echo "make docs               the documentation site, in build/site; make notebooks runs the notebooks (NOTEBOOKS=)"
	@echo "make screenshots        pictures of the demos' pages, or of PAGES=, to be looked at: four widths, dark, printed"
	@echo "make lint               style, types and import rules"
	@echo "make wheel-check        builds the wheel and uses it outside the checkout (PYTHONS=3.11,3.12,3.13 TRAIN=)"
	@echo "make lowest             tests with the lowest versions that setup.cfg allows"
	@echo "make doctor             what this machine has and lacks"

# install PYTHON, FILES: from files of pinned versions, by uv; where that is missing or cannot (behind a mirror that only
# pip knows), by pip. Without HASHES they are taken out for pip, since pip compares any that it sees. Both show their
# progress in a terminal, and are quiet in a log.
TOOLS := .venv-tools
UV := $(TOOLS)/bin/uv
QUIET = $(if $(MAKE_TERMOUT),,--quiet)
PIP = -m pip install $(QUIET)
define install
@echo "   $$(sed -nE 's/^([A-Za-z0-9][^= ]*)==.*/\1/p' $(2) | sort -u | grep -c .) packages $(if $(HASHES),that have these hashes,without comparing hashes): $(2)"
@if test -x $(UV) && $(UV) pip install $(QUIET) --python $(1) $(or $(HASHES),--no-verify-hashes) $(foreach file,$(2),-r $(file)); then :; else \
  echo "   uv is missing or could not: pip tries, with its own settings"; \
  $(if $(HASHES),$(1) $(PIP) $(HASHES) $(foreach file,$(2),-r $(file)),\
    cat $(2) | sed -e 's/ \\$$//' -e '/^ *--hash/d' > $(VENV).pins && $(1) $(PIP) -r $(VENV).pins && rm $(VENV).pins); fi
endef

# uv has its versions and hashes in constraints-tools.txt, as the tools of audit and sbom, and an environment of theirs.
# UV= names one that is there already.
$(UV): constraints-tools.txt
	$(require_python)
	@{ test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS); } && awk '/^[^ ]/ { keep = /^uv==/ } keep' $< > $(TOOLS)/uv.txt \
	  && $(TOOLS)/bin/python $(PIP) --require-hashes -r $(TOOLS)/uv.txt && touch $@ || echo "   uv cannot be installed; it is only faster"

define require_python
@test -n "$(PYTHON)" || { echo "No Python was found. Install Python 3.11, 3.12 or 3.13."; exit 2; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "$(PYTHON) is older than Python 3.11. Install a newer one, or name it: make PYTHON=..."; exit 2; }
endef

setup: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt constraints-gpu.txt | $(UV)
	$(require_python)
	@echo "Set-up 1 of 3: an environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Set-up 2 of 3: TensorFlow and the other packages$(if $(GPU), with CUDA), half a minute to five minutes"
	$(call install,$(BIN)/python,constraints.txt $(if $(GPU),constraints-gpu.txt))
	@echo "Set-up 3 of 3: keras-pneumo itself"
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# TensorFlow and the CUDA build of torch crash in one process, so PyTorch has an environment of its own. On Linux, PyPI's
# torch is the CUDA build: some 5 GB. Where no GPU is seen, torch and torchvision are PyTorch's CPU build of the same
# version, from PyTorch's own index, and what only CUDA needs is left out; where that index cannot be reached, PyPI's.
# The CPU builds are compared with hashes where constraints-cpu.txt has them (make lock writes it where the index can be
# reached). TORCH_BUILD=cuda or cpu chooses.
TORCH := .venv-torch
TORCH_PINS := experiments/torch_team/constraints.txt
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_CPU_PINS := experiments/torch_team/constraints-cpu.txt
TORCH_BUILD := $(if $(GPU),cuda,$(if $(filter Linux,$(shell uname -s)),cpu,cuda))
setup-torch: $(TORCH)/.ready

$(TORCH)/.ready: $(TORCH_PINS) | $(UV)
	@echo "Set-up of PyTorch 1 of 3: an environment in $(TORCH)"
	@test -x $(TORCH)/bin/python || $(PYTHON) -m venv $(TORCH)
	@cp $< $(TORCH)/pins.txt
ifeq ($(TORCH_BUILD),cpu)
	@echo "Set-up of PyTorch 2 of 3: no GPU is seen, so PyTorch's CPU build is asked for (TORCH_BUILD=cuda: CUDA's)"
	@test -f $(TORCH_CPU_PINS) && cp $(TORCH_CPU_PINS) $(TORCH)/cpu.txt \
	  || sed -nE 's/^(torch|torchvision)==([^ +]+).*/\1==\2+cpu/p' $< > $(TORCH)/cpu.txt
	@if $(TORCH)/bin/python $(PIP) --no-deps --retries 1 --timeout 15 --index-url $(TORCH_CPU_INDEX) -r $(TORCH)/cpu.txt 2>$(TORCH)/cpu.log; then \
	  awk '/^[^ ]/ { keep = !/^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/ } keep' $< > $(TORCH)/pins.txt; \
	  else echo "   $(TORCH_CPU_INDEX) has it not, or cannot be reached: PyPI's build is installed, some 5 GB"; fi
else
	@echo "Set-up of PyTorch 2 of 3: PyPI's build (TORCH_BUILD=cpu: PyTorch's CPU build)"
endif
	@echo "Set-up of PyTorch 3 of 3: the other packages, one to ten minutes"
	$(call install,$(TORCH)/bin/python,$(TORCH)/pins.txt)
	@touch $@

# phantom and prepare do nothing where their files exist already.
train-classifier train-segmenter: $(READY)
ifdef DATA
	$(BIN)/keras-pneumo train "$(EXPERIMENT)" --data "$(DATA)" $(OPTIONS)
else
	$(BIN)/keras-pneumo phantom $(PHANTOMS) $(PHANTOM_OPTIONS)
	$(BIN)/keras-pneumo train "$(EXPERIMENT)" --data $(PHANTOMS) $(OPTIONS)
endif

# The other team reads the prepared folder and the experiment, and starts from the weights that Keras draws from the seed.
# EXPERIMENT may be a run: its experiment is then repeated, not continued. COMPILE=1 compiles the network by torch.compile.
# OMP_WAIT_POLICY: without it PyTorch's waiting threads keep shared cores busy; a step then took four times the CPU time.
# MALLOC_*: the C library keeps freed memory, which on a CPU is worth 1.2 to 1.6 to PyTorch.
TEAM_DATA = $(or $(DATA),$(PREPARED),data/prepared/$(notdir $(PHANTOMS)))
TEAM_OUT = $(or $(OUT),runs/$(subst -,_,$@))
TEAM_EXPERIMENT = $(or $(wildcard $(EXPERIMENT)/experiment.json),$(EXPERIMENT))
TEAM_ENVIRONMENT = OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296
torch-classifier torch-segmenter: INIT = --init "$(TEAM_OUT)/start.safetensors" $(if $(COMPILE),--compile)
torch-segmenter: MASKS = --masks "$(BIN)/keras-pneumo masks"
torch-classifier torch-segmenter fastai-classifier: $(READY) $(TORCH)/.ready
	@test -f "$(TEAM_DATA)/manifest.json" || { echo "There is no prepared folder $(TEAM_DATA). Run make $(if $(filter %segmenter,$@),train-segmenter,train-classifier) first, or name one: make $@ DATA=..."; exit 2; }
	@test ! -e "$(TEAM_OUT)/submission" || { echo "$(TEAM_OUT) holds a submission already. Choose another OUT=, or remove it; nothing was changed."; exit 2; }
	@rm -f "$(TEAM_OUT)/start.safetensors"
	$(BIN)/keras-pneumo export "$(TEAM_EXPERIMENT)" --out "$(TEAM_OUT)/start.safetensors" $(if $(WEIGHTS),--weights "$(WEIGHTS)")
	$(TEAM_ENVIRONMENT) $(TORCH)/bin/python experiments/torch_team/$(subst -,_,$(patsubst torch-%,%,$@)).py --experiment "$(TEAM_OUT)/start.safetensors" $(INIT) $(MASKS) --data "$(TEAM_DATA)" --out "$(TEAM_OUT)"

# On a cluster's login node. SBATCH_* and KERAS_PNEUMO_* variables are passed on; see experiments/slurm/train.sh.
NODES ?= 1
SBATCH ?= sbatch
slurm-classifier: EXPERIMENT := $(if $(filter file default,$(origin EXPERIMENT)),experiments/resnet50_512.py,$(EXPERIMENT))
slurm-segmenter: EXPERIMENT := $(if $(filter file default,$(origin EXPERIMENT)),experiments/albunet_512.py,$(EXPERIMENT))
slurm-classifier slurm-segmenter:
	@test -f "$(DATA)/manifest.json" || { echo "Name a prepared folder on a disk that all nodes share: make $@ DATA=data/prepared/siim (keras-pneumo prepare makes it)."; exit 2; }
	$(SBATCH) --nodes=$(NODES) experiments/slurm/$(if $(filter 1,$(NODES)),one_node,several_nodes).sbatch "$(EXPERIMENT)" "$(DATA)" $(if $(OUT),"$(OUT)")

# Without DATA: the demo's runs, which are those on the phantoms' split.
compare: $(READY)
	$(BIN)/keras-pneumo compare $(if $(DATA),"$(DATA)",runs --this-split) --truth "$(or $(TRUTH),data/prepared/$(notdir $(PHANTOMS)))" --out "$(or $(OUT),runs/compare)"

# Joins the two runs on the data they were trained on, and again when one was trained again. DETECTOR= is used as it is.
# Radiographs that were set aside, as the command says (its exit code 1), are no error of make.
CLASSIFIER ?= runs/demo_classifier
SEGMENTER ?= runs/demo_segmenter
JOINED := runs/detector-$(notdir $(CLASSIFIER:/=))+$(notdir $(SEGMENTER:/=))
RADIOGRAPHS = $(or $(DATA),$(PHANTOMS))

detect: $(READY) $(if $(DETECTOR),,$(JOINED)/detector.json)
	$(BIN)/keras-pneumo detect "$(or $(DETECTOR),$(JOINED))" "$(RADIOGRAPHS)" --out "$(or $(OUT),runs/detect-$(notdir $(RADIOGRAPHS:/=)))" $(if $(DICOM),--dicom --make-uids) || { code=$$?; test $$code -eq 1 || exit $$code; }

$(JOINED)/detector.json: $(CLASSIFIER)/experiment.json $(SEGMENTER)/experiment.json | $(READY)
	rm -rf $(@D)
	$(BIN)/keras-pneumo join $(CLASSIFIER) --segmenter $(SEGMENTER) --data "$(or $(PREPARED),data/prepared)" --out $(@D)

$(CLASSIFIER)/experiment.json $(SEGMENTER)/experiment.json:
	@echo "There is no $(@D): run make train-classifier and make train-segmenter first, or name others with CLASSIFIER= and SEGMENTER=."; exit 2

# Both teams, SEEDS trainings each, from the same weights; interrupted, it goes on. MARGIN: see docs/pytorch.md.
SEEDS ?= 5
compare-frameworks: $(READY) $(TORCH)/.ready
	$(if $(DATA),,$(BIN)/keras-pneumo phantom $(PHANTOMS) $(PHANTOM_OPTIONS))
	$(BIN)/keras-pneumo compare-frameworks "$(EXPERIMENT)" --data "$(or $(DATA),$(PHANTOMS))" --seeds $(SEEDS) $(if $(MARGIN),--margin $(MARGIN)) --torch-python $(TORCH)/bin/python $(if $(OUT),--out "$(OUT)") $(if $(PREPARED),--prepared "$(PREPARED)") $(if $(PATIENTS),--patients "$(PATIENTS)") $(if $(WEIGHTS),--weights "$(WEIGHTS)")

doctor: $(READY)
	$(BIN)/keras-pneumo doctor

# The wheel, outside the checkout, on each of PYTHONS; those of TRAIN also get TensorFlow and train. All of both by
# default. BORROW=.venv reads TensorFlow from that environment, which saves its 2 GB (for TRAIN of the same Python only).
PYTHONS ?= 3.11,3.12,3.13
TRAIN ?= $(PYTHONS)
wheel-check: $(READY)
	@folder=$$(mktemp -d) && $(BIN)/python tests/wheel_check.py --out $$folder --pythons "$(PYTHONS)" --train "$(TRAIN)" --uv "$(UV)" $(if $(BORROW),--borrow "$(BORROW)"); \
	code=$$?; rm -rf $$folder; exit $$code

test: $(READY)
	$(BIN)/python -m pytest -n 2 --ignore=tests/parity/pytorch

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 -m slow --ignore=tests/parity/pytorch

# Kills each command N times at random moments, runs the same line again, and compares with an unbroken run.
# ONLY names some commands, separated by commas (prepare,train,predict,join,detect,compare,explain).
N ?= 30
kills: $(READY)
	PYTHONPATH="$(CURDIR)" $(BIN)/python tests/kill_lab.py --kills $(N) --out "$(or $(OUT),runs/kills)" $(if $(ONLY),--only "$(ONLY)") $(if $(SEED),--seed $(SEED))

# The tests, then the ladder from pixels to scores. It also reads real radiographs where they are on this machine.
PARITY_DATA := $(wildcard ../shared/siim_mini)
parity: export KERAS_PNEUMO_TORCH_PYTHON := $(abspath $(TORCH))/bin/python
parity: export OMP_WAIT_POLICY := PASSIVE
parity: $(READY) $(TORCH)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow" tests/parity/pytorch
	$(BIN)/keras-pneumo parity --out "$(or $(OUT),runs/parity)" $(addprefix --data ,$(or $(DATA),$(PARITY_DATA)))

# Each fault of tests/parity/pytorch/planted_faults.py alone in a copy of the code; writes planted_faults.md and .json.
# RESUME=1 leaves out what the code as it stands was asked already; ONLY names some faults, separated by commas.
planted-faults: export KERAS_PNEUMO_TORCH_PYTHON := $(abspath $(TORCH))/bin/python
planted-faults: $(READY) $(TORCH)/.ready
	$(BIN)/python tests/parity/pytorch/planted.py --out "$(or $(OUT),runs/planted_faults)" --only "$(ONLY)" $(if $(RESUME),--resume)

# Speed and memory against what one would otherwise run: docs/benchmarks.md. ONLY is a file of experiments/benchmarks or
# part of a row's name; GROWTH are the factors of the rows of growth; RESUME=1 leaves out what this commit was measured for.
# Without PyTorch's environment (make setup-torch) its rows say so. bench-docs writes the docs' table from bench.json.
GROWTH ?= 1,10,100
BENCH_OUT = $(or $(OUT),runs/bench)
bench: export KERAS_PNEUMO_TORCH_PYTHON := $(abspath $(TORCH))/bin/python
bench: $(READY)
	-test ! -x $(TORCH)/bin/python || $(TORCH)/bin/python -m pip install --quiet --require-hashes -r experiments/benchmarks/constraints.txt
	PYTHONPATH="$(CURDIR)" $(BIN)/python experiments/benchmarks/bench.py --out "$(BENCH_OUT)" --only "$(ONLY)" --growth "$(GROWTH)" $(if $(RESUME),--resume)

bench-docs: $(READY)
	PYTHONPATH="$(CURDIR)" $(BIN)/python experiments/benchmarks/bench.py --out "$(BENCH_OUT)" --table docs/benchmarks.md

# Mutated files, in the pool that commands read files in: counts and finds in OUT=, small finds also in tests/fuzz/corpus.
# ONLY= dicom, texts, weights; BEGIN= the number of the first input, so that another run tries others.
MINUTES ?= 30
fuzz: $(READY)
	TF_CPP_MIN_LOG_LEVEL=3 PYTHONPATH="$(CURDIR):$(CURDIR)/tests" $(BIN)/python -W ignore -m fuzz.run --minutes $(MINUTES) --out "$(or $(OUT),runs/fuzz)" $(if $(ONLY),--only "$(ONLY)") $(if $(BEGIN),--begin $(BEGIN)) $(if $(ONCE),--once)

# Tools of an environment of their own, so that they change nothing of what they look at.
$(TOOLS)/.ready: constraints-tools.txt | $(UV)
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(call install,$(TOOLS)/bin/python,$<)
	@touch $@

# The lowest versions that setup.cfg allows, in an environment of their own: do tests pass that need no TensorFlow? Left
# out are tests of the phantoms' bytes and letters, which OpenCV 4 draws in another font.
LOWEST := .venv-lowest
LOWEST_TESTS := $(addprefix tests/,data/labels data/radiographs evaluation/inputs evaluation/scoring storage)
LOWEST_WITHOUT := bytes_of_images_and_labels or locations_hold_all_that_is_drawn
lowest: $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) $(LOWEST)
	$(UV) pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -r setup.cfg
	$(UV) pip install --quiet --python $(LOWEST)/bin/python pytest pytest-xdist hypothesis
	$(LOWEST)/bin/python -m pytest -n 2 -k "not ($(LOWEST_WITHOUT))" --ignore=tests/evaluation/scoring/test_statistics.py $(LOWEST_TESTS)
	rm -rf $(LOWEST)

PINNED := constraints.txt constraints-gpu.txt experiments/torch_team/constraints.txt constraints-tools.txt constraints-docs.txt
# Known weaknesses of the pinned packages, asked of the network: 3 when it could not be asked.
audit: $(TOOLS)/.ready
	@code=0; for file in $(PINNED); do \
	  $(TOOLS)/bin/pip-audit --progress-spinner off --require-hashes --disable-pip -r $$file > $(TOOLS)/audit.log 2>&1 || code=1; \
	  if grep -qiE 'could not be audited|connection|timed out|proxy|service.*error' $(TOOLS)/audit.log; then \
	    echo "$$file: for $$(grep -c 'could not be audited' $(TOOLS)/audit.log) packages the service that knows of weaknesses could not be asked."; \
	    echo "Run make audit again where PyPI can be reached itself; $(TOOLS)/audit.log has the answers."; exit 3; fi; \
	  echo "$$file:"; cat $(TOOLS)/audit.log; \
	done; exit $$code

# A bill of materials (CycloneDX) of each environment that is installed, in OUT=.
sbom: $(READY) $(TOOLS)/.ready
	@mkdir -p "$(or $(OUT),runs/sbom)"
	$(TOOLS)/bin/cyclonedx-py environment --output-reproducible --of JSON -o "$(or $(OUT),runs/sbom)/keras_pneumo.cdx.json" $(BIN)/python
	test ! -x $(TORCH)/bin/python || $(TOOLS)/bin/cyclonedx-py environment --output-reproducible --of JSON -o "$(or $(OUT),runs/sbom)/torch_team.cdx.json" $(TORCH)/bin/python

# Pins every package again, newest versions, with PyPI's hashes; then read what changed.
LOCK = $(UV) pip compile --quiet --universal --generate-hashes --no-annotate --no-header --upgrade
lock: $(UV)
	$(LOCK) --python-version 3.11 --extra train --extra dev setup.cfg -o constraints.txt
	$(LOCK) --python-version 3.11 --extra gpu --extra dev setup.cfg -c constraints.txt -o $(TOOLS)/gpu.txt
	awk '/^[^ ]/ { keep = /^nvidia-/ } keep' $(TOOLS)/gpu.txt > constraints-gpu.txt
	$(LOCK) --python-version 3.11.5 experiments/torch_team/requirements.txt -o experiments/torch_team/constraints.txt
	$(LOCK) --python-version 3.11.5 experiments/torch_team/requirements.txt experiments/benchmarks/requirements.txt -c experiments/torch_team/constraints.txt -o experiments/benchmarks/constraints.txt
	-sed -nE 's/^(torch|torchvision)==([^ +]+).*/\1==\2+cpu/p' $(TORCH_PINS) | $(LOCK) --no-deps --python-version 3.11.5 --index-url $(TORCH_CPU_INDEX) - -o $(TORCH_CPU_PINS)
	printf 'pip-audit\ncyclonedx-bom\nuv\n' | $(LOCK) --python-version 3.11 - -o constraints-tools.txt
	printf 'mkdocs-material\nmkdocstrings[python]\n' | $(LOCK) --python-version 3.11 - -o constraints-docs.txt

# The site, in build/site, to be read from the disk: any warning or dead link ends it. MkDocs has an environment of its own;
# the page of all commands comes from the program.
DOCS := .venv-docs
$(DOCS)/.ready: constraints-docs.txt | $(UV)
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(call install,$(DOCS)/bin/python,$<)
	@touch $@

docs: $(READY) $(DOCS)/.ready
	PYTHONPATH="$(CURDIR)" $(BIN)/python docs/site/commands.py build/commands.md
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet
	@echo "build/site/index.html"

# Each notebook from its first to its last cell, in a folder that goes afterwards.
NOTEBOOKS ?= notebooks/*.ipynb
notebooks: $(READY)
	work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && cp $(NOTEBOOKS) "$$work" && \
	  PYTHONPATH="$(CURDIR)" $(BIN)/python -m pytest -c setup.cfg --nbmake --nbmake-timeout=600 -p no:cacheprovider "$$work"

# Pictures of pages to look at, by Chromium: four widths, light and dark, and a PDF. PAGES= NAME=FILE_OR_ADDRESS ...
PAGES ?= classifier=$(CLASSIFIER)/report.html segmenter=$(SEGMENTER)/report.html detector=$(JOINED)/board/report.html board=runs/compare/report.html
screenshots: $(READY)
	PYTHONPATH="$(CURDIR)/tests" $(BIN)/python tests/screenshots.py --out "$(or $(OUT),runs/screenshots)" $(PAGES)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(TORCH) $(TOOLS) $(DOCS) $(LOWEST) build *.egg-info
