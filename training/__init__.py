"""How the demo checkpoint was trained: procedural scenes, SAM's losses, one training script.

``training.scenes`` needs torch, NumPy and Pillow only, so the examples evaluate on it; the
training itself also needs Meta's ``segment-anything`` package.
"""
