"""The Ray application: sessions, stages, recipes and reports."""
