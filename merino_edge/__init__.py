"""merino-edge: find, train, export and measure a small language model for one particular board."""

__version__ = "0.1.0"
