"""What several commands share: which model, which pictures, which prompts, and what is shown.

Imports anything. Entry points: ``model.chosen_model``, ``prompts.add_prompts``,
``pictures.add_pictures``, ``segment.segment``.
"""
