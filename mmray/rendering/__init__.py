"""The demonstration set: rendered photos of invented objects, in place of a real collection."""
