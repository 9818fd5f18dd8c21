import zipfile

import numpy as np
import pytest
import torch

from models.backbones import RGB_BACKBONES, XYZ_BACKBONES, XyzOptions
from models.checkpoints import CheckpointError, read_numpy_shapes, read_torch_file
from models.point_transformer.encoder import build_point_transformer
from models.vit import _jax_layout
from tests.mutants import mutants
from tests.reference.formula import fill

SMALL = "vit_small_patch8_224_dino"
OPTIONS = XyzOptions(32, 16, 8, batchnorm="cloud", drop_path=False, interpolation="exact")


def load_vit(name, folder, image_size):
    row = RGB_BACKBONES[name]
    return row.build(image_size, row.download.path_in(folder))


def load_point_transformer(name, folder):
    row = XYZ_BACKBONES[name]
    return row.build(OPTIONS, row.download.path_in(folder)).network


@pytest.fixture(scope="module")
def small_state():
    return fill(RGB_BACKBONES[SMALL].build(224, None).vit).state_dict()


def _save(folder, content, file="dino_deitsmall8_pretrain.pth"):
    torch.save(content, folder / file)
    return folder


def test_vit_loads_completely_and_frozen_from_the_original_layout(tmp_path, small_state):
    model = load_vit(SMALL, _save(tmp_path, small_state), 224)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    for key, value in model.vit.state_dict().items():
        assert torch.equal(value, small_state[key]), key


def test_patches_are_all_tokens_but_the_class_token(small_state):
    model = RGB_BACKBONES[SMALL].build(32, None)
    images = torch.randn(2, 3, 32, 32)
    tokens = model.vit.forward_features(images)
    assert torch.equal(model(images), tokens[:, 1:])
    assert model(images).shape == (2, 16, RGB_BACKBONES[SMALL].dim)


def test_position_embedding_is_interpolated_for_another_image_size(tmp_path, small_state):
    channel = torch.linspace(-1, 1, 384)
    state = {**small_state, "pos_embed": torch.cat([3 * channel[None], channel.repeat(28 * 28, 1)])[None]}
    model = load_vit(SMALL, _save(tmp_path, state), 256)
    class_token, *places = model.vit.pos_embed[0]
    torch.testing.assert_close(class_token, 3 * channel)
    torch.testing.assert_close(torch.stack(places), channel.repeat(32 * 32, 1))  # as constant as before
    assert model(torch.zeros(1, 3, 256, 256)).shape == (1, 1024, 384)


def test_missing_key_is_named_with_file_and_remedy(tmp_path, small_state):
    state = {k: v for k, v in small_state.items() if k != "blocks.3.mlp.fc1.weight"}
    with pytest.raises(
        CheckpointError, match=r"dino_deitsmall8.*blocks\.3\.mlp\.fc1\.weight.*README, 'Checkpoints'"
    ):
        load_vit(SMALL, _save(tmp_path, state), 224)


def test_wrong_shape_is_named(tmp_path, small_state):
    state = {**small_state, "norm.weight": torch.zeros(5)}
    with pytest.raises(CheckpointError, match=r"norm\.weight has shape \(5,\), expected \(384,\)"):
        load_vit(SMALL, _save(tmp_path, state), 224)


@pytest.mark.parametrize("content", [b"", b"<html>quota exceeded</html>", b"PK\x03\x04 truncated"])
def test_a_file_that_is_no_checkpoint_is_one_error(tmp_path, content):
    (tmp_path / "dino_deitsmall8_pretrain.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable torch file"):
        load_vit(SMALL, tmp_path, 224)


class _Malicious:
    def __reduce__(self):
        return (print, ("code ran",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    with pytest.raises(CheckpointError):
        load_vit(SMALL, _save(tmp_path, {"model": _Malicious()}), 224)
    assert "code ran" not in capsys.readouterr().out


def test_missing_point_weights_name_file_and_remedy(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"pointmae_pretrain\.pth: no such file; run: .*download\.py Point_MAE"
    ):
        load_point_transformer("Point_MAE", tmp_path)


def test_point_checkpoint_without_its_nesting_is_refused(tmp_path):
    _save(tmp_path, {"state": {}}, "pointmae_pretrain.pth")
    with pytest.raises(CheckpointError, match="has no entry 'base_model'"):
        load_point_transformer("Point_MAE", tmp_path)


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize(
    ("name", "file", "encoder", "foreign"),
    [
        ("Point_MAE", "pointmae_pretrain.pth", "MAE_encoder.", "MAE_decoder.norm.weight"),
        ("Point_Bert", "Point-BERT.pth", "transformer_q.", "transformer_q.cls_head.0.weight"),
    ],
)
def test_point_transformers_load_from_the_original_nesting(tmp_path, name, file, encoder, foreign, prefix):
    state = fill(build_point_transformer(name)).state_dict()
    base = {f"{prefix}{encoder}{key}": value for key, value in state.items()}
    _save(tmp_path, {"base_model": {**base, prefix + foreign: torch.ones(3)}, "epoch": 300}, file)
    model = load_point_transformer(name, tmp_path)
    assert not any(p.requires_grad for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_truncated_npz_is_one_error(tmp_path):
    (tmp_path / RGB_BACKBONES["vit_base_patch8_224"].download.file).write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="not a readable"):
        load_vit("vit_base_patch8_224", tmp_path, 224)


def test_npz_missing_an_array_names_it(tmp_path):
    np.savez(
        tmp_path / RGB_BACKBONES["vit_base_patch8_224"].download.file, cls=np.zeros((1, 1, 768), np.float32)
    )
    with pytest.raises(CheckpointError, match=r"keys are missing: embedding/kernel"):
        load_vit("vit_base_patch8_224", tmp_path, 224)


@pytest.mark.parametrize("content", [{"base_model": [1]}, {"base_model": {1: torch.zeros(2)}}])
def test_point_checkpoint_of_another_build_is_one_error(tmp_path, content):
    torch.save(content, tmp_path / "pointmae_pretrain.pth")
    with pytest.raises(CheckpointError, match=r"pointmae_pretrain\.pth: "):
        load_point_transformer("Point_MAE", tmp_path)


def test_shapes_are_read_without_inflating_an_array(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, zeros=np.zeros((2**12, 2**10), np.float32), one=np.float64(1))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("the arrays are loaded"))
    assert read_numpy_shapes(path, "get another") == {"zeros": (2**12, 2**10), "one": ()}
    assert path.stat().st_size < 2**16


def test_an_npy_header_of_the_kind_that_may_be_huge_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("zeros.npy", b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + b"{" * 100)
    with pytest.raises(CheckpointError, match=r"a\.npz: not a readable \.npz file .*version \(2, 0\)"):
        read_numpy_shapes(tmp_path / "a.npz", "get another")


@pytest.mark.parametrize("kind", ["npz", "zip", "pickle"])
def test_mutants_of_a_file_are_read_or_are_one_error(tmp_path, kind):
    path = tmp_path / "file"
    content = {"weights": torch.ones(3, 2), "names": ["a", "b"], "epoch": 3}
    if kind == "npz":
        with path.open("wb") as file:
            np.savez_compressed(file, kernel=np.ones((3, 4)), bias=np.ones(4))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    read = read_numpy_shapes if kind == "npz" else read_torch_file
    errors: list[str] = []
    for mutant in mutants(path.read_bytes(), 300):
        path.write_bytes(mutant)
        try:
            read(path, "get another")
        except CheckpointError as error:
            errors.append(str(error))
    assert len(errors) > 100
    assert all(e.startswith(f"{path}: not a readable ") and e.endswith("; get another") for e in errors)
    assert not any("\n" in error for error in errors)


def test_an_npz_whose_arrays_are_damaged_is_one_error(tmp_path):
    row = RGB_BACKBONES["vit_base_patch8_224"]
    shapes = _jax_layout(row.build(224, None).vit, row)
    path = row.download.path_in(tmp_path)
    np.savez_compressed(path, **{key: np.zeros(shape, np.float16) for key, shape in shapes.items()})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a readable \.npz file"):
        row.build(224, path)
