"""The click page and its HTTP API: ``python -m samtrt.server``.

The image encoder runs here; the mask decoder runs in the browser, so that a mask under the
pointer costs no round trip. ``create_app`` makes the ASGI application.
"""
