"""What several commands share: which model, which pictures, which prompts, and what is shown; and
``build-plugins``, what TensorRT engines with plugins need beside ``build``.

Imports anything. Entry points: ``model.chosen_model``, ``prompts.add_prompts``,
``pictures.add_pictures``, ``segment.segment``.
"""
