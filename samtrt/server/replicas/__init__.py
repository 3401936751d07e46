"""Several models behind one port: requests go to the one that has their picture.

``front`` is the application that clients speak to; ``processes`` has the models in processes of
this machine, ``ray_serve`` in a Ray cluster. Both are a ``Replicas`` (``exchange``).
"""
