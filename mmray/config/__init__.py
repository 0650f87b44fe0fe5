"""Every setting of every job: its default, its bound and its flag."""
