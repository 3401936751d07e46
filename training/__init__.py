"""How the demo checkpoint was trained: procedural scenes, SAM's losses, one training script.

The scenes are the package's own (``samtrt.scenes``), which `samtrt evaluate` draws as well; the
training itself also needs Meta's ``segment-anything`` package.
"""
