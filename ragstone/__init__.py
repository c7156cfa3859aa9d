"""Ragstone: retrieval-augmented generation, trained, evaluated and asked end to end.

Importing this package does nothing but define the version. The parts are imported from their own packages, in the
order that README.md draws.
"""

__version__ = "0.1.0"
