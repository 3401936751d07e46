"""What users of ``segment_anything`` call: predictor and automatic mask generator.

Imports the model (``samtrt.sam``) and what lies below. Entry points: ``predictor.SamPredictor``
and ``automatic.SamAutomaticMaskGenerator``.
"""
