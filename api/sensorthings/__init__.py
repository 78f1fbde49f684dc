"""OGC SensorThings API 1.1 (OGC 18-088), Part 1: from a URL to one SQL statement, and its JSON text back.

`resource` and `options` read a request into a syntax tree (`syntax`), `expressions` and `statements` compile it to SQL
whose values are parameters only, `service` answers over ASGI.
"""
