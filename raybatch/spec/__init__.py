"""The pipeline file: read, merged with a profile and `--set`, checked, and turned into typed configs.

`load.load_pipeline` tells the story; `tree` is what travels between its steps.
"""
