"""TensorRT: typed ONNX and its recipe, the engine, and the layer table that proves what was built."""
