"""Small networks of random weights, saved as people get them: folders of transformers, ONNX files."""
import os

import numpy as np


def video_mae(folder, frames=8, size=32, hidden=32, seed=0):
    """A VideoMAE with its preprocessing."""
    import torch
    import transformers
    torch.manual_seed(seed)
    config = transformers.VideoMAEConfig(
        image_size=size, patch_size=16, num_frames=frames, tubelet_size=2, hidden_size=hidden, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=2 * hidden, initializer_range=0.1)
    transformers.VideoMAEModel(config).save_pretrained(folder)
    _processor("VideoMAEImageProcessor", size).save_pretrained(folder)
    return str(folder)


def dino(folder, size=28):
    """A DINOv2: a network for pictures."""
    import torch
    import transformers
    torch.manual_seed(1)
    config = transformers.Dinov2Config(image_size=size, patch_size=14, hidden_size=24, num_hidden_layers=2,
                                       num_attention_heads=2, initializer_range=0.1)
    transformers.Dinov2Model(config).save_pretrained(folder)
    _processor("BitImageProcessor", size).save_pretrained(folder)
    return str(folder)


def clip(folder, size=32):
    """A CLIP, which has a network for text as well."""
    import torch
    import transformers
    torch.manual_seed(2)
    small = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config = transformers.CLIPConfig(vision_config=dict(small, image_size=size, patch_size=16),
                                     text_config=dict(small, vocab_size=64), projection_dim=20)
    transformers.CLIPModel(config).save_pretrained(folder)
    _processor("CLIPImageProcessor", size).save_pretrained(folder)
    return str(folder)


def _processor(name, size):
    import transformers
    return getattr(transformers, name + "Pil")(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def onnx_file(path, shape, size=12, kind="FLOAT", seed=3, vector=True):
    """An ONNX file that multiplies its input, flattened, by a random matrix, and squashes it. Returns (path, matrix).

    ``shape`` is that of the input; its first entry may be text, for any number of snippets.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    matrix = np.random.RandomState(seed).randn(int(np.prod(shape[1:])), size).astype(np.float32) / 30
    nodes = [helper.make_node("Cast", ["frames"], ["numbers"], to=TensorProto.FLOAT),
             helper.make_node("Flatten", ["numbers"], ["flat"], axis=1),
             helper.make_node("MatMul", ["flat", "matrix"], ["product"]),
             helper.make_node("Tanh", ["product"], ["vector"])]
    output = "vector"
    if not vector:
        nodes.append(helper.make_node("Unsqueeze", ["vector", "axes"], ["tokens"]))
        nodes.append(helper.make_node("Concat", ["tokens", "tokens"], ["twice"], axis=1))
        output = "twice"
    graph = helper.make_graph(
        nodes, "backbone", [helper.make_tensor_value_info("frames", getattr(TensorProto, kind), shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(np.array([1]), "axes")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    assert os.path.getsize(str(path))
    return str(path), matrix
