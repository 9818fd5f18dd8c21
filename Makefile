# make demo   the whole pipeline on a small made-up data set, from nothing (README, "Two commands")
# make test   the tests, from nothing
# make check  lint, format, types
# make bench  the benchmarks

PYTHON ?= python3
BIN := .venv/bin
WEIGHTS := $(if $(and $(wildcard checkpoints/dino_vitbase8_pretrain.pth),$(wildcard checkpoints/pointmae_pretrain.pth)),pretrained,random)
DEMO := demo/$(WEIGHTS)
DEMO_MAIN := $(BIN)/python main.py --dataset_path demo/preprocessed $(if $(filter random,$(WEIGHTS)),--random_weights)

.PHONY: demo test check bench clean

.venv/requirement.stamp: requirement.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirement.txt
	touch $@

.venv/requirement-dev.stamp: requirement-dev.txt .venv/requirement.stamp
	$(BIN)/python -m pip install --quiet -r requirement-dev.txt
	touch $@

demo: .venv/requirement.stamp
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

test: .venv/requirement-dev.stamp
	$(BIN)/python -m pytest

check: .venv/requirement-dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/requirement-dev.stamp
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache
