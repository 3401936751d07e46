"""Segment Anything at the speed limit of NVIDIA GPUs."""
