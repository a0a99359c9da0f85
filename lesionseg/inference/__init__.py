"""From a trained network to masks: selection, post-processing, evaluation, ONNX."""
