"""From safetensors to an ONNX graph without PyTorch: weights (safetensors), nodes (writer), one module per family (bert,
decoder), what comes behind the last layer (tail), and graphs that others exported (complete)."""
