# Every target does its own setup. `make` alone lists them.

SOURCE ?= auto
MODEL ?=
VENV := .venv
# The subpackages of lineament
ROOMS := landmarks train engines stream demo
# The run folder of `make b5`
RUN ?= runs/b5
# Evaluation sets of `make b5`: folder, and the offset of its labels from pixel centres
EVAL ?= $(addsuffix :0.5,$(wildcard ../shared/data/wflw-mini)) $(wildcard ../shared/data/wflw-hard-dev)
PY := $(VENV)/bin/python
# What the requested model needs beside the serving packages
MESH := $(if $(filter mesh mesh-fast,$(MODEL)),$(VENV)/.mesh)

# nvidia-smi, if there is one and `make engine` builds for its GPU
NVIDIA = $(if $(filter cpu tensorrt-rtx --help -h,$(subst =, ,$(ARGS))),,$(shell command -v nvidia-smi))

# What a bare Debian or Ubuntu lacks: libGL and glib for OpenCV, venv; for the tests a display, an RTSP server, an MQTT
# broker and a browser.
APT_SERVE := libgl1 libglib2.0-0 python3-venv
APT_TEST := xvfb python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
	gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly mosquitto
APT_BROWSER := chromium

.DEFAULT_GOAL := help
# `driver` decides whether .gpu is made
.NOTPARALLEL:
.PHONY: help stream demo bench-demo engine driver bench bench-engines soak cluster-demo fit-mesh train b5 test audit lock lint types apt clean

help:
	@echo 'make stream                    98 landmarks on your webcam, or on a sample if there is none'
	@echo 'make stream SOURCE=clip.mp4    the same on a file, folder, camera number, rtsp:// or http:// URL'
	@echo 'make stream ARGS="--help"      all options: outputs, drawing, tracking'
	@echo 'make demo                      the demo in your browser; SHARE=1 adds a public link, ARGS="--help" shows the rest'
	@echo 'make bench-demo                demo latency from browser frame to drawn frame; needs chromium'
	@echo 'make engine                    builds the fastest engines for this machine: TensorRT, or for the CPU'
	@echo 'make engine MODEL=a.safetensors  the same for your own model'
	@echo 'make bench                     frames/s and latency on this machine, compared with MediaPipe'
	@echo 'make bench-engines MODEL=a.safetensors  one model in every runtime here; DATA=/path/to/WFLW adds its error'
	@echo 'make soak MINUTES=60            8 real RTSP cameras, 2 of them failing at random: checks for leaks and stalls'
	@echo 'make cluster-demo              cameras and models on a local Ray cluster; kills some and checks that they recover'
	@echo 'make train DATA=/path/to/WFLW  trains EfficientNet-B5; ARGS="--help" shows the rest'
	@echo 'make b5 DATA=packs/            trains the shipped B5 from packed faces; EVAL="set:shift ..." chooses the evaluation sets'
	@echo 'make test                      lint, types and tests'
	@echo 'make audit                     checks pinned and installed packages for known vulnerabilities'
	@echo 'make lock                      writes requirements-lock.txt from the pins; needs uv'
	@echo 'make fit-mesh DATA=wflw        refits the map from mesh points to the 98 points'
	@echo 'make clean                     removes the environment and the caches'

stream: $(VENV)/.serve $(MESH)
	@$(PY) -m stream --source "$(SOURCE)" $(if $(MODEL),--model "$(MODEL)") $(ARGS)

demo: $(VENV)/.demo $(MESH)
	@$(PY) -m demo $(if $(filter-out 0 no false,$(SHARE)),--share) $(if $(MODEL),--model "$(MODEL)") $(ARGS)

bench-demo: $(VENV)/.dev
	@$(PY) -m demo.bench $(ARGS)

bench-engines: $(VENV)/.train
	@$(if $(MODEL),,$(if $(findstring --help,$(ARGS)),,\
		echo 'which model? make bench-engines MODEL=runs/b5/best.safetensors' >&2; exit 2;)) \
		$(PY) -m engines.bench $(MODEL) $(if $(DATA),--data $(DATA)) $(ARGS)

engine: $(if $(NVIDIA),driver) $(VENV)/.train $(if $(NVIDIA),$(VENV)/.gpu)
	@$(PY) -m engines.build $(if $(MODEL),--model "$(MODEL)") $(if $(DATA),--data "$(DATA)") $(ARGS)

# Before gigabytes are downloaded: can TensorRT run on this driver and GPU? Does the installed build still fit the driver?
driver: | $(VENV)/bin/python
	@fitting="$$($(PY) -I engines/driver.py gpu)" || exit 1; \
	[ -z "$$fitting" ] || [ ! -e $(VENV)/.gpu ] || [ "$$(cat $(VENV)/.gpu)" = "$$fitting" ] || rm $(VENV)/.gpu

bench: $(VENV)/.bench
	@$(PY) -m stream.bench $(ARGS)

soak: $(VENV)/.dev
	@$(PY) -m stream.soak --minutes $(or $(MINUTES),10) $(ARGS)

cluster-demo: $(VENV)/.cluster
	@$(PY) -m stream.cluster_demo $(ARGS)

fit-mesh: $(VENV)/.mesh
	@$(PY) -m engines.mesh_fit --data "$(or $(DATA),../shared/data/wflw-mini)"

train: $(VENV)/.train
	@$(if $(DATA),,$(if $(findstring --help,$(ARGS)),,echo 'which data? make train DATA=/path/to/WFLW' >&2; exit 2;)) \
		$(PY) -m train $(if $(DATA),--data $(DATA)) $(ARGS)

# The recipe of the shipped B5; the other options are the defaults of `make train`. The same command resumes an interrupted run.
b5: $(VENV)/.train
	@$(PY) -m train --data $(or $(DATA),packs) --run $(RUN) --name b5 --presence --batch 96 --drop-path 0.1 \
		--lr 6e-4 --epochs 40 --schedule.kind cosine --schedule.warmup-epochs 1 --augment.rotate 0.45 --augment.rotate-deg 60 \
		--augment.shift 0.1 --augment.scale 0.8 1.25 --val-every 4 \
		$(if $(shell command -v nvidia-smi),--compile --workers 14) $(ARGS)
	@$(foreach set,$(EVAL),$(PY) -m train.evaluate $(RUN)/best-half.safetensors --flip --write-card \
		--data $(firstword $(subst :, ,$(set))) --label-shift-px $(or $(word 2,$(subst :, ,$(set))),0) \
		--out $(RUN)/evaluation/$(notdir $(firstword $(subst :, ,$(set)))) &&) true

test: lint types
	@# a thread each: two processes with two would wait for one another
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

audit: $(VENV)/.dev
	@$(PY) .ci/audit.py

# CUDA comes from torch's own pins; pip is each environment's own
lock:
	@echo '# Every package of requirements-dev.txt and all that they need, without CUDA. Written by `make lock`.' > requirements-lock.txt
	@uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate requirements-dev.txt \
		| grep -vE '^(cuda-|nvidia-|triton=|pip=)' >> requirements-lock.txt

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# A checkout has the subpackages beside lineament/, where a type checker does not look for them
types: $(VENV)/.dev
	@mkdir -p .types/lineament
	@ln -sfn $(addprefix $(CURDIR)/,$(wildcard lineament/*.py) lineament/py.typed $(ROOMS)) .types/lineament/
	$(PY) -m mypy

clean:
	rm -rf $(VENV) .types build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.dev: requirements-dev.txt requirements-rtx.txt requirements-demo.txt requirements-cluster.txt \
		requirements-bench.txt requirements-mesh.txt $(VENV)/.train
	@$(call apt,command -v Xvfb && ls /usr/lib/*/girepository-1.0/GstRtspServer-1.0.typelib /usr/sbin/mosquitto,$(APT_TEST))
	@$(call apt,command -v chromium || command -v google-chrome,$(APT_BROWSER))
	@$(call pip,-r requirements-dev.txt)
	@# read by the tests; a torch with CUDA brings those that fit it
	@$(PY) -c 'import cuda.bindings' 2>/dev/null || $(call pip,$$(grep ^cuda-bindings== requirements-gpu.txt)) || \
		echo 'could not install cuda-bindings; its tests are skipped' >&2
	@$(MAKE) --no-print-directory $(VENV)/.mesh || echo 'continuing without; its tests are skipped' >&2
	@touch $@

# engines/driver.py has the table of NVIDIA drivers and requirements
$(VENV)/.train: requirements-train.txt requirements-train-cu12.txt $(VENV)/.serve
	@echo 'installing the training packages, once; takes some minutes'
	@$(call pip,-r "$$($(PY) -I engines/driver.py train)")
	@# albumentations installs a headless OpenCV over the one with a GUI
	@$(call pip,--force-reinstall --no-deps $$(grep ^opencv-python== requirements.txt))
	@touch $@

# The builds for CUDA 12 and 13 write the same files. Without TensorRT, engines.build ends with the reason and exit code 1.
$(VENV)/.gpu: requirements-gpu.txt requirements-gpu-cu12.txt $(VENV)/.train
	@fitting="$$($(PY) -I engines/driver.py gpu 2>/dev/null)"; [ -n "$$fitting" ] || exit 0; \
	case "$$fitting" in *cu12*) other=tensorrt-cu13;; *) other=tensorrt-cu12;; esac; \
	! $(PY) -m pip show --quiet $$other-bindings >/dev/null 2>&1 || \
	$(PY) -m pip uninstall --quiet --yes $$other $$other-libs tensorrt-cu12-bindings tensorrt-cu13-bindings 2>/dev/null; \
	echo "installing TensorRT from $$fitting, once; about 2 GB"; \
	if $(call pip,-r "$$fitting"); then echo "$$fitting" > $@; \
	else echo 'could not install TensorRT; building for the CPU' >&2; fi

$(VENV)/.demo: requirements-demo.txt $(VENV)/.serve
	@echo 'installing the demo packages, once; takes half a minute'
	@$(call pip,-r requirements-demo.txt)
	@touch $@

$(VENV)/.cluster: requirements-cluster.txt $(VENV)/.serve
	@echo 'installing Ray, once; takes half a minute'
	@$(call pip,-r requirements-cluster.txt)
	@touch $@

$(VENV)/.bench: requirements-bench.txt $(VENV)/.mesh
	@echo "installing what MediaPipe's own API imports, once; takes some seconds"
	@$(call pip,-r requirements-bench.txt)
	@touch $@

$(VENV)/.mesh: requirements-mesh.txt $(VENV)/.serve
	@echo 'installing the mesh models, once; takes some seconds'
	@# only its files are read, so the wheel for 3.12 also works on newer Pythons
	@$(call pip,--upgrade --no-deps --only-binary=:all: -r requirements-mesh.txt \
		--python-version "$$($(PY) -c 'import sys; print(f"3.{min(12, sys.version_info.minor)}")')" \
		--target "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')") || { \
		echo 'could not install mediapipe 0.10.21, which contains the mesh models; it has wheels for Windows, macOS and' \
			'Linux on x86-64. All other models run without it.' >&2; exit 1; }
	@touch $@

$(VENV)/.serve: requirements.txt | $(VENV)/bin/python
	@echo 'installing the serving packages, once; takes half a minute'
	@$(call pip,-r requirements.txt)
	@touch $@

$(VENV)/bin/python:
	@$(call apt,/sbin/ldconfig -p | grep -q libGL.so.1 && $(if $(PYTHON),true,python3 -c "import ensurepip"),$(APT_SERVE))
	@for python in $(PYTHON) python3.12 python3.13 python3.14 python3.11 python3; do \
		$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null || continue; \
		$$python -m venv $(VENV) && exit 0; \
	done; \
	echo "no Python 3.11 to 3.14 found, python3 is $$(python3 -V 2>&1);" \
		"install one and name it: make stream PYTHON=/path/to/python3.12" >&2; exit 1

# As root, what all of the above would install
apt:
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(APT_SERVE) $(APT_TEST)

# $(call pip,arguments): installs quietly; only if that fails, shows all that pip said, because the cause is often in its
# warnings. mediapipe is installed without its dependencies, about which pip would warn each time.
define pip
said=$$($(PY) -m pip install --quiet --disable-pip-version-check --no-warn-conflicts $(1) 2>&1) || \
	{ printf '%s\n' "$$said" >&2; false; }
endef

# $(call apt,check,packages): if apt-get exists and the check fails, root installs the packages, others are told to.
define apt
if command -v apt-get >/dev/null && ! { $(1); } >/dev/null 2>&1; then \
	if [ "$$(id -u)" = 0 ]; then \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(2); } \
			>/dev/null || echo "could not install $(2); continuing without" >&2; \
	else echo "some system packages are missing; run: sudo apt-get install $(2)" >&2; fi; fi
endef
