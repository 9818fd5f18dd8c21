# make demo       the whole pipeline on a small made-up data set, from nothing (README, "Two commands")
# make reproduce  the three stages with the published weights: DATA=datasets/mvtec3d [CLASSES="bagel rope"] [OUT=DIR]
#                 features are extracted once and kept in OUT/features, 7 MB a sample; FEATURES= keeps none
# make test       the tests, from nothing
# make attacks    the slow tests: commands killed, disks full (tests/attacks); M3DM_ATTACKS=20 for more of them
# make check      lint, format, types
# make bench      the benchmarks
# make lock       pins anew, in requirement.lock, all that requirement.txt installs
# LOCKED=1        with any of these: the environment is .venv-locked, with the versions of requirement.lock

PYTHON ?= python3
LOCK := $(filter-out 0,$(LOCKED))
VENV := $(if $(LOCK),.venv-locked,.venv)
REQUIREMENTS := $(if $(LOCK),requirement.lock,requirement.txt)
BIN := $(VENV)/bin
WEIGHTS := $(if $(and $(wildcard checkpoints/dino_vitbase8_pretrain.pth),$(wildcard checkpoints/pointmae_pretrain.pth)),pretrained,random)
DEMO := demo/$(WEIGHTS)
DEMO_MAIN := $(BIN)/python main.py --dataset_path demo/preprocessed $(if $(filter random,$(WEIGHTS)),--random_weights)

OUT ?= results/reproduce
FEATURES ?= $(OUT)/features
RUN := $(abspath $(DATA)) $(CLASSES)
STAGE := $(BIN)/python main.py --dataset_path "$(DATA)" $(if $(CLASSES),--class_name $(CLASSES)) \
	$(if $(FEATURES),--features "$(FEATURES)")
UFF := $(OUT)/uff/checkpoint-4.pth

.PHONY: demo reproduce same_run test attacks check bench lock clean

$(VENV)/requirement.stamp: $(REQUIREMENTS)
	$(PYTHON) -m venv $(if $(LOCK),--clear) $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(LOCK),--require-hashes) -r $(REQUIREMENTS)
	touch $@

$(VENV)/requirement-dev.stamp: requirement-dev.txt $(VENV)/requirement.stamp
	$(BIN)/python -m pip install --quiet -r requirement-dev.txt
	touch $@

demo: $(VENV)/requirement.stamp
	$(BIN)/python utils/demo_data.py demo/mvtec3d
	$(BIN)/python utils/preprocessing.py demo/mvtec3d/ --output_dir demo/preprocessed
	$(DEMO_MAIN) --method_name DINO+Point_MAE --memory_bank multiple --results_dir $(DEMO)/two_banks \
		--save_feature --save_feature_path $(DEMO)/patch_lib
	$(BIN)/python fusion_pretrain.py --batch_size 4 --epochs 3 --lr 0.0005 --num_workers 1 \
		--data_path $(DEMO)/patch_lib --output_dir $(DEMO)/uff --log_dir $(DEMO)/uff
	$(DEMO_MAIN) --method_name DINO+Point_MAE+Fusion --use_uff --memory_bank multiple --save_preds \
		--fusion_module_path $(DEMO)/uff/checkpoint-2.pth --results_dir $(DEMO)/three_banks \
		--save_detector $(DEMO)/detectors
	$(BIN)/python predict.py --detector $(DEMO)/detectors/bagel.m3dm $(if $(filter random,$(WEIGHTS)),--random_weights) \
		--fusion_module_path $(DEMO)/uff/checkpoint-2.pth --output $(DEMO)/verdict \
		--rgb demo/mvtec3d/bagel/test/dent/rgb/000.png --xyz demo/mvtec3d/bagel/test/dent/xyz/000.tiff
	@echo "pictures: $(DEMO)/three_banks/pred_maps/<class>/<defect>/; the verdict on one part: $(DEMO)/verdict/"

# To resume, repeat the command: stages that are done are kept, and in the one that was cut its classes or epochs.
reproduce: $(OUT)/stage3.done
	@echo "results of the three stages, in $(OUT)/three_banks:"
	@ls "$(OUT)/three_banks"

same_run:
	@test -n "$(DATA)" || { echo "make reproduce: name the preprocessed data, such as DATA=datasets/mvtec3d"; exit 1; }
	@mkdir -p "$(OUT)"
	@test -e "$(OUT)/run.txt" || echo "$(RUN)" > "$(OUT)/run.txt"
	@echo "$(RUN)" | cmp -s - "$(OUT)/run.txt" || { \
		echo "make reproduce: OUT=$(OUT) holds a run with other DATA or CLASSES: $$(cat "$(OUT)/run.txt"); name another"; exit 1; }

$(OUT)/stage1.done: | $(VENV)/requirement.stamp same_run
	$(STAGE) --method_name DINO+Point_MAE --memory_bank multiple --rgb_backbone_name vit_base_patch8_224_dino \
		--xyz_backbone_name Point_MAE --save_feature --save_feature_path "$(OUT)/patch_lib" --results_dir "$(OUT)/two_banks"
	@touch $@

$(UFF): | $(OUT)/stage1.done
	OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.launch --nproc_per_node=1 fusion_pretrain.py --accum_iter 16 \
		--epoch 5 --lr 0.003 --batch_size 16 --data_path "$(OUT)/patch_lib" --output_dir "$(OUT)/uff" --log_dir "$(OUT)/uff" \
		$(addprefix --resume ,$(lastword $(sort $(wildcard $(OUT)/uff/checkpoint-?.pth))))

$(OUT)/stage3.done: | $(UFF)
	$(STAGE) --method_name DINO+Point_MAE+Fusion --use_uff --memory_bank multiple --fusion_module_path "$(UFF)" \
		--results_dir "$(OUT)/three_banks"
	@touch $@

test: $(VENV)/requirement-dev.stamp
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

attacks: $(VENV)/requirement-dev.stamp
	$(BIN)/python -m pytest -m slow

check: $(VENV)/requirement-dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/requirement-dev.stamp
	$(BIN)/python benchmarks/run_all.py

# For Python 3.10 and newer, on every platform that has wheels. Needs uv (pip install uv). What is pinned already stays
# where requirement.txt allows it; UPGRADE=1 takes the newest versions instead.
lock:
	$(PYTHON) -m uv pip compile --quiet --no-config --no-emit-index-url --no-header --universal --python-version 3.10 \
		--generate-hashes $(if $(UPGRADE),--upgrade) requirement.txt --output-file requirement.lock

clean:
	rm -rf .venv .venv-locked demo .pytest_cache .mypy_cache .ruff_cache
