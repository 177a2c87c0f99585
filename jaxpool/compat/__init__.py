"""Other frameworks' pooling functions: their names, arguments and layouts.

Each file holds adapters over `jaxpool`, without any maths of its own, and imports
nothing of the framework that it stands in for.
"""
