"""Parts of the network that are not PyTorch layers, and the network from an ONNX file."""
