#!/bin/sh
# Write constraints.txt from the development environment: run it after `make test` is green with new versions.
set -eu
cd "$(dirname "$0")/.."
{
    echo "# Pins for a repeatable CPU install (make demo, make test). GPU users: leave this file out, the extras hold ranges."
    .venv/bin/python -m pip list --format=freeze --exclude-editable --disable-pip-version-check 2>/dev/null |
        sed "s/+cpu$//" | grep -v -i -E "^(pip|setuptools|wheel|embedkit-retrieval)=="
} >constraints.txt
