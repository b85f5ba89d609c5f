#!/usr/bin/env bash
# Makes .venv with everything that a lock file has: setup-venv.sh requirements.lock
# With uv where there is one, because it takes seconds; with Python's own venv and pip otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=$1
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: tallymark needs Python 3.11 or newer, and '$python' is none" >&2
    echo "hint: name one: make PYTHON=python3.12 …" >&2
    exit 1
fi

echo "setting up .venv from $lock (the first time takes about a minute) …" >&2
if uv --version >/dev/null 2>&1; then
    .venv/bin/python -c '' 2>/dev/null || uv venv --quiet --clear --python "$python" .venv
    uv pip install --quiet --python .venv/bin/python --require-hashes -r "$lock"
    uv pip install --quiet --python .venv/bin/python --no-deps -e .
else
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
fi
