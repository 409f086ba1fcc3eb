"""Recognition networks from ONNX files."""
