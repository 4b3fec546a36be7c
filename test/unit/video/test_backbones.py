"""A backbone gives what its model gives when it is called directly, and says in a sentence what it cannot use."""
import json
import os
import shutil

import backbones as networks
import numpy as np
import pytest

for _package in ("av", "onnxruntime", "onnx"):
    pytest.importorskip(_package, reason="backbones need %s (requirements-video.txt)" % _package)
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="backbones need transformers (requirements-video.txt)")
Image = pytest.importorskip("PIL.Image", reason="backbones need Pillow (requirements-video.txt)")

from bmn.errors import UserError
from bmn.video import backbones

CPU = torch.device("cpu")


@pytest.fixture
def frames(rng):
    """[3 snippets, 8 frames, 40, 60, 3], smooth pictures."""
    small = rng.randint(0, 256, (24, 5, 6, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((60, 40))) for one in small]).reshape(3, 8, 40, 60, 3)


def vectors(backbone, frames):
    return backbone.vectors(np.stack([np.stack([backbone.prepare(frame) for frame in snippet]) for snippet in frames]))


def test_a_video_model_of_transformers(tmp_path, frames):
    folder = networks.video_mae(tmp_path / "vmae")
    backbone = backbones.open_backbone(folder, CPU, 1)
    processor = transformers.VideoMAEImageProcessorPil.from_pretrained(folder)
    model = transformers.VideoMAEModel.from_pretrained(folder).eval()
    with torch.no_grad():
        want = torch.cat([model(**processor(list(snippet), return_tensors="pt")).last_hidden_state.mean(1)
                          for snippet in frames])
    np.testing.assert_allclose(vectors(backbone, frames), want.numpy(), rtol=1e-4, atol=1e-5)
    assert backbone.looked_at == 8 and backbone.description["size"] == 32
    assert backbone.description["backbone"] == folder and want.std(0).min() > 1e-3


@pytest.mark.parametrize("make", ["dino", "clip"])
def test_a_model_for_pictures_has_its_frames_averaged(tmp_path, frames, make):
    folder = getattr(networks, make)(tmp_path / make)
    backbone = backbones.open_backbone(folder, CPU, 1)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    want = []
    with torch.no_grad():
        for snippet in frames:
            pixels = processor(list(snippet), return_tensors="pt")["pixel_values"]
            if make == "clip":
                one = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
            else:
                one = model(pixel_values=pixels).last_hidden_state[:, 0]
            want.append(one.mean(0).numpy())
    np.testing.assert_allclose(vectors(backbone, frames), want, rtol=1e-4, atol=1e-5)
    assert backbone.looked_at is None and backbone.description["size"] == len(want[0])


@pytest.mark.parametrize("order, shape", [
    ((0, 1, 2, 3, 4), ["n", 8, 3, 20, 24]), ((0, 2, 1, 3, 4), ["n", 3, 8, 20, 24]),
    ((0, 1, 3, 4, 2), [2, 8, 20, 24, 3])])
def test_an_onnx_file_for_snippets(tmp_path, frames, order, shape):
    path, matrix = networks.onnx_file(tmp_path / "net.onnx", shape)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    backbone = backbones.open_backbone(path, CPU, 1, mean, std)
    want = np.tanh(_pixels(frames, mean, std).transpose(order).reshape(3, -1) @ matrix)
    np.testing.assert_allclose(vectors(backbone, frames), want, rtol=1e-3, atol=1e-4)
    assert backbone.looked_at == 8 and backbone.description["size"] == 12


@pytest.mark.parametrize("kind", ["FLOAT", "UINT8", "FLOAT16", "DOUBLE"])
@pytest.mark.parametrize("order, shape", [((0, 1, 2, 3), ["n", 3, 20, 24]), ((0, 2, 3, 1), [5, 20, 24, 3])])
def test_an_onnx_file_for_pictures(tmp_path, frames, order, shape, kind):
    path, matrix = networks.onnx_file(tmp_path / "net.onnx", shape, kind=kind)
    backbone = backbones.open_backbone(path, CPU, 1)
    pixels = _pixels(frames, [0, 0, 0], [1, 1, 1]) * (255 if kind == "UINT8" else 1)
    pixels = pixels.reshape(24, 3, 20, 24).transpose(order).reshape(24, -1)
    want = np.tanh(pixels @ matrix).reshape(3, 8, -1).mean(1)
    np.testing.assert_allclose(vectors(backbone, frames), want, rtol=1e-2, atol=1e-2 if kind == "FLOAT16" else 1e-4)


def _pixels(frames, mean, std):
    """[3, 8, 3, 20, 24]: 40 x 60 pixels scaled to 20 x 30, the middle 24 columns, normalised."""
    small = np.stack([np.asarray(Image.fromarray(frame).resize((30, 20), Image.Resampling.BILINEAR))[:, 3:27]
                      for frame in frames.reshape(-1, 40, 60, 3)]).reshape(3, 8, 20, 24, 3)
    return ((small / 255 - mean) / std).astype(np.float32).transpose(0, 1, 4, 2, 3)


@pytest.mark.parametrize("shape, words", [
    (["n", 10], "takes one array of pictures"), (["n", 4, 20, 24], "one axis of length 3"),
    (["n", 3, 3, 20, 24], "one axis of length 3"), (["n", 3, 20, "w"], "must be fixed"), (["n", 20, 3, 24],
                                                                                      "one axis of length 3")])
def test_an_onnx_file_that_is_no_backbone(tmp_path, shape, words):
    sizes = [1 if isinstance(length, str) and index else length for index, length in enumerate(shape)]
    networks.onnx_file(tmp_path / "net.onnx", sizes)
    if "w" in shape:
        import onnx
        model = onnx.load(str(tmp_path / "net.onnx"))
        model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "w"
        onnx.save(model, str(tmp_path / "net.onnx"))
    with pytest.raises(UserError, match=words):
        backbones.open_backbone(str(tmp_path / "net.onnx"), CPU, 1)


def test_an_onnx_file_that_gives_no_vector(tmp_path):
    path, _ = networks.onnx_file(tmp_path / "net.onnx", ["n", 3, 20, 24], vector=False)
    with pytest.raises(UserError, match=r"gives an array of shape .* export its pooled output"):
        backbones.open_backbone(path, CPU, 1)


def test_weights_that_lack_would_be_random_and_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file
    folder = networks.video_mae(tmp_path / "vmae")
    weights = load_file(os.path.join(folder, "model.safetensors"))
    lacking = {name: one for name, one in weights.items() if "layer.1." not in name}
    save_file(lacking, os.path.join(folder, "model.safetensors"), {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks \d+ weights"):
        backbones.open_backbone(folder, CPU, 1)


def test_a_pooler_that_lacks_is_left_out(tmp_path, frames):
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=32, patch_size=16, hidden_size=24, num_hidden_layers=1,
                                    num_attention_heads=2, intermediate_size=32)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    backbone = backbones.open_backbone(str(tmp_path / "vit"), CPU, 1)
    assert backbone.description["vector"] == "mean of last_hidden_state"
    np.testing.assert_array_equal(vectors(backbone, frames), vectors(
        backbones.open_backbone(str(tmp_path / "vit"), CPU, 1), frames))


def _without(name):
    return lambda folder: os.remove(os.path.join(folder, name))


def _damaged(folder):
    with open(os.path.join(folder, "model.safetensors"), "r+b") as handle:
        handle.truncate(100)


@pytest.mark.parametrize("damage, words", [
    (_without("config.json"), "cannot be used with transformers"), (_without("model.safetensors"), "cannot be used"),
    (_without("preprocessor_config.json"), "cannot be used"), (_damaged, "cannot be used"),
    (shutil.rmtree, "is neither a folder nor")])
def test_a_folder_that_is_no_model(tmp_path, damage, words):
    folder = networks.video_mae(tmp_path / "vmae")
    damage(folder)
    with pytest.raises(UserError, match=words) as error:
        backbones.open_backbone(folder, CPU, 1)
    assert "\n" not in str(error.value)


def test_the_version_is_that_of_the_weights(tmp_path):
    first = backbones.open_backbone(networks.video_mae(tmp_path / "a"), CPU, 1).description
    again = backbones.open_backbone(str(shutil.copytree(tmp_path / "a", tmp_path / "b")), CPU, 1).description
    other = backbones.open_backbone(networks.video_mae(tmp_path / "c", seed=7), CPU, 1).description
    assert first["version"] == again["version"] != other["version"]
    assert json.loads(json.dumps(first))["normalisation"]["image_mean"] == [0.5, 0.5, 0.5]


def test_options_of_onnx_files_are_theirs_alone(tmp_path):
    with pytest.raises(UserError, match="--mean and --std are for ONNX files"):
        backbones.open_backbone(networks.video_mae(tmp_path / "a"), CPU, 1, [0, 0, 0])
    path, _ = networks.onnx_file(tmp_path / "net.onnx", ["n", 3, 20, 24], kind="UINT8")
    with pytest.raises(UserError, match="takes bytes"):
        backbones.open_backbone(path, CPU, 1, None, [1, 1, 1])
