# make demo   train eight small pairs on Fashion-MNIST, show which images they memorized, ask them for labels (Deja Vu, linear probes), and
#             make a page of it all, runs/demo/report.html
# make test   run the tests
# make test-optional
#             the tests that need the packages of requirements-optional.txt, which are installed
# make test-browser
#             the tests of report.html in a headless Chromium, which is installed from Debian's packages where that is possible
# make lint   check the style of the code: ruff
# make faults kill trainings at random moments, and see that they end as if nothing had happened; give the scripts hostile files
#             and disks that fail
# make bench  time this project beside others, 20 to 40 minutes on two CPU cores; results in runs/benchmarks
# make gpu    what to run on a GPU machine, in nine minutes; logs and results in runs/gpu
# make validity
#             train encoders on planted images, and see whether scores find what is memorized and nothing else: up to 40 minutes on two
#             CPU cores; results in runs/benchmarks
PYTHON ?= python3
INSTALLED := .venv/installed
RUN := .venv/bin/python

.PHONY: demo test test-optional test-browser lint faults bench gpu validity data

demo: $(INSTALLED) data
	$(RUN) train_simclr.py --config configs/demo.yaml
	$(RUN) memorization_scores.py --config configs/demo.yaml
	$(RUN) dejavu.py --config configs/demo.yaml
	$(RUN) linear_probing_train.py --config configs/demo.yaml
	$(RUN) report.py --config configs/demo.yaml

test: $(INSTALLED)
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile

test-optional: $(INSTALLED)
	.venv/bin/pip install -q -r requirements-optional.txt lightly
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile $$(grep -rl importorskip tests)

# Without Chromium these tests are skipped, each with the reason.
test-browser: $(INSTALLED)
	.venv/bin/pip install -q -r tests/browser/requirements.txt
	@command -v chromium-headless-shell || command -v chromium || command -v chromium-browser || command -v google-chrome \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium-headless-shell; } \
	|| true
	$(RUN) -m pytest -rs -n auto --maxprocesses 2 --dist loadfile tests/browser

lint: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

faults: $(INSTALLED)
	KILLS=18 FUZZ=3 DISK_ERRORS=0 $(RUN) -m pytest -s tests/recovery/test_faults.py tests/refusals/test_hostile_files.py tests/recovery/test_disk_errors.py

bench: $(INSTALLED)
	for question in augmentations scoring layers training big_data neighbors probe scaling; do $(RUN) -m benchmarks.$$question || exit 1; done

gpu: $(INSTALLED)
	OUT=runs/gpu PYTHON=$(RUN) bash benchmarks/on_gpu/measure.sh

validity: $(INSTALLED) data
	$(RUN) -m benchmarks.validity

# Fashion-MNIST: found here already, downloaded, or from its Debian package where that can be installed.
FIND_DATA := $(RUN) -c "from memorization.data.catalogue import DataSettings; from memorization.data.images import open_images; open_images(DataSettings(name='fashion_mnist'))"
data: $(INSTALLED)
	@$(FIND_DATA) 2>/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y dataset-fashion-mnist; } \
	|| true # where neither worked, train_simclr.py says what to do

$(INSTALLED): requirements.txt tests/requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -r requirements.txt -r tests/requirements.txt
	touch $@
