"""The language that all of Citylab's rooms share: values, formats, ports, settings, errors, wiring.

Knows no service. Imports run one way: wiring -> adapters -> ports -> model.
"""

__version__ = "0.1.0"
