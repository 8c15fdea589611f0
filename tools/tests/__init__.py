"""Promises of the scripts: python3 -m unittest discover -s tools/tests -t tools. Nothing is measured, in seconds."""
