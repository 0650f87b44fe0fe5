"""HTML pages that open without a network: all pictures and styles are inside them, no scripts."""
