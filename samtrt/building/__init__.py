"""From parameters to an engine folder that has passed its parity gate.

Imports encoders and what lies below. Entry point: ``build.build_encoder``.
"""
