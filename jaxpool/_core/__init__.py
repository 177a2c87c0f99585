"""The house behind the ops: window spec, geometry, engine, op table."""
