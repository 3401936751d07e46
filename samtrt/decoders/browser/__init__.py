"""The mask decoder for browsers: two ONNX graphs, made of parameters, checked before they are sent.

Entry points: ``export.export_browser_decoder``, ``runtime.BrowserDecoder``.
"""
