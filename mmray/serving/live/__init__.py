"""Live search over HTTP: a page and a JSON API on an index, for browsers and programs."""
