"""Loaded models. Only the modules in this folder import model libraries, and only inside functions."""
