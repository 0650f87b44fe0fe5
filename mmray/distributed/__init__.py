"""Thin Ray adapters: each builds, calls the core, returns. No mathematics here."""
