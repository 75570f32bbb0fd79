# Each command sets up what it needs (the first time takes a minute) and then does its job.

PYTHON ?= python3
BOOTSTRAP = $(PYTHON) .ci/bootstrap.py
TORCH_PYTHON ?=
ATTACK_SEED ?= 0
# As many processes as there are cores, but no more than 4; each takes half a gigabyte.
PYTEST = -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: help train train-mpi tags test attack kill-test test-all fuzz bench zoo snippets docs dist environment clean

help:           ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

train: environment  ## train the digits example in Caffe and draw its pictures
	.venv/bin/python examples/digits/solve.py

train-mpi: environment  ## the same on two ranks, by MPI
	.venv/bin/python examples/distributed/train_digits.py

tags: environment   ## the tutorial for one's own images: convert, train, evaluate, deploy, predict
	examples/tags/run.sh

test: environment   ## lint, types and all tests, in real Caffe
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy & types=$$!; .venv/bin/python $(PYTEST) && wait $$types

kill-test: environment  ## resuming after 20 kills at random moments and chosen calls, and 10 of ranks; `make test` tries 5 and 2
	KILLS=20 .venv/bin/python -m pytest -q tests/commands/test_resume.py tests/commands/test_convert.py -k random_moments
	RANK_KILLS=10 .venv/bin/python -m pytest -q tests/parallel/test_training.py -k after_a_kill

attack: environment  ## some minutes of kills, damaged files, signals and hostile layers; ATTACK_SEED=N draws others
	@echo "ATTACK_SEED=$(ATTACK_SEED) draws the same again, but for the moments at which runs are killed."
	ATTACK_SEED=$(ATTACK_SEED) KILLS=60 FLIPS=20000 CASES=4000 HYPOTHESIS_PROFILE=attack .venv/bin/python $(PYTEST) -q \
		--hypothesis-seed=$(ATTACK_SEED) tests/commands/test_resume.py tests/commands/test_snapshots.py \
		tests/commands/test_child.py tests/commands/test_train.py tests/test_files.py tests/losses/test_modes.py \
		tests/losses/test_properties.py

# What another interpreter or NumPy changes shows in any case of a test, so three of each will do; the long tests run
# processes whose every command other tests start as well, and are for the default interpreter.
test-all:       ## three cases of each test on CPython 3.7 and 3.8, and without Caffe on the newest one with NumPy 2
	@set -e; versions="3.7 3.8 $$($(BOOTSTRAP) --find 3.14 3.13 3.12 3.11 3.10)"; \
	$(MAKE) --no-print-directory -j 2 $$(printf 'environment-%s ' $$versions); \
	for version in $$versions; do \
		echo "Tests on CPython $$version"; \
		.venv-$$version/bin/python $(PYTEST) -q -m 'not long' --cases 3; \
	done

fuzz: environment   ## draw 14,000 new cases for the claims that hold for every input
	HYPOTHESIS_PROFILE=fuzz .venv/bin/python -m pytest -q tests/losses/test_properties.py

bench: environment  ## time the layers beside native ones; TORCH_PYTHON=... adds PyTorch, WRITE=1 writes the tables here
	.venv/bin/python examples/benchmark/benchmark.py $(if $(TORCH_PYTHON),--torch $(TORCH_PYTHON)) $(if $(WRITE),--write)

zoo: environment    ## the gradient checker on layers with planted defects, beside Caffe's criterion
	.venv/bin/python examples/gradient_check/zoo.py

snippets: environment  ## write anew what prototxt/ has of the options: two snippets, and the tables of its README.md
	.venv/bin/python -m multilabel_softmax_loss.prototxt prototxt

docs: environment   ## the docstrings as pages, in build/docs
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	.venv/bin/python -m pdoc --docformat numpy --math -o build/docs multilabel_softmax_loss multilabel_softmax_loss.prototxt

dist: environment   ## the sdist and the wheel, built and checked in environments of their own
	.venv/bin/python -m pip install --quiet --disable-pip-version-check 'build>=1.2' 'twine>=6'
	.venv/bin/python .ci/dist.py

environment:
	@$(BOOTSTRAP)

environment-%:
	@$(BOOTSTRAP) --find $* > /dev/null
	@$(BOOTSTRAP) --python $* --venv .venv-$*

clean:          ## remove the environments and what the examples wrote
	rm -rf .venv* build dist *.egg-info examples/*/output .pytest_cache .mypy_cache .ruff_cache .hypothesis
