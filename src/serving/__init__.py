"""A trained student away from its run: asked for recommendations, shared, written as ONNX."""
